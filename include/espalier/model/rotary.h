#pragma once

#include <ATen/core/Tensor.h>

#include "espalier/config/model_config.h"

namespace espalier {

/// cos and sin of the rotary angles, [T, E], for positions 0 .. T-1.
struct RotaryTable {
  at::Tensor cos_TE;
  at::Tensor sin_TE;
};

/// Builds the table with float32 operators in the order transformers uses (inverse frequencies,
/// `llama3` rescaling, times position, cos, sin) and casts at the end, also for float64: a table
/// computed in float64 would already move scores by 1e-8 against the reference.
RotaryTable rotary_table(const ModelConfig& config, std::int64_t tokens, at::ScalarType dtype,
                         at::Device device);

/// x * cos + rotate_half(x) * sin for x of [B, H, T, E].
at::Tensor apply_rotary(const at::Tensor& x_BHTE, const RotaryTable& table);

}  // namespace espalier
