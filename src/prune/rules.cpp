#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>

#include <fmt/format.h>

#include "budget.h"
#include "espalier/core/error.h"
#include "espalier/core/text.h"
#include "espalier/prune/plan.h"
#include "ledger.h"
#include "selection.h"

namespace espalier {
namespace {

constexpr UnitKind kinds[] = {UnitKind::attention, UnitKind::mlp};

void check_count(Problems& problems, const char* key, std::int64_t value, std::int64_t most,
                 const char* of) {
  if (value >= 0 && value <= most) return;
  problems.add(ExitCode::config, fmt::format("{} is {}", key, value),
               fmt::format("the model has {} {}", most, of),
               fmt::format("give a number from 0 to {}", most));
}

void check_multiple(Problems& problems, const ModelConfig& config, const PruneConfig& prune) {
  const std::int64_t multiple = prune.width_multiple;
  if (multiple == 1) return;
  if (!prune.mlp)
    problems.add(ExitCode::config, fmt::format("prune.width_multiple is {}", multiple),
                 "prune.kinds does not name mlp: no channel falls", "Add mlp, or leave it out.");
  if (multiple < 1 || config.channels % multiple != 0)
    problems.add(
        ExitCode::config, fmt::format("prune.width_multiple is {}", multiple),
        fmt::format("a layer of the model has {} channels, no multiple of it", config.channels),
        fmt::format("give a divisor of {}: {} is the largest power of two among them",
                    config.channels, config.channels & -config.channels));
}

void check_protection(const ModelConfig& config, const PruneConfig& prune) {
  const ProtectConfig& protect = prune.protect;
  Problems problems;
  if (!prune.attention && !prune.mlp)
    problems.add(ExitCode::config, "prune.kinds is empty", "nothing could be removed",
                 "name attention, mlp or both");
  if (prune.attention && prune.attention_unit == AttentionUnit::equal_per_group && !config.is_gqa())
    problems.add(
        ExitCode::config, "prune.attention_unit is equal_per_group",
        fmt::format("every query head of the model has a KV head of its own: the heads that "
                    "fall together would be all {} of a layer",
                    config.heads),
        "Set prune.attention_unit: query_head.");
  check_count(problems, "prune.protect.first_layers", protect.first_layers.value_or(0),
              config.layers, "layers");
  check_count(problems, "prune.protect.last_layers", protect.last_layers, config.layers, "layers");
  check_count(problems, "prune.protect.min_heads", protect.min_heads, config.heads,
              "query heads per layer");
  check_count(problems, "prune.protect.min_channels", protect.min_channels, config.channels,
              "channels per layer");
  check_multiple(problems, config, prune);
  for (const std::int64_t layer : protect.layers)
    if (layer < 0 || layer >= config.layers)
      problems.add(ExitCode::config, fmt::format("prune.protect.layers names layer {}", layer),
                   fmt::format("the model's layers are 0 to {}", config.layers - 1),
                   "remove it from the list");
  problems.throw_if_any();
}

/// What a plan removed, and the most that its unprotected layers can lose beside that.
class Reach {
 public:
  Reach(const ModelConfig& model, const PruneRules& limits, const PruningPlan& plan)
      : config(model),
        rules(limits),
        unit(plan.attention_unit),
        gone(model, plan, {}),
        widths_(widths_of(model, plan)),
        sizes_(unit_parameters(model)) {
    ESPALIER_CHECK(static_cast<std::int64_t>(rules.protected_layer.size()) == config.layers,
                   fmt::format("rules for {} layers, a model of {}", rules.protected_layer.size(),
                               config.layers));
  }

  std::int64_t open_layers() const {
    return std::count(rules.protected_layer.begin(), rules.protected_layer.end(), false);
  }

  bool is_open(std::int64_t layer) const {
    return !rules.protected_layer[static_cast<std::size_t>(layer)];
  }

  /// Units that one layer can lose; 0 where it is protected.
  std::int64_t units(UnitKind kind, std::int64_t layer) const {
    if (!is_open(layer)) return 0;
    const std::int64_t entry = units_per_entry(config, rules, unit, kind);
    if (kind == UnitKind::mlp)
      return whole_entries(
          std::max<std::int64_t>(0, count(widths(layer).channels) - rules.min_channels), entry);
    const std::int64_t heads =
        std::max<std::int64_t>(0, count(widths(layer).query_heads) - rules.min_heads);
    if (unit == AttentionUnit::kv_group) return heads / config.group_size();
    return whole_entries(heads, entry);
  }

