#include "espalier/model/gate.h"

#include "espalier/model/tensor_ops.h"

namespace espalier {

std::int64_t gate_entries(const LayerWidths& widths, UnitKind half, const ModelConfig& config) {
  if (half == UnitKind::mlp) return static_cast<std::int64_t>(widths.channels.size());
  return static_cast<std::int64_t>(widths.query_heads.size()) * config.head_dim;
}

GatePlace gate_place(const CausalLM& model, std::int64_t layer, UnitKind half) {
  GatePlace place;
  for (std::size_t rank = 0; rank < model.shards().size(); ++rank) {
    const LayerWidths& widths = model.shards()[rank].widths.layers[static_cast<std::size_t>(layer)];
    const std::int64_t entries = gate_entries(widths, half, model.config());
    if (static_cast<int>(rank) == model.tensor_index())
      place.mine = {place.all, place.all + entries};
    place.all += entries;
  }
  return place;
}

at::Tensor gathered_gate(const CausalLM& model, std::int64_t layer, UnitKind half,
                         const at::Tensor& gate_BTU, TensorReducer& tensor) {
  const GatePlace place = gate_place(model, layer, half);
  return gathered(gate_BTU, 2, place.mine, place.all, tensor);
}

}  // namespace espalier
