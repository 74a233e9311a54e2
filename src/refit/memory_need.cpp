#include "espalier/refit/memory_need.h"

#include <algorithm>

#include "espalier/prune/tensor_catalog.h"
#include "projections.h"

namespace espalier {
namespace {

std::int64_t elements(const ModelConfig& config, const ModelWidths& widths,
                      const std::vector<TensorSpec>& specs) {
  std::int64_t all = 0;
  for (const TensorSpec& spec : specs) {
    std::int64_t n = 1;
    for (const std::int64_t extent : shape_with(spec, config, widths)) n *= extent;
    all += n;
  }
  return all;
}

/// What is not let go between two layers.
std::int64_t held_elements(const ModelConfig& config, const RefitShape& shape) {
  std::vector<TensorSpec> held = tensor_catalog(config);
  if (shape.layer_by_layer)
    std::erase_if(held, [](const TensorSpec& spec) { return spec.layer >= 0; });
  return elements(config, shape.kept, held);
}

/// Of a matrix with `kept` of `all` inputs.
std::int64_t matrix_sums(const ModelConfig& config, const RefitShape& shape, std::size_t kept,
                         std::size_t all) {
  const auto k = static_cast<std::int64_t>(kept);
  const std::int64_t rows = shape.tensor > 1 ? 2 * k * k / shape.tensor : 0;
  const std::int64_t h = 2 * k * k + rows + 3 * k * k;
  const std::int64_t c = 8 * k * config.hidden;
  const std::int64_t moments = shape.moments ? 3 * k * static_cast<std::int64_t>(all) : 0;
  return static_cast<std::int64_t>(sizeof(double)) * (h + c + moments);
}

/// Of the projections of a half's input, which are solved one after the other.
std::int64_t projection_sums(const ModelConfig& config, const RefitShape& shape, std::size_t layer,
                             UnitKind half) {
  if (shape.matrices == RefitMatrices::outputs) return 0;
  std::int64_t outputs = 0;
  for (const TensorSpec& spec : refitted_projections(config, shape.kept, layer, half))
    outputs = std::max(outputs, shape_with(spec, config, shape.kept)[0]);
  if (outputs == 0) return 0;
  const std::int64_t square = config.hidden * config.hidden;
  const std::int64_t rows = shape.tensor > 1 ? 5 * square / shape.tensor : 0;
  return static_cast<std::int64_t>(sizeof(double)) *
         (8 * square + rows + 8 * config.hidden * outputs);
}

}  // namespace

RefitNeed refit_need(const ModelConfig& config, const RefitShape& shape) {
  const auto entry = static_cast<std::int64_t>(c10::elementSize(shape.dtype));
  const auto head = static_cast<std::size_t>(config.head_dim);
  RefitNeed need;
  need.held = held_elements(config, shape) / shape.tensor * entry;
  need.streams = 2 * shape.stream_tokens * config.hidden * entry;
  for (std::size_t l = 0; l < shape.kept.layers.size(); ++l) {
    const LayerWidths &kept = shape.kept.layers[l], &all = shape.source.layers[l];
    need.sums = std::max(
        {need.sums,
         matrix_sums(config, shape, kept.query_heads.size() * head, all.query_heads.size() * head),
         matrix_sums(config, shape, kept.channels.size(), all.channels.size()),
         projection_sums(config, shape, l, UnitKind::attention),
         projection_sums(config, shape, l, UnitKind::mlp)});
    const std::vector<TensorSpec> layer = layer_tensors(config, static_cast<int>(l));
    need.dense_layer =
        std::max(need.dense_layer, elements(config, shape.source, layer) / shape.tensor * entry);
    if (shape.layer_by_layer)
      need.pruned_layer =
          std::max(need.pruned_layer, elements(config, shape.kept, layer) / shape.tensor * entry);
  }
  return need;
}

}  // namespace espalier