  std::int64_t units(UnitKind kind) const {
    return over_layers([&](std::int64_t layer) { return units(kind, layer); });
  }

  /// Units of one layer that are gone or can go.
  std::int64_t most(UnitKind kind, std::int64_t layer) const {
    return gone.units(kind, static_cast<std::int32_t>(layer)) + units(kind, layer);
  }

  /// Parameters that can go.
  std::int64_t parameters(UnitKind kind) const {
    return over_layers([&](std::int64_t layer) { return parameters(kind, layer); });
  }

  template <class Count>
  std::int64_t over_kinds(Count count_of) const {
    std::int64_t sum = 0;
    for (const UnitKind kind : kinds)
      if (is_listed(rules, kind)) sum += count_of(kind);
    return sum;
  }

  const ModelConfig& config;
  const PruneRules& rules;
  const AttentionUnit unit;
  const Ledger gone;

 private:
  static std::int64_t count(const std::vector<std::int32_t>& list) {
    return static_cast<std::int64_t>(list.size());
  }
  const LayerWidths& widths(std::int64_t layer) const {
    return widths_.layers[static_cast<std::size_t>(layer)];
  }

  template <class Count>
  std::int64_t over_layers(Count count_of) const {
    std::int64_t sum = 0;
    for (std::int64_t layer = 0; layer < config.layers; ++layer) sum += count_of(layer);
    return sum;
  }

  std::int64_t parameters(UnitKind kind, std::int64_t layer) const {
    if (kind == UnitKind::mlp) return units(kind, layer) * sizes_.channel;
    const bool by_group = unit == AttentionUnit::kv_group;
    const std::int64_t heads = units(kind, layer) * (by_group ? config.group_size() : 1);
    const std::int64_t kv_lost = count(widths(layer).kv_heads) -
                                 fewest_kv_heads(layer, count(widths(layer).query_heads) - heads);
    return heads * sizes_.query_head + kv_lost * sizes_.kv_head;
  }

  /// The heads that stay may all be readers of the KV heads that are read most, unless every group
  /// keeps as many.
  std::int64_t fewest_kv_heads(std::int64_t layer, std::int64_t heads_left) const {
    if (unit == AttentionUnit::equal_per_group) return heads_left > 0 ? config.kv_heads : 0;
    std::vector<std::int64_t> groups = widths(layer).groups(config);
    std::sort(groups.begin(), groups.end(), std::greater<>());
    std::int64_t kv_heads = 0;
    for (; heads_left > 0; ++kv_heads) heads_left -= groups[static_cast<std::size_t>(kv_heads)];
    return kv_heads;
  }

  ModelWidths widths_;
  UnitSizes sizes_;
};

double quotient(std::int64_t part, std::int64_t whole) {
  return whole == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(whole);
}

std::int64_t units_of_layer(const Reach& reach, UnitKind kind) {
  return units_per_layer(reach.config, reach.unit, kind);
}

/// A list of units that is cut by itself: what it has lost, what it can have lost, and all of it.
struct List {
  std::int64_t gone;
  std::int64_t most;
  std::int64_t units;
  /// Units that fall together.
  std::int64_t entry;

