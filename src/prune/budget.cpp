#include "budget.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/prune/unit_tensors.h"

namespace espalier {
namespace {

constexpr UnitKind kinds[] = {UnitKind::attention, UnitKind::mlp};

std::int64_t floor_of(double parameters) {
  const double rounding = 4 * std::numeric_limits<double>::epsilon() * parameters;
  return static_cast<std::int64_t>(std::floor(parameters + std::max(1e-9, rounding)));
}

double measured_parameters(const ModelConfig& config, Measure measure) {
  const ParameterCount dense = count_parameters(config, dense_widths(config));
  return static_cast<double>(measure == Measure::total_parameters ? dense.total : dense.decoder);
}

}  // namespace

std::int64_t floor_share(std::int64_t n, double ratio) {
  return static_cast<std::int64_t>(std::floor(static_cast<double>(n) * ratio + 1e-9));
}

std::int64_t units_per_layer(const ModelConfig& config, AttentionUnit unit, UnitKind kind) {
  if (kind == UnitKind::mlp) return config.channels;
  return unit == AttentionUnit::kv_group ? config.kv_heads : config.heads;
}

std::int64_t units_per_bundle(const ModelConfig& config, AttentionUnit unit) {
  return unit == AttentionUnit::equal_per_group ? config.kv_heads : 1;
}

std::int64_t units_per_entry(const ModelConfig& config, const PruneRules& rules, AttentionUnit unit,
                             UnitKind kind) {
  return kind == UnitKind::mlp ? rules.width_multiple : units_per_bundle(config, unit);
}

std::int64_t units_per_entry(const ModelConfig& config, const PruneRules& rules,
                             AttentionUnit unit) {
  std::int64_t divisor = 0;
  for (const UnitKind kind : kinds)
    if (is_listed(rules, kind))
      divisor = std::gcd(divisor, units_per_entry(config, rules, unit, kind));
  return std::max<std::int64_t>(divisor, 1);
}

std::int64_t largest_entry(const ModelConfig& config, const PruneRules& rules, AttentionUnit unit) {
  std::int64_t most = 1;
  for (const UnitKind kind : kinds)
    if (is_listed(rules, kind)) most = std::max(most, units_per_entry(config, rules, unit, kind));
  return most;
}

std::int64_t whole_entries(std::int64_t units, std::int64_t entry) { return units / entry * entry; }

bool is_listed(const PruneRules& rules, UnitKind kind) {
  return kind == UnitKind::attention ? rules.attention : rules.mlp;
}

std::int64_t rankable_units(const ModelConfig& config, const PruneRules& rules,
                            AttentionUnit unit) {
  std::int64_t per_layer = 0;
  for (const UnitKind kind : {UnitKind::attention, UnitKind::mlp})
    if (is_listed(rules, kind)) per_layer += units_per_layer(config, unit, kind);
  return per_layer * config.layers;
}

std::int64_t kind_parameters(const ModelConfig& config, UnitKind kind) {
  const UnitSizes sizes = unit_parameters(config);
  if (kind == UnitKind::mlp) return config.layers * config.channels * sizes.channel;
  return config.layers * config.kv_heads * sizes.group(config.group_size());
}

std::int64_t parameter_budget(const ModelConfig& config, Measure measure, double target) {
  return floor_of(measured_parameters(config, measure) * target);
}

std::int64_t kind_budget(const ModelConfig& config, const PruneRules& rules, UnitKind kind,
                         double target) {
  double listed = 0;
  for (const UnitKind each : {UnitKind::attention, UnitKind::mlp})
    if (is_listed(rules, each)) listed += static_cast<double>(kind_parameters(config, each));
  const double share = static_cast<double>(kind_parameters(config, kind)) / listed;
  return floor_of(measured_parameters(config, rules.measure) * target * share);
}

std::string multiple_in_words(const PruneRules& rules) {
  if (rules.width_multiple == 1) return {};
  return fmt::format(", width_multiple is {}", rules.width_multiple);
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

void require_ratio(double target) {
  if (target >= 0 && target <= 1) return;
  throw Error(ExitCode::config, fmt::format("the pruning target is {}", target),
              "a target is the share that is removed", "give a number from 0 to 1");
}

}  // namespace espalier
