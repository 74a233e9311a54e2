#include "projections.h"

#include "espalier/model/gate.h"

namespace espalier {
namespace {

UnitKind half_of(TensorRole projection) {
  const bool mlp = projection == TensorRole::gate || projection == TensorRole::up;
  return mlp ? UnitKind::mlp : UnitKind::attention;
}

}  // namespace

std::vector<TensorSpec> refitted_projections(const ModelConfig& config, const ModelWidths& kept,
                                             std::size_t layer, UnitKind half) {
  const bool first = layer == 0 && half == UnitKind::attention;
  if (first || gate_entries(kept.layers[layer], half, config) == 0) return {};
  std::vector<TensorSpec> found = layer_tensors(config, static_cast<int>(layer));
  std::erase_if(found, [&](const TensorSpec& spec) {
    return !is_input_projection(spec.role) || half_of(spec.role) != half;
  });
  return found;
}

}  // namespace espalier
