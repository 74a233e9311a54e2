#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "entries.h"
#include "espalier/core/error.h"
#include "espalier/core/text.h"
#include "espalier/prune/plan.h"
#include "ledger.h"
#include "selection.h"

namespace espalier {
namespace {

const char* unit_in_words(AttentionUnit unit, UnitKind kind) {
  if (kind == UnitKind::mlp) return "channel";
  return unit == AttentionUnit::kv_group ? "KV head" : "query head";
}

/// Turns the scores of one kind into candidates: surviving units of unprotected layers.
class Collector {
 public:
  Collector(const PruneRules& rules, AttentionUnit unit, UnitKind kind,
            const UnitMatrix<std::int32_t>& removed_at, const ScoreList& scores)
      : rules_(rules),
        kind_(kind),
        word_(unit_in_words(unit, kind)),
        removed_at_(removed_at),
        scores_(scores) {}

  void append_to(std::vector<Candidate>& candidates) {
    const std::size_t n = scores_.score.size();
    ESPALIER_CHECK(scores_.layer.size() == n && scores_.unit.size() == n,
                   fmt::format("{} scores of {}: {} layers and {} units", n, name_of(kind_),
                               scores_.layer.size(), scores_.unit.size()));
    std::vector<bool> seen(removed_at_.values.size(), false);
    for (std::size_t i = 0; i < n; ++i) {
      const Candidate candidate{scores_.score[i], scores_.layer[i], scores_.unit[i], kind_};
      const std::size_t place = checked_place(candidate);
      if (seen[place]) fail(candidate.layer, candidate.unit, "has two scores");
      seen[place] = true;
      if (may_be_ranked(candidate.layer, place)) candidates.push_back(candidate);
    }
    require_all(seen);
  }

 private:
  // The loops over units format a message only where something is wrong: there are millions of
  // them.
  std::size_t checked_place(const Candidate& candidate) const {
    if (candidate.layer < 0 || candidate.layer >= removed_at_.layers || candidate.unit < 0 ||
        candidate.unit >= removed_at_.units)
      fail(
          candidate.layer, candidate.unit,
          fmt::format("has a score, the model is [{}, {}]", removed_at_.layers, removed_at_.units));
    // Infinite: a criterion's word that the unit falls after all others.
    if (std::isnan(candidate.key) || candidate.key == -std::numeric_limits<double>::infinity())
      throw Error(ExitCode::bad_content,
                  fmt::format("the score of layer {}, {} {} is {}", candidate.layer, word_,
                              candidate.unit, candidate.key),
                  "only numbers can be ranked",
                  "check the checkpoint and the calibration loss for NaN or overflow");
    return static_cast<std::size_t>(candidate.layer * removed_at_.units + candidate.unit);
  }

  [[noreturn]] void fail(std::int64_t layer, std::int64_t unit, const std::string& what) const {
    throw Error(ExitCode::internal, fmt::format("layer {}, {} {} {}", layer, word_, unit, what),
                "every surviving unit has one score");
  }

  bool may_be_ranked(std::int64_t layer, std::size_t place) const {
    return is_listed(rules_, kind_) && !rules_.protected_layer[static_cast<std::size_t>(layer)] &&
           removed_at_.values[place] < 0;
  }

  void require_all(const std::vector<bool>& seen) const {
    std::size_t place = 0;
    for (std::int64_t layer = 0; layer < removed_at_.layers; ++layer)
      for (std::int64_t unit = 0; unit < removed_at_.units; ++unit, ++place)
        if (!seen[place] && may_be_ranked(layer, place)) fail(layer, unit, "has no score");
  }