  std::int64_t wanted(double ratio) const {
    return whole_entries(floor_share(units, ratio), entry);
  }
};

std::int64_t entry_of(const Reach& reach, UnitKind kind) {
  return units_per_entry(reach.config, reach.rules, reach.unit, kind);
}

/// One for `global`, one per kind, or one per unprotected layer and kind. Each has to reach the
/// target by itself.
std::vector<List> lists_of(const Reach& reach) {
  const auto all = [&](UnitKind kind) { return units_of_layer(reach, kind) * reach.config.layers; };
  const auto gone = [&](UnitKind kind) { return reach.gone.units(kind); };
  const auto most = [&](UnitKind kind) { return reach.gone.units(kind) + reach.units(kind); };
  if (reach.rules.ranking == Ranking::global)
    return {{reach.over_kinds(gone), reach.over_kinds(most), reach.over_kinds(all),
             units_per_entry(reach.config, reach.rules, reach.unit)}};
  std::vector<List> lists;
  for (const UnitKind kind : kinds) {
    if (!is_listed(reach.rules, kind)) continue;
    if (reach.rules.ranking == Ranking::global_by_kind) {
      lists.push_back({gone(kind), most(kind), all(kind), entry_of(reach, kind)});
      continue;
    }
    for (std::int64_t layer = 0; layer < reach.config.layers; ++layer)
      if (reach.is_open(layer))
        lists.push_back({reach.gone.units(kind, static_cast<std::int32_t>(layer)),
                         reach.most(kind, layer), units_of_layer(reach, kind),
                         entry_of(reach, kind)});
  }
  return lists;
}

double reachable_structures(const Reach& reach) {
  const std::vector<List> lists = lists_of(reach);
  if (lists.empty()) return 0;
  double least = 1;
  for (const List& list : lists) least = std::min(least, quotient(list.most, list.units));
  return least;
}

bool takes_no_more(const std::vector<List>& lists, double ratio) {
  return std::all_of(lists.begin(), lists.end(),
                     [ratio](const List& list) { return list.wanted(ratio) <= list.gone; });
}

/// The most units of `one` whose ratio makes no list lose more.
std::int64_t most_within(const std::vector<List>& lists, const List& one) {
  std::int64_t least = 0, beyond = one.gone + 1;
  while (beyond - least > 1) {
    const std::int64_t middle = least + (beyond - least) / 2;
    (takes_no_more(lists, quotient(middle, one.units)) ? least : beyond) = middle;
  }
  return least;
}

/// The highest ratio of a list that makes no list lose more. Where units fall in bundles or blocks,
/// a list is behind others by up to one: then what a list shares with those behind it counts too.
double reached_structures(const Reach& reach) {
  const std::vector<List> lists = lists_of(reach);
  const bool bundled =
      reach.unit == AttentionUnit::equal_per_group || reach.rules.width_multiple > 1;
  double highest = 0;
  for (const List& one : lists) {
    const std::int64_t units = bundled ? most_within(lists, one) : one.gone;
    const double ratio = quotient(units, one.units);
    if (ratio > highest && takes_no_more(lists, ratio)) highest = ratio;
  }
  return highest;
}

double measured(const ModelConfig& config, Measure measure) {
  const ParameterCount dense = count_parameters(config, dense_widths(config));
  return static_cast<double>(measure == Measure::total_parameters ? dense.total : dense.decoder);
}

/// The target that parameters lost make: of all together, or of the kind that is behind.
template <class Lost>
double ratio_of_parameters(const Reach& reach, Lost lost) {
  const auto dense = [&](UnitKind kind) { return kind_parameters(reach.config, kind); };
  const double whole = measured(reach.config, reach.rules.measure);
  double least = 1;
  for (const UnitKind kind : kinds)
    if (is_listed(reach.rules, kind)) least = std::min(least, quotient(lost(kind), dense(kind)));
  return least * static_cast<double>(reach.over_kinds(dense)) / whole;
}

double reachable_parameters(const Reach& reach) {
  const auto open = [&](UnitKind kind) { return reach.parameters(kind); };
  if (reach.rules.ranking != Ranking::global_by_kind)
    return static_cast<double>(reach.gone.parameters() + reach.over_kinds(open)) /
           measured(reach.config, reach.rules.measure);
  return ratio_of_parameters(
      reach, [&](UnitKind kind) { return reach.gone.parameters(kind) + open(kind); });
}

double reached_parameters(const Reach& reach) {
  if (reach.rules.ranking != Ranking::global_by_kind)
    return static_cast<double>(reach.gone.parameters()) /
           measured(reach.config, reach.rules.measure);
  return ratio_of_parameters(reach, [&](UnitKind kind) { return reach.gone.parameters(kind); });
}

bool structures_suffice(const Reach& reach, double target) {
  const std::vector<List> lists = lists_of(reach);
  return std::all_of(lists.begin(), lists.end(),
                     [&](const List& list) { return list.wanted(target) <= list.most; });
}

bool parameters_suffice(const Reach& reach, double target) {
  const auto open = [&](UnitKind kind) { return reach.parameters(kind); };
  if (reach.rules.ranking != Ranking::global_by_kind)
    return parameter_budget(reach.config, reach.rules.measure, target) <=
           reach.gone.parameters() + reach.over_kinds(open);
  return std::all_of(std::begin(kinds), std::end(kinds), [&](UnitKind kind) {
    return !is_listed(reach.rules, kind) || kind_budget(reach.config, reach.rules, kind, target) <=
                                                reach.gone.parameters(kind) + open(kind);
  });
}

}  // namespace

PruneRules prune_rules(const ModelConfig& config, const PruneConfig& prune) {
  check_protection(config, prune);
  const ProtectConfig& protect = prune.protect;
  PruneRules rules;
  rules.attention = prune.attention;
  rules.mlp = prune.mlp;
  rules.ranking = prune.ranking;
  rules.measure = prune.measure;
  rules.min_heads = protect.min_heads;
  rules.min_channels = protect.min_channels;
  rules.width_multiple = prune.width_multiple;
  rules.protected_layer.assign(static_cast<std::size_t>(config.layers), false);
  const std::int64_t first = protect.first_layers.value_or(config.layers / 10);  // int(0.1 L)
  for (std::int64_t layer = 0; layer < config.layers; ++layer)
    if (layer < first || layer >= config.layers - protect.last_layers)
      rules.protected_layer[static_cast<std::size_t>(layer)] = true;
  for (const std::int64_t layer : protect.layers)
    rules.protected_layer[static_cast<std::size_t>(layer)] = true;
  return rules;
}

double reachable_target(const ModelConfig& config, const PruneRules& rules,
                        const PruningPlan& start) {
  const Reach reach(config, rules, start);
  return rules.measure == Measure::structures ? reachable_structures(reach)
                                              : reachable_parameters(reach);
}

double reached_target(const ModelConfig& config, const PruneRules& rules, const PruningPlan& plan) {
  const Reach reach(config, rules, plan);
  return rules.measure == Measure::structures ? reached_structures(reach)
                                              : reached_parameters(reach);
}

// Decided on the units or parameters that the target asks for, not on the quotient: 3 of 4 heads
// are within reach of 0.8, which takes floor(3.2) of them.
void require_reachable(const ModelConfig& config, const PruneRules& rules, const PruningPlan& start,
                       double target) {
  require_ratio(target);
  require_multiples(config, rules, start);
  const Reach reach(config, rules, start);
  const bool anything_open = reach.open_layers() > 0 || target == 0;
  const bool suffices = rules.measure == Measure::structures ? structures_suffice(reach, target)
                                                             : parameters_suffice(reach, target);
  if (anything_open && suffices) return;
  const double most = std::floor(reachable_target(config, rules, start) * 1e4) / 1e4;
  throw Error(ExitCode::config,
              fmt::format("prune.target {} cannot be reached: at most {:.4f} of the {} can go",
                          target, most, measure_in_words(rules.measure)),
              fmt::format("{} of {} layers are protected; min_heads is {}, min_channels is {}{}",
                          config.layers - reach.open_layers(), config.layers, rules.min_heads,
                          rules.min_channels, multiple_in_words(rules)),
              fmt::format("lower prune.target to {:.4f} or protect less", most));
}

void require_multiples(const ModelConfig& config, const PruneRules& rules,
                       const PruningPlan& plan) {
  if (rules.width_multiple == 1) return;
  const ModelWidths widths = widths_of(config, plan);
  for (std::size_t layer = 0; layer < widths.layers.size(); ++layer)
    if (const auto kept = static_cast<std::int64_t>(widths.layers[layer].channels.size());
        kept % rules.width_multiple != 0)
      throw Error(ExitCode::config,
                  fmt::format("prune.width_multiple is {}, and layer {} of the model has {}",
                              rules.width_multiple, layer, counted(kept, "channel")),
                  "channels fall in whole blocks of so many, and this layer is no multiple of them",
                  "Start from the unpruned model or one of such widths, or set "
                  "prune.width_multiple: 1.");
}

void require_work(const ModelConfig& config, const PruneRules& rules, const PruningPlan& start,
                  double target) {
  if (asks_for_units(config, rules, start, target)) return;
  const double reached = reached_target(config, rules, start);
  if (start.removed() == 0)
    throw Error(ExitCode::config,
                fmt::format("prune.target {} takes no unit of this model", target),
                fmt::format("it is a share of the {}, rounded down to whole units{}",
                            measure_in_words(rules.measure), multiple_in_words(rules)),
                "Raise prune.target.");
  throw Error(
      ExitCode::config,
      fmt::format("prune.target {}: {:.6g} of the {} are gone from the model already", target,
                  reached, measure_in_words(rules.measure)),
      "removed stays removed, and no unit would fall in this run",
      fmt::format("Raise prune.target above {:.6g} (it counts from the unpruned model), or use the "
                  "model as it is.",
                  reached));
}

}  // namespace espalier
