#include "espalier/score/normalize.h"

#include <cmath>
#include <numeric>
#include <utility>

#include "espalier/prune/unit_tensors.h"

namespace espalier {
namespace {

double gisp_divisor(const ModelConfig& config, UnitKind kind) {
  if (kind == UnitKind::mlp) return 3.0 * static_cast<double>(config.channels);
  return 4.0 * static_cast<double>(config.head_dim) * static_cast<double>(config.hidden);
}

/// Each value divided by the number of weights that were summed for it.
std::vector<double> parameter_means(const ModelConfig& config, AttentionUnit unit, UnitKind kind,
                                    std::vector<double> values,
                                    const std::vector<std::int64_t>& heads) {
  const UnitSizes sizes = unit_weights(config);
  const bool with_kv = carries_kv(config, unit);
  const auto summed = [&](std::size_t u) {
    if (kind == UnitKind::mlp) return sizes.channel;
    return with_kv ? sizes.group(heads[u]) : heads[u] * sizes.query_head;
  };
  for (std::size_t u = 0; u < values.size(); ++u) values[u] /= static_cast<double>(summed(u));
  return values;
}

/// Each value divided by the number of parameters that fall with the unit.
std::vector<double> per_cost(const ModelConfig& config, AttentionUnit unit, UnitKind kind,
                             std::vector<double> values, const std::vector<std::int64_t>& heads) {
  const UnitSizes sizes = unit_parameters(config);
  const double part_of_kv =
      static_cast<double>(config.kv_heads) / static_cast<double>(config.heads);
  const auto cost = [&](std::size_t u) {
    if (kind == UnitKind::mlp) return static_cast<double>(sizes.channel);
    if (unit == AttentionUnit::kv_group) return static_cast<double>(sizes.group(heads[u]));
    return static_cast<double>(heads[u]) * (static_cast<double>(sizes.query_head) +
                                            static_cast<double>(sizes.kv_head) * part_of_kv);
  };
  for (std::size_t u = 0; u < values.size(); ++u) values[u] /= cost(u);
  return values;
}

std::vector<double> scaled(std::vector<double> values, double divisor) {
  for (double& value : values) value = divisor == 0 ? 0.0 : value / divisor;
  return values;
}

double mean_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double l2_of(const std::vector<double>& values) {
  return std::sqrt(std::inner_product(values.begin(), values.end(), values.begin(), 0.0));
}

std::vector<double> standardized(std::vector<double> values) {
  if (values.size() < 2) return std::vector<double>(values.size(), 0.0);
  const double mean = mean_of(values);
  for (double& value : values) value -= mean;
  const double deviation = l2_of(values) / std::sqrt(static_cast<double>(values.size() - 1));
  return scaled(std::move(values), deviation);
}

}  // namespace

std::vector<double> normalized(const ModelConfig& config, Normalization normalization,
                               AttentionUnit unit, UnitKind kind, const std::vector<double>& values,
                               const std::vector<std::int64_t>& heads) {
  if (values.empty()) return values;
  switch (normalization) {
    case Normalization::none:
      return values;
    case Normalization::gisp:
      return scaled(values, gisp_divisor(config, kind));
    case Normalization::param_mean:
      return parameter_means(config, unit, kind, values, heads);
    case Normalization::cost:
      return per_cost(config, unit, kind, values, heads);
    case Normalization::block_mean:
      return scaled(values, mean_of(values));
    case Normalization::block_l2:
      return scaled(values, l2_of(values));
    case Normalization::block_standardize:
      return standardized(values);
  }
  return values;
}

}  // namespace espalier
