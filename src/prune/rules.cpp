#include <algorithm>
#include <cmath>
#include <limits>

#include <fmt/format.h>

#include "budget.h"
#include "espalier/core/error.h"
#include "espalier/prune/plan.h"

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

void check_protection(const ModelConfig& config, const PruneConfig& prune) {
  const ProtectConfig& protect = prune.protect;
  Problems problems;
  if (!prune.attention && !prune.mlp)
    problems.add(ExitCode::config, "prune.kinds is empty", "nothing could be removed",
                 "name attention, mlp or both");
  check_count(problems, "prune.protect.first_layers", protect.first_layers.value_or(0),
              config.layers, "layers");
  check_count(problems, "prune.protect.last_layers", protect.last_layers, config.layers, "layers");
  check_count(problems, "prune.protect.min_heads", protect.min_heads, config.heads,
              "query heads per layer");
  check_count(problems, "prune.protect.min_channels", protect.min_channels, config.channels,
              "channels per layer");
  for (const std::int64_t layer : protect.layers)
    if (layer < 0 || layer >= config.layers)
      problems.add(ExitCode::config, fmt::format("prune.protect.layers names layer {}", layer),
                   fmt::format("the model's layers are 0 to {}", config.layers - 1),
                   "remove it from the list");
  problems.throw_if_any();
}

/// The most that unprotected layers can lose, and what the dense model has.
struct Reach {
  std::int64_t open_layers = 0;  ///< unprotected
  AttentionUnit unit;
  const ModelConfig& config;
  const PruneRules& rules;

  std::int64_t units_in_layer(UnitKind kind) const {
    if (kind == UnitKind::mlp) return config.channels - rules.min_channels;
    const std::int64_t heads = config.heads - rules.min_heads;
    return unit == AttentionUnit::kv_group ? heads / config.group_size() : heads;
  }

  std::int64_t units(UnitKind kind) const { return open_layers * units_in_layer(kind); }

  std::int64_t parameters(UnitKind kind) const {
    const UnitCosts costs = unit_costs(config);
    const std::int64_t units_lost = units_in_layer(kind);
    if (kind == UnitKind::mlp) return open_layers * units_lost * costs.channel;
    const bool by_group = unit == AttentionUnit::kv_group;
    const std::int64_t heads = units_lost * (by_group ? config.group_size() : 1);
    const std::int64_t kept = config.heads - heads;
    // The kept heads may all read the same few KV heads.
    const std::int64_t kv_kept = (kept + config.group_size() - 1) / config.group_size();
    return open_layers * (heads * costs.query_head + (config.kv_heads - kv_kept) * costs.kv_head);
  }

  template <class Count>
  std::int64_t over_kinds(Count count) const {
    std::int64_t sum = 0;
    for (const UnitKind kind : kinds)
      if (is_listed(rules, kind)) sum += count(kind);
    return sum;
  }
};

Reach reach_of(const ModelConfig& config, const PruneRules& rules, AttentionUnit unit) {
  ESPALIER_CHECK(static_cast<std::int64_t>(rules.protected_layer.size()) == config.layers,
                 fmt::format("rules for {} layers, a model of {}", rules.protected_layer.size(),
                             config.layers));
  const auto open = std::count(rules.protected_layer.begin(), rules.protected_layer.end(), false);
  return {open, unit, config, rules};
}

double quotient(std::int64_t part, std::int64_t whole) {
  return whole == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(whole);
}

double reachable_structures(const Reach& reach) {
  const auto per_layer = [&](UnitKind kind) {
    return units_per_layer(reach.config, reach.unit, kind);
  };
  if (reach.rules.ranking == Ranking::global)
    return quotient(reach.over_kinds([&](UnitKind kind) { return reach.units(kind); }),
                    rankable_units(reach.config, reach.rules, reach.unit));
  // Each kind, or each unprotected layer and kind, has to reach the ratio by itself.
  const bool local = reach.rules.ranking == Ranking::local;
  if (reach.open_layers == 0) return 0;
  double least = 1;
  for (const UnitKind kind : kinds) {
    if (!is_listed(reach.rules, kind)) continue;
    const double ratio = local ? quotient(reach.units_in_layer(kind), per_layer(kind))
                               : quotient(reach.units(kind), per_layer(kind) * reach.config.layers);
    least = std::min(least, ratio);
  }
  return least;
}

