#pragma once

#include <vector>

#include <ATen/core/Tensor.h>

#include "espalier/prune/tensor_catalog.h"

namespace espalier {

/// One linear map of a half layer as it ran with gradients on: y = x W^T + b.
struct LinearMap {
  TensorRole weight;
  at::Tensor input;   // x [B, T, I]
  at::Tensor output;  // y [B, T, O], of the graph
};

/// The gradient of a weight [O, I], dW = sum over tokens of dy x^T, or of a bias [O], db = sum of
/// dy: as its factors, so that a sum over micro-batches is one product that is added where it
/// belongs, and no gradient of a weight's size is made for each of them.
struct WeightGradient {
  TensorRole role;
  at::Tensor output_gradient;  // dy [B, T, O]
  at::Tensor input{};          // x [B, T, I]; undefined for a bias
  /// dW itself where it was made already; the factors may then be undefined.
  at::Tensor value{};

  /// dW or db, in the weights' dtype.
  at::Tensor product() const;
  /// sum += factor dW, in the wider of both types.
  void add_to(at::Tensor& sum, double factor) const;
};

/// The weight whose linear map has this weight or bias.
TensorRole weight_of(TensorRole role);

}  // namespace espalier
