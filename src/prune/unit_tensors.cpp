#include "espalier/prune/unit_tensors.h"

#include <algorithm>
#include <utility>

#include "espalier/core/error.h"

namespace espalier {
namespace {

bool is_matrix(const TensorSpec& spec) { return spec.shape.size() == 2; }

bool is_of_units(const TensorSpec& spec) {
  return std::any_of(spec.axes.begin(), spec.axes.end(), is_pruned);
}

AxisKind counted_in(const TensorSpec& spec) { return spec.axes[unit_axis(spec)]; }

/// Every entry of such a tensor belongs to exactly one unit, and each unit has as many.
template <class Predicate>
UnitSizes sizes_of(const ModelConfig& config, Predicate counts) {
  UnitSizes sizes;
  for (const TensorSpec& spec : layer_tensors(config, 0)) {
    if (!is_of_units(spec) || !counts(spec)) continue;
    const AxisKind kind = counted_in(spec);
    const std::int64_t across = is_matrix(spec) ? spec.shape[1 - unit_axis(spec)] : 1;
    std::int64_t& size = kind == AxisKind::query ? sizes.query_head
                         : kind == AxisKind::kv  ? sizes.kv_head
                                                 : sizes.channel;
    size += unit_width(kind, config) * across;
  }
  return sizes;
}

}  // namespace

std::size_t unit_axis(const TensorSpec& spec) {
  ESPALIER_CHECK(is_of_units(spec), spec.name + " belongs to no unit");
  return is_pruned(spec.axes[0]) ? 0 : 1;
}

bool carries_kv(const ModelConfig& config, AttentionUnit unit) {
  return unit == AttentionUnit::kv_group || !config.is_gqa();
}

std::vector<TensorSpec> unit_matrices(const ModelConfig& config, AttentionUnit unit, UnitKind kind,
                                      int layer) {
  std::vector<TensorSpec> specs = layer_tensors(config, layer);
  std::erase_if(specs, [&](const TensorSpec& spec) {
    if (!is_matrix(spec) || !is_of_units(spec)) return true;
    const AxisKind axis = counted_in(spec);
    if ((axis == AxisKind::channel) != (kind == UnitKind::mlp)) return true;
    return axis == AxisKind::kv && !carries_kv(config, unit);
  });
  return specs;
}

std::vector<TensorRole> unit_roles(const ModelConfig& config, AttentionUnit unit, UnitKind kind) {
  std::vector<TensorRole> roles;
  for (const TensorSpec& spec : unit_matrices(config, unit, kind, 0)) roles.push_back(spec.role);
  return roles;
}

TensorSpec unit_reader(const ModelConfig& config, UnitKind kind, int layer) {
  for (TensorSpec& spec : unit_matrices(config, AttentionUnit::query_head, kind, layer))
    if (unit_axis(spec) == 1) return std::move(spec);
  throw Error(ExitCode::internal, "no matrix reads the units of a half layer");
}

std::int64_t UnitSizes::of(const LayerWidths& layer) const {
  const auto count = [](const std::vector<std::int32_t>& units) {
    return static_cast<std::int64_t>(units.size());
  };
  return count(layer.query_heads) * query_head + count(layer.kv_heads) * kv_head +
         count(layer.channels) * channel;
}

UnitSizes unit_weights(const ModelConfig& config) { return sizes_of(config, is_matrix); }

UnitSizes unit_parameters(const ModelConfig& config) {
  return sizes_of(config, [](const TensorSpec&) { return true; });
}

}  // namespace espalier
