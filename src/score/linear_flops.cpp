#include "espalier/score/linear_flops.h"

#include <algorithm>
#include <array>
#include <vector>

#include "espalier/prune/unit_tensors.h"
#include "espalier/score/unit_sums.h"

namespace espalier {
namespace {

/// The half layer that a matrix is in.
UnitKind half_of(TensorRole role) {
  const bool mlp = role == TensorRole::gate || role == TensorRole::up || role == TensorRole::down;
  return mlp ? UnitKind::mlp : UnitKind::attention;
}

}  // namespace

Needs needs_of(Criterion criterion) {
  switch (criterion) {
    case Criterion::taylor:
    case Criterion::taylor_gate:
    case Criterion::taylor_gate_sample:
    case Criterion::obs:
      return Needs::gradients;
    case Criterion::wanda_sp:
    case Criterion::flap:
      return Needs::inputs;
    case Criterion::magnitude:
    case Criterion::random:
      break;
  }
  return Needs::weights;
}

LinearFlops linear_flops(const ModelConfig& config, const PassShape& shape,
                         std::int64_t predictions) {
  LinearFlops flops;
  const bool differentiates = needs_of(shape.criterion) == Needs::gradients;
  const std::int64_t lowest = differentiates ? lowest_half(shape.scored) : 2 * config.layers;
  const std::int64_t lowest_again = shape.layer_by_layer ? lowest / 2 * 2 : lowest;
  const double per_weight = 2.0 * static_cast<double>(shape.tokens);
  std::array<TensorRole, 2> reader{};
  std::array<std::vector<TensorRole>, 2> with_gradient;
  for (const UnitKind kind : {UnitKind::attention, UnitKind::mlp}) {
    const auto k = static_cast<std::size_t>(kind);
    reader[k] = unit_reader(config, kind, 0).role;
    if (shape.criterion == Criterion::taylor)
      with_gradient[k] = unit_roles(config, shape.unit, kind);
  }
  for (int l = 0; l < config.layers; ++l)
    for (const TensorSpec& spec : layer_tensors(config, l)) {
      if (spec.shape.size() != 2) continue;
      const UnitKind kind = half_of(spec.role);
      const std::int64_t half = 2 * l + (kind == UnitKind::mlp ? 1 : 0);
      const std::vector<std::int64_t> sizes = shape_with(spec, config, shape.widths);
      const double once =
          per_weight * static_cast<double>(sizes[0]) * static_cast<double>(sizes[1]);
      flops.forward += once;
      if (half >= lowest_again) flops.recompute += once;
      if (half < lowest) continue;
      // Below the lowest gate nothing asks for a gradient of an input; obs wants none at the gate.
      const auto k = static_cast<std::size_t>(kind);
      const bool reads_lowest_gate = spec.role == reader[k] && shape.criterion != Criterion::obs;
      if (half > lowest || reads_lowest_gate) flops.input_gradients += once;
      if (shape.criterion == Criterion::obs && spec.role == reader[k] &&
          is_scored(shape.scored, l, kind)) {
        flops.statistics +=
            per_weight * static_cast<double>(sizes[1]) * static_cast<double>(sizes[1]);
        if (shape.curvature == Curvature::full)
          flops.statistics +=
              per_weight * static_cast<double>(sizes[0]) * static_cast<double>(sizes[0]);
      }
      const std::vector<TensorRole>& scored = with_gradient[k];
      if (is_scored(shape.scored, l, kind) &&
          std::find(scored.begin(), scored.end(), spec.role) != scored.end())
        flops.weight_gradients += once;
    }
  const double head = 2.0 * static_cast<double>(predictions) *
                      static_cast<double>(config.vocabulary) * static_cast<double>(config.hidden);
  flops.forward += head;
  if (lowest < 2 * config.layers) flops.input_gradients += head;
  return flops;
}

}  // namespace espalier
