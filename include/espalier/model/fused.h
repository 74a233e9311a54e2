#pragma once

#include <ATen/core/Tensor.h>

#include "espalier/model/rotary.h"

namespace espalier {

/// What lies between the products of a half layer, each as one operation that reads its inputs and
/// writes its output once, in both directions. On the CPU in float32, float64 and bfloat16 they are
/// our own loops (src/model/fused_loops.h); elsewhere, and for inputs that a loop does not take,
/// the operations of `composed` below. Both round where transformers rounds. Differentiable, but
/// not by weights of norms and by angles; not collective.

/// weight * x / sqrt(mean(x^2) + eps), the mean over the last dimension, which is that of
/// `weight_D`. In float32 for narrower types, rounded to x's type before `weight_D` is applied.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight_D, double eps);

/// x * cos + rotate_half(x) * sin for x of [B, T, H, E]; as [B, H, T, E], which attention reads.
/// The angles are [T, E], or any shape that goes with [B, H, T, E].
at::Tensor rotated_heads(const at::Tensor& x_BTHE, const RotaryTable& table);

/// Sums over tokens of a * b for two of [B, T, U]: [B, U] in float64. Products, and sums of a few
/// of them, in float32 for types that are not wider. Not differentiable.
at::Tensor token_dots(const at::Tensor& a_BTU, const at::Tensor& b_BTU);

/// The same of LibTorch's own operations: the oracle of the loops.
namespace composed {
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight_D, double eps);
at::Tensor rotated_heads(const at::Tensor& x_BTHE, const RotaryTable& table);
at::Tensor token_dots(const at::Tensor& a_BTU, const at::Tensor& b_BTU);
}  // namespace composed

}  // namespace espalier
