#include "espalier/refit/flops.h"

#include "espalier/model/gate.h"
#include "espalier/prune/tensor_catalog.h"
#include "projections.h"

namespace espalier {
namespace {

constexpr UnitKind kHalves[] = {UnitKind::attention, UnitKind::mlp};

/// Elements of a layer's matrices.
double matrix_elements(const ModelConfig& config, const ModelWidths& widths, int layer) {
  double elements = 0;
  for (const TensorSpec& spec : layer_tensors(config, layer)) {
    if (spec.shape.size() != 2) continue;
    const std::vector<std::int64_t> sizes = shape_with(spec, config, widths);
    elements += static_cast<double>(sizes[0]) * static_cast<double>(sizes[1]);
  }
  return elements;
}

constexpr double kFolds = 2;

/// A factor of k x k numbers, and its solution for D columns.
double solution_flops(double k, double D) { return k * k * k / 3 + 2 * k * k * D; }

/// What is done with the sums of a matrix of k inputs and D outputs.
void add_solving(RefitFlops& flops, double k, double D) {
  const double product = 2 * k * k * D;
  flops.ridge.solutions += kFolds * solution_flops(k, D);
  flops.ridge.products += kFolds * product;
  flops.residuals += 2 * kFolds * product;
  flops.solution.solutions += solution_flops(k, D);
}

void add_half(RefitFlops& flops, const ModelConfig& config, const RefitWork& work,
              std::size_t layer, UnitKind half) {
  const auto k = static_cast<double>(gate_entries(work.kept.layers[layer], half, config));
  const auto A = static_cast<double>(gate_entries(work.source.layers[layer], half, config));
  const auto D = static_cast<double>(config.hidden), N = static_cast<double>(work.tokens);
  flops.sums += 2 * N * k * (k + D);
  add_solving(flops, k, D);
  if (work.matrices == RefitMatrices::all) {
    const auto projections = refitted_projections(config, work.kept, layer, half);
    if (!projections.empty()) flops.sums += 3 * 2 * N * D * D;
    for (const TensorSpec& spec : projections)
      add_solving(flops, D, static_cast<double>(shape_with(spec, config, work.kept)[0]));
  }
  if (!work.moments) return;
  flops.sums += 2 * N * k * A;
  flops.solution.solutions += solution_flops(k, D);
  flops.solution.products += 2 * k * A * D;
}

}  // namespace

RefitFlops refit_flops(const ModelConfig& config, const RefitWork& work) {
  RefitFlops flops;
  const double per_weight = 2.0 * static_cast<double>(work.computed_tokens);
  for (std::size_t l = 0; l < work.kept.layers.size(); ++l) {
    const int layer = static_cast<int>(l);
    flops.streams += per_weight * (matrix_elements(config, work.source, layer) +
                                   2 * matrix_elements(config, work.kept, layer));
    for (const UnitKind half : kHalves) add_half(flops, config, work, l, half);
  }
  return flops;
}

std::int64_t refitted_elements(const ModelConfig& config, const ModelWidths& kept,
                               RefitMatrices matrices) {
  std::int64_t elements = 0;
  for (std::size_t l = 0; l < kept.layers.size(); ++l)
    for (const UnitKind half : kHalves) {
      elements += gate_entries(kept.layers[l], half, config) * config.hidden;
      if (matrices == RefitMatrices::outputs) continue;
      for (const TensorSpec& spec : refitted_projections(config, kept, l, half))
        elements += shape_with(spec, config, kept)[0] * config.hidden;
    }
  return elements;
}

}  // namespace espalier