double measured(const ModelConfig& config, Measure measure) {
  const ParameterCount dense = count_parameters(config, dense_widths(config));
  return static_cast<double>(measure == Measure::total_parameters ? dense.total : dense.decoder);
}

double reachable_parameters(const Reach& reach) {
  const auto most = [&](UnitKind kind) { return reach.parameters(kind); };
  const auto dense = [&](UnitKind kind) { return unit_parameters(reach.config, kind); };
  const double whole = measured(reach.config, reach.rules.measure);
  if (reach.rules.ranking != Ranking::global_by_kind)
    return static_cast<double>(reach.over_kinds(most)) / whole;
  double least = 1;
  for (const UnitKind kind : kinds)
    if (is_listed(reach.rules, kind)) least = std::min(least, quotient(most(kind), dense(kind)));
  return least * static_cast<double>(reach.over_kinds(dense)) / whole;
}

bool structures_suffice(const Reach& reach, double target) {
  const auto layer_units = [&](UnitKind kind) {
    return units_per_layer(reach.config, reach.unit, kind);
  };
  if (reach.rules.ranking == Ranking::global)
    return floor_share(rankable_units(reach.config, reach.rules, reach.unit), target) <=
           reach.over_kinds([&](UnitKind kind) { return reach.units(kind); });
  const bool local = reach.rules.ranking == Ranking::local;
  return std::all_of(std::begin(kinds), std::end(kinds), [&](UnitKind kind) {
    if (!is_listed(reach.rules, kind)) return true;
    if (local) return floor_share(layer_units(kind), target) <= reach.units_in_layer(kind);
    return floor_share(layer_units(kind) * reach.config.layers, target) <= reach.units(kind);
  });
}

bool parameters_suffice(const Reach& reach, double target) {
  const auto most = [&](UnitKind kind) { return reach.parameters(kind); };
  if (reach.rules.ranking != Ranking::global_by_kind)
    return parameter_budget(reach.config, reach.rules.measure, target) <= reach.over_kinds(most);
  return std::all_of(std::begin(kinds), std::end(kinds), [&](UnitKind kind) {
    return !is_listed(reach.rules, kind) ||
           kind_budget(reach.config, reach.rules, kind, target) <= most(kind);
  });
}

const char* measure_in_words(Measure measure) {
  switch (measure) {
    case Measure::structures:
      return "structures";
    case Measure::parameters:
      return "decoder parameters";
    case Measure::total_parameters:
      return "parameters";
  }
  return "";
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
  rules.protected_layer.assign(static_cast<std::size_t>(config.layers), false);
  const std::int64_t first = protect.first_layers.value_or(config.layers / 10);  // int(0.1 L)
  for (std::int64_t layer = 0; layer < config.layers; ++layer)
    if (layer < first || layer >= config.layers - protect.last_layers)
      rules.protected_layer[static_cast<std::size_t>(layer)] = true;
  for (const std::int64_t layer : protect.layers)
    rules.protected_layer[static_cast<std::size_t>(layer)] = true;
  return rules;
}

double reachable_target(const ModelConfig& config, const PruneRules& rules, AttentionUnit unit) {
  const Reach reach = reach_of(config, rules, unit);
  return rules.measure == Measure::structures ? reachable_structures(reach)
                                              : reachable_parameters(reach);
}

// Decided on the units or parameters that the target asks for, not on the quotient: 3 of 4 heads
// are within reach of 0.8, which takes floor(3.2) of them.
void require_reachable(const ModelConfig& config, const PruneRules& rules, AttentionUnit unit,
                       double target) {
  require_ratio(target);
  const Reach reach = reach_of(config, rules, unit);
  const bool anything_open = reach.open_layers > 0 || target == 0;
  const bool suffices = rules.measure == Measure::structures ? structures_suffice(reach, target)
                                                             : parameters_suffice(reach, target);
  if (anything_open && suffices) return;
  const double most = std::floor(reachable_target(config, rules, unit) * 1e4) / 1e4;
  throw Error(ExitCode::config,
              fmt::format("prune.target {} cannot be reached: at most {:.4f} of the {} can go",
                          target, most, measure_in_words(rules.measure)),
              fmt::format("{} of {} layers are protected; min_heads is {}, min_channels is {}",
                          config.layers - reach.open_layers, config.layers, rules.min_heads,
                          rules.min_channels),
              fmt::format("lower prune.target to {:.4f} or protect less", most));
}

}  // namespace espalier
