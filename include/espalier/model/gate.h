#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

#include "espalier/comm/tensor_reducer.h"
#include "espalier/config/model_config.h"
#include "espalier/model/causal_lm.h"
#include "espalier/prune/score_table.h"
#include "espalier/prune/widths.h"
#include "espalier/store/tensor_layout.h"

namespace espalier {

/// Entries at the gate of a half: columns of o_proj or down_proj.
std::int64_t gate_entries(const LayerWidths& widths, UnitKind half, const ModelConfig& config);

/// The entries of a half at its gate over all tensor ranks, in dense order, and which of them are
/// this rank's.
struct GatePlace {
  std::int64_t all = 0;
  Range mine;
};
GatePlace gate_place(const CausalLM& model, std::int64_t layer, UnitKind half);

/// The gate of a half over all tensor ranks, [B, T, all], from this rank's entries of it. On one
/// rank the gate itself. Collective over `tensor`, the model's.
at::Tensor gathered_gate(const CausalLM& model, std::int64_t layer, UnitKind half,
                         const at::Tensor& gate_BTU, TensorReducer& tensor);

}  // namespace espalier