  const PruneRules& rules_;
  UnitKind kind_;
  const char* word_;
  const UnitMatrix<std::int32_t>& removed_at_;
  const ScoreList& scores_;
};

Entries entries_of(const ModelConfig& config, const PruningPlan& plan, const ScoreTable& scores,
                   const PruneRules& rules) {
  const AttentionUnit unit = plan.attention_unit;
  std::vector<Candidate> heads, channels;
  heads.reserve(scores.attention.score.size());
  channels.reserve(scores.mlp.score.size());
  Collector(rules, unit, UnitKind::attention, plan.attention_removed_at, scores.attention)
      .append_to(heads);
  Collector(rules, unit, UnitKind::mlp, plan.mlp_removed_at, scores.mlp).append_to(channels);
  return {config, rules, unit, EntryKey::mean, std::move(heads), std::move(channels)};
}

double importance_of(const std::vector<Candidate>& units) {
  double sum = 0;
  for (const Candidate& unit : units) sum += unit.key;
  return sum;
}

std::optional<RoundingCost> rounding_cost(const ModelConfig& config, const PruningPlan& before,
                                          const ScoreTable& scores, PruneRules rules,
                                          const std::vector<Candidate>& fallen,
                                          const PruningPlan& after) {
  if (rules.width_multiple == 1) return std::nullopt;
  rules.width_multiple = 1;
  const Entries entries = entries_of(config, before, scores, rules);
  const Selection free = select_as_far(
      config, rules, before.attention_unit, entries.ranked(),
      Ledger(config, before, {rules.min_heads, rules.min_channels}), Ledger(config, after, {}));
  const RoundingCost cost{importance_of(fallen), importance_of(entries.units_of(free.fallen))};
  if (!std::isfinite(cost.importance) || !std::isfinite(cost.free_importance)) return std::nullopt;
  return cost;
}

std::int64_t units_in(const std::vector<Candidate>& entries, const Ledger& ledger) {
  std::int64_t units = 0;
  for (const Candidate& entry : entries) units += ledger.units_of(entry);
  return units;
}

void check_arguments(const ModelConfig& config, const PruningPlan& plan, double target,
                     const PruneRules& rules, std::int64_t iteration) {
  require_ratio(target);
  ESPALIER_CHECK(static_cast<std::int64_t>(rules.protected_layer.size()) == config.layers,
                 fmt::format("rules for {} layers, a model of {}", rules.protected_layer.size(),
                             config.layers));
  ESPALIER_CHECK(iteration >= 1 && iteration >= plan.iteration &&
                     iteration <= std::numeric_limits<std::int32_t>::max(),
                 fmt::format("iteration {} after iteration {}", iteration, plan.iteration));
}

void mark_fallen(Advance& result, const std::vector<Candidate>& fallen, std::int64_t iteration) {
  std::int64_t place = result.plan.removed();
  for (const Candidate& unit : fallen) {
    const bool attention = unit.kind == UnitKind::attention;
    PruningPlan& plan = result.plan;
    (attention ? plan.attention_removed_at : plan.mlp_removed_at).at(unit.layer, unit.unit) =
        static_cast<std::int32_t>(iteration);
    (attention ? plan.attention_order : plan.mlp_order).at(unit.layer, unit.unit) = place++;
    ++(attention ? result.removed_heads : result.removed_channels);
  }
  result.plan.iteration = iteration;
}

}  // namespace

Advance advance(const ModelConfig& config, const PruningPlan& plan, const ScoreTable& scores,
                double target, const PruneRules& rules, std::int64_t iteration) {
  check_arguments(config, plan, target, rules, iteration);
  (void)widths_of(config, plan);  // refuses a plan of another shape
  require_multiples(config, rules, plan);
  const Entries entries = entries_of(config, plan, scores, rules);
  const Ledger ledger(config, plan, {rules.min_heads, rules.min_channels}, rules.width_multiple);
  const Selection selection =
      select(config, rules, plan.attention_unit, entries.ranked(), ledger, target);
  if (selection.missing > 0)
    throw Error(ExitCode::config,
                fmt::format("the target {} of iteration {} cannot be reached: {} too few", target,
                            iteration, counted(selection.missing, "unit")),
                fmt::format("{} to choose from; min_heads is {}, min_channels is {}{}",
                            counted(units_in(entries.ranked(), ledger), "unit"), rules.min_heads,
                            rules.min_channels, multiple_in_words(rules)),
                "Lower prune.target or protect less.");
  Advance result;
  result.plan = plan;
  result.margin_at_cut = selection.margin;
  const std::vector<Candidate> fallen = entries.units_of(selection.fallen);
  mark_fallen(result, fallen, iteration);
  result.rounding = rounding_cost(config, plan, scores, rules, fallen, result.plan);
  return result;
}

}  // namespace espalier
