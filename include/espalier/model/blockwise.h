#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include <ATen/core/Tensor.h>

#include "espalier/comm/communicator.h"
#include "espalier/core/error.h"
#include "espalier/model/causal_lm.h"
#include "espalier/prune/score_table.h"

namespace espalier {

/// One micro-batch on the model's device. N counts predictions: logits at flat position b*T + t are
/// compared with the token at t + 1.
struct TokenBatch {
  at::Tensor tokens_BT;    ///< int64
  at::Tensor positions_N;  ///< int64, b * T + t of the predicting position
  at::Tensor targets_N;    ///< int64, the token predicted there
  at::Tensor weights_N;  ///< float64, coefficient of -log p in the objective that is differentiated
};

/// What the backward pass hands over for one half of a layer.
struct HalfGradients {
  at::Tensor gate;           ///< [B, T, units]: input of o_proj or down_proj
  at::Tensor gate_gradient;  ///< same shape; undefined unless asked for
  std::vector<std::pair<TensorRole, at::Tensor>>
      weight_gradients;  ///< of this micro-batch, in the weights' dtype
};

/// Receives gradients as the backward pass meets them; knows what they are for, which the pass does
/// not.
class BackwardObserver {
 public:
  virtual ~BackwardObserver() = default;
  virtual bool wants_gate(std::int64_t layer, UnitKind half) const = 0;
  virtual std::vector<TensorRole> wants_weights(std::int64_t layer, UnitKind half) const = 0;
  virtual void observe(std::int64_t layer, UnitKind half, const HalfGradients& gradients) = 0;
};

/// What a backward pass covers, and what it may keep. Halves of layers are numbered along the
/// data's path: 2l is layer l's attention, 2l + 1 its MLP.
struct BackwardScope {
  std::int64_t lowest_half = 0;  ///< nothing below is differentiated; 2 * layers = nothing at all
  std::int64_t graph_bytes = 0;  ///< this rank may take as much to keep graphs; 0 = keep none
};

struct BackwardPass {
  at::Tensor nll_N;  ///< negative log likelihoods, float64 on the host, same on every tensor rank
  std::int64_t repeated_halves = 0;  ///< halves that ran forward twice on this rank
  /// What this rank found wrong (bad_content): a loss that is not finite, on every tensor rank,
  /// naming the first layer whose output was not; a gradient that is not finite, on the ranks where
  /// it arose. For the caller's next agreement.
  Problems problems;
};
struct TokenLosses {
  at::Tensor nll_N;
  Problems problems;  ///< as BackwardPass::problems
};

/// Runs forward through all layers, then asks every half from the last down to the lowest for the
/// gradients of its input, its gate and its weights. No autograd graph spans two halves: the input
/// of each is kept, and its graph where memory allows, else the half runs again in the backward
/// pass. Both give the same bits; kept graphs save one forward in four for criteria with weight
/// gradients. Collective over `tensor`; collectives run on the calling thread only, in the same
/// order on every rank.
///
/// Collectives per call (T ranks > 1): 1 + 2L all-reduces of [B, T, D] forward, two per chunk of
/// the loss ([chunk] and [2, chunk]), 1 + (2L - 1 - lowest_half) of [B, T, D] backward.
/// Values that are not finite end the pass early, on all tensor ranks alike, or are reported at its
/// end.
BackwardPass blockwise_backward(const CausalLM& model, const TokenBatch& batch,
                                const BackwardScope& scope, BackwardObserver& observer,
                                Communicator& tensor);

/// Forward only: the [N] negative log likelihoods. Collective over `tensor`.
TokenLosses token_losses(const CausalLM& model, const TokenBatch& batch, Communicator& tensor);

/// Hidden states after the last layer, before the final norm. Collective over `tensor`.
at::Tensor forward_hidden(const CausalLM& model, const at::Tensor& tokens_BT, Communicator& tensor);

/// Logits [n, vocabulary] at the given flat positions, gathered over tensor ranks; for checks on
/// small models.
at::Tensor logits_at(const CausalLM& model, const at::Tensor& hidden_BTD,
                     const at::Tensor& positions_N, Communicator& tensor);

}  // namespace espalier
