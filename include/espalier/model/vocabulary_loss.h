#pragma once

#include <ATen/core/Tensor.h>

#include "espalier/comm/tensor_reducer.h"
#include "espalier/model/causal_lm.h"

namespace espalier {

struct VocabularyLoss {
  /// float64, on the device.
  at::Tensor nll_N;
  /// Gradient for the hidden states before the final norm; undefined unless asked for.
  at::Tensor dx_BTD;
};

/// Cross-entropy over a vocabulary that is split over tensor ranks (Megatron-LM's scheme, arXiv
/// 1909.08053): -log softmax(W norm(x))[target] at `positions_N`. Works through chunks of
/// predictions, so that logits of (chunk x local vocabulary) are all that ever exists. With
/// weights_N, also d sum_n weights_n nll_n / dx. Collective over `tensor`: per chunk a maximum over
/// [chunk] and a sum over [2, chunk]; then one sum over [B, T, D] for the gradient.
VocabularyLoss vocabulary_loss(const CausalLM& model, const at::Tensor& x_BTD,
                               const at::Tensor& positions_N, const at::Tensor& targets_N,
                               const at::Tensor& weights_N, TensorReducer& tensor);

/// Predictions per chunk for a local vocabulary of this size.
std::int64_t loss_chunk(std::int64_t local_vocabulary);

/// Bytes that vocabulary_loss takes on the rank with the most vocabulary while it runs: logits,
/// their shifted and their exponential copy of one chunk, and the normalised rows of all
/// predictions, with their gradients where these are asked for.
std::int64_t loss_bytes(const ModelConfig& config, int tensor_size, at::ScalarType dtype,
                        std::int64_t predictions, bool with_gradient);

}  // namespace espalier
