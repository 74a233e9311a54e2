#include "espalier/model/vocabulary_loss.h"

#include <algorithm>
#include <limits>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include "espalier/model/tensor_ops.h"

namespace espalier {
namespace {

/// Logits and loss are never narrower than float32.
at::ScalarType loss_type(at::ScalarType model) {
  return model == at::kDouble ? at::kDouble : at::kFloat;
}

struct Chunk {
  at::Tensor nll_C;        // loss type
  at::Tensor gradient_CV;  // d(weights . nll) / d logits; undefined unless asked for
};

/// One chunk's loss from this rank's logits. Collective.
Chunk chunk_loss(const at::Tensor& logits_CV, const at::Tensor& targets_C,
                 const at::Tensor& weights_C, Range vocabulary, TensorReducer& tensor) {
  const std::int64_t chunk = logits_CV.size(0);
  at::Tensor max_C =
      vocabulary.size() > 0
          ? logits_CV.amax(-1)
          : at::full({chunk}, -std::numeric_limits<double>::infinity(), logits_CV.options());
  all_reduce_max(max_C, tensor);
  const at::Tensor shifted_CV = logits_CV - max_C.unsqueeze(-1);
  const at::Tensor elsewhere_C =
      at::logical_or(targets_C < vocabulary.begin, targets_C >= vocabulary.end);
  const at::Tensor local_C = (targets_C - vocabulary.begin).masked_fill(elsewhere_C, 0);
  at::Tensor exp_CV = shifted_CV.exp();
  at::Tensor sums_2C = at::zeros({2, chunk}, logits_CV.options());
  if (vocabulary.size() > 0) {
    sums_2C.select(0, 0).copy_(exp_CV.sum(-1));
    sums_2C.select(0, 1).copy_(
        shifted_CV.gather(-1, local_C.unsqueeze(-1)).squeeze(-1).masked_fill(elsewhere_C, 0));
  }
  all_reduce_sum(sums_2C, tensor);
  const at::Tensor sum_C = sums_2C.select(0, 0);
  Chunk result{sum_C.log() - sums_2C.select(0, 1), {}};
  if (weights_C.defined() && vocabulary.size() > 0) {
    const at::Tensor w_C = weights_C.to(logits_CV.scalar_type());
    exp_CV.mul_((w_C / sum_C).unsqueeze(-1));
    // One target a row: read and written, not added atomically.
    const at::Tensor local_C1 = local_C.unsqueeze(-1);
    const at::Tensor at_target_C1 =
        exp_CV.gather(-1, local_C1) - w_C.masked_fill(elsewhere_C, 0).unsqueeze(-1);
    result.gradient_CV = exp_CV.scatter_(-1, local_C1, at_target_C1);
  }
  return result;
}

}  // namespace

std::int64_t loss_chunk(std::int64_t local_vocabulary) {
  constexpr std::int64_t kLogits = std::int64_t{1} << 26;  // 256 MiB of float32
  return std::clamp<std::int64_t>(kLogits / std::max<std::int64_t>(local_vocabulary, 1), 16, 2048);
}

std::int64_t loss_bytes(const ModelConfig& config, int tensor_size, at::ScalarType dtype,
                        std::int64_t predictions, bool with_gradient) {
  const std::int64_t widest = even_cut(config.vocabulary, tensor_size, 0).size();
  const std::int64_t rows = std::min(predictions, loss_chunk(widest));
  const auto logit = static_cast<std::int64_t>(at::elementSize(loss_type(dtype)));
  const auto entry = static_cast<std::int64_t>(at::elementSize(dtype));
  return 3 * rows * widest * logit + (with_gradient ? 2 : 1) * predictions * config.hidden * entry;
}

VocabularyLoss vocabulary_loss(const CausalLM& model, const at::Tensor& x_BTD,
                               const at::Tensor& positions_N, const at::Tensor& targets_N,
                               const at::Tensor& weights_N, TensorReducer& tensor) {
  const bool with_gradient = weights_N.defined();
  const Range vocabulary = model.shard().vocabulary;
  const std::int64_t predictions = positions_N.numel(), D = model.config().hidden;
  // The widest rank sets the chunk, so that all ranks issue the same collectives.
  const std::int64_t chunk =
      loss_chunk(even_cut(model.config().vocabulary, tensor.size(), 0).size());

  const at::Tensor leaf_BTD = x_BTD.detach().requires_grad_(with_gradient);
  at::Tensor norm_BTD;
  {
    const c10::AutoGradMode mode(with_gradient);
    norm_BTD = model.final_norm(leaf_BTD);
  }
  const c10::NoGradGuard no_gradient;
  const at::Tensor rows_ND = norm_BTD.detach().reshape({-1, D}).index_select(0, positions_N);
  at::Tensor drows_ND = with_gradient ? at::zeros_like(rows_ND) : at::Tensor();
  std::vector<at::Tensor> losses;
  for (std::int64_t begin = 0; begin < predictions; begin += chunk) {
    const std::int64_t size = std::min(chunk, predictions - begin);
    const at::Tensor rows_CD = rows_ND.narrow(0, begin, size);
    const at::Tensor logits_CV =
        at::linear(rows_CD, model.head_VD()).to(loss_type(rows_CD.scalar_type()));
    const Chunk result = chunk_loss(logits_CV, targets_N.narrow(0, begin, size),
                                    with_gradient ? weights_N.narrow(0, begin, size) : at::Tensor(),
                                    vocabulary, tensor);
    losses.push_back(result.nll_C.to(at::kDouble));
    if (result.gradient_CV.defined())
      drows_ND.narrow(0, begin, size)
          .copy_(at::mm(result.gradient_CV.to(rows_CD.scalar_type()), model.head_VD()));
  }
  VocabularyLoss loss;
  loss.nll_N =
      losses.empty() ? at::zeros({0}, x_BTD.options().dtype(at::kDouble)) : at::cat(losses);
  if (!with_gradient) return loss;
  // A position predicts once, so rows are copied back, not added, and in no order that matters.
  at::Tensor dnorm_BTD = at::zeros_like(norm_BTD);
  dnorm_BTD.view({-1, D}).index_copy_(0, positions_N, drows_ND);
  loss.dx_BTD = torch::autograd::grad({norm_BTD}, {leaf_BTD}, {dnorm_BTD})[0];
  all_reduce_sum(loss.dx_BTD, tensor);
  return loss;
}

}  // namespace espalier
