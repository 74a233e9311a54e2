#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "entries.h"
#include "espalier/core/error.h"
#include "espalier/prune/plan.h"
#include "ledger.h"
#include "selection.h"

namespace espalier {
namespace {

/// Everything that `plan` removed, in the order in which it fell (which is the key).
std::vector<Candidate> removal_order(const PruningPlan& plan) {
  std::vector<Candidate> order;
  const auto append = [&order](UnitKind kind, const UnitMatrix<std::int64_t>& places) {
    for (std::int64_t layer = 0; layer < places.layers; ++layer)
      for (std::int64_t unit = 0; unit < places.units; ++unit)
        if (places.at(layer, unit) >= 0)
          order.push_back({static_cast<double>(places.at(layer, unit)),
                           static_cast<std::int32_t>(layer), static_cast<std::int32_t>(unit),
                           kind});
  };
  append(UnitKind::attention, plan.attention_order);
  append(UnitKind::mlp, plan.mlp_order);
  std::sort(order.begin(), order.end(), falls_before);
  return order;
}

/// What the last step of a run by parameters may stay below its target: one entry of each list that
/// was cut by itself, with the k and v rows that it may carry.
std::int64_t largest_step(const ModelConfig& config, const PruneRules& rules, AttentionUnit unit) {
  const UnitSizes sizes = unit_parameters(config);
  const std::int64_t heads = unit == AttentionUnit::kv_group ? config.group_size() : 1;
  const std::int64_t attention =
      rules.attention ? units_per_bundle(config, unit) * sizes.group(heads) : 0;
  const std::int64_t mlp = rules.mlp ? rules.width_multiple * sizes.channel : 0;
  if (rules.ranking == Ranking::global) return std::max(attention, mlp);
  return (attention + mlp) * (rules.ranking == Ranking::local ? config.layers : 1);
}

/// A smaller plan of `plan`, which continues `base`.
struct Task {
  const ModelConfig& config;
  const PruneRules& rules;
  const PruningPlan& plan;
  const PruningPlan& base;
  double target;
};

[[noreturn]] void refuse(const Task& task, const char* why, const char* remedy) {
  throw Error(
      ExitCode::config,
      fmt::format("sparsity {:.6g} cannot be had from this plan: it holds those from {:.6f} "
                  "to {:.6f} of the {}",
                  task.target, reached_target(task.config, task.rules, task.base),
                  reached_target(task.config, task.rules, task.plan),
                  measure_in_words(task.rules.measure)),
      why, remedy);
}

[[noreturn]] void refuse_more(const Task& task) {
  refuse(task, "a smaller plan is a part of this one", "Ask for less, or prune further.");
}

void check_range(const Task& task) {
  // The rounding of a quotient is no unit.
  if (task.target + 1e-12 < reached_target(task.config, task.rules, task.base))
    refuse(task, "the model that the plan started from had lost more: its weights are not there",
           "Ask for more, or prune the unpruned model.");
  if (task.rules.measure == Measure::structures) return;  // the selection counts what is missing
  const std::int64_t budget = parameter_budget(task.config, task.rules.measure, task.target);
  const std::int64_t reached = Ledger(task.config, task.plan, {}).parameters();
  if (budget - reached >= largest_step(task.config, task.rules, task.plan.attention_unit))
    refuse_more(task);
}

/// `plan` cut down to `units`, which are in the removal order. Places are counted anew, so that
/// they are a permutation also where a ranking by kind or by layer left gaps; a prefix keeps its
/// places.
PruningPlan only(const ModelConfig& config, const PruningPlan& plan,
                 const std::vector<Candidate>& units) {
  PruningPlan result = dense_plan(config, plan.attention_unit);
  result.model_config_sha256 = plan.model_config_sha256;
  std::int64_t place = 0;
  for (const Candidate& unit : units) {
    const bool attention = unit.kind == UnitKind::attention;
    const auto& from = attention ? plan.attention_removed_at : plan.mlp_removed_at;
    auto& removed_at = attention ? result.attention_removed_at : result.mlp_removed_at;
    auto& order = attention ? result.attention_order : result.mlp_order;
    removed_at.at(unit.layer, unit.unit) = from.at(unit.layer, unit.unit);
    order.at(unit.layer, unit.unit) = place++;
    result.iteration = std::max<std::int64_t>(result.iteration, from.at(unit.layer, unit.unit));
  }
  return result;
}

/// Units that these rules do not rank (of protected layers, of a kind that is not listed) and those
/// of the base came with the model that the run started from; they stay removed.
struct Split {
  std::vector<Candidate> heads, channels;
  std::vector<Candidate> kept_removed;
  /// Has lost what stays removed.
  Ledger ledger;
};

Split split_of(const Task& task) {
  PruningPlan lost = task.plan;
  std::vector<Candidate> heads, channels, kept_removed;
  for (const Candidate& unit : removal_order(task.plan)) {
    const bool attention = unit.kind == UnitKind::attention;
    const auto& of_base = attention ? task.base.attention_removed_at : task.base.mlp_removed_at;
    const bool is_ranked = is_listed(task.rules, unit.kind) &&
                           !task.rules.protected_layer[static_cast<std::size_t>(unit.layer)] &&
                           of_base.at(unit.layer, unit.unit) < 0;
    (is_ranked ? (attention ? heads : channels) : kept_removed).push_back(unit);
    if (is_ranked)
      (attention ? lost.attention_removed_at : lost.mlp_removed_at).at(unit.layer, unit.unit) = -1;
  }
  return {std::move(heads), std::move(channels), std::move(kept_removed),
          Ledger(task.config, lost, {}, task.rules.width_multiple)};
}

/// Units missing from which on a target by structures is above what the plan reached. A run whose
/// next entry was a bundle or a block may have stayed below its own target by less than that.
std::int64_t least_missing(const Task& task) {
  if (task.rules.ranking != Ranking::global) return 1;
  return largest_entry(task.config, task.rules, task.plan.attention_unit);
}

}  // namespace

PruningPlan truncate_plan(const ModelConfig& config, const PruningPlan& plan,
                          const PruningPlan& base, double target, const PruneRules& rules) {
  require_ratio(target);
  (void)widths_of(config, plan);  // refuses a plan of another shape
  require_part(base, plan);
  require_multiples(config, rules, base);
  require_multiples(config, rules, plan);
  const Task task{config, rules, plan, base, target};
  check_range(task);
  Split split = split_of(task);
  // A bundle or a block stands where its last unit fell.
  const Entries entries(config, rules, plan.attention_unit, EntryKey::highest,
                        std::move(split.heads), std::move(split.channels));
  const Selection selection =
      select(config, rules, plan.attention_unit, entries.ranked(), split.ledger, target);
  if (selection.missing >= least_missing(task)) refuse_more(task);
  const std::vector<Candidate> fallen = entries.units_of(selection.fallen);
  std::vector<Candidate>& result = split.kept_removed;
  result.insert(result.end(), fallen.begin(), fallen.end());
  std::sort(result.begin(), result.end(), falls_before);
  return only(config, plan, result);
}

}  // namespace espalier
