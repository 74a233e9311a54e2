#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "espalier/comm/rank_group.h"
#include "espalier/core/error.h"
#include "espalier/model/causal_lm.h"
#include "espalier/prune/score_table.h"

namespace espalier {

/// One micro-batch on the model's device. N counts predictions: logits at flat position b*T + t are
/// compared with the next token of the sequence.
struct TokenBatch {
  /// int64.
  at::Tensor tokens_BT;
  /// int64, b * T + t of the predicting position.
  at::Tensor positions_N;
  /// int64, the token predicted there.
  at::Tensor targets_N;
  /// float64, coefficient of -log p in the objective that is differentiated.
  at::Tensor weights_N;
  /// bool, false where a token is padding; undefined where none is.
  at::Tensor real_BT{};
  /// Where tokens stand, when rows are not plain sequences.
  std::shared_ptr<const PackedRows> packed{};
  /// float64, 1 where row b belongs to sample s of the data, where a sample has several rows (the
  /// options of an item); undefined where each row is one.
  at::Tensor samples_SB{};
  /// For messages: "micro-batch 3 of 12, domain 'a', data rank 0".
  std::string origin{};
};

/// What the backward pass hands over for one half of a layer. Gradients are those of `scale` times
/// the objective, a power of two that is not 1 under float16 only: an observer divides by it what
/// it has summed in a wider type.
struct HalfGradients {
  /// [B, T, units]: input of o_proj or down_proj.
  at::Tensor gate;
  /// Same shape; undefined unless asked for.
  at::Tensor gate_gradient;
  /// Of this micro-batch.
  std::vector<WeightGradient> weight_gradients;
  double scale = 1.0;
  /// TokenBatch::samples_SB.
  at::Tensor samples_SB{};
  /// [B, T, all units]: the gate over all tensor ranks in dense order; undefined unless asked for.
  at::Tensor whole_gate{};
  /// [B, T, D]: gradient of the half's output, the same on every tensor rank; undefined unless
  /// asked for.
  at::Tensor output_gradient{};
  /// With output_gradient: TokenBatch::real_BT, and float64, the size of the coefficients of row
  /// b's predictions in the objective, so that output_gradient / (scale * row_weights) is the
  /// gradient of the sum of the row's losses. 0 for a row that does not count.
  at::Tensor real_BT{};
  at::Tensor row_weights_B{};
};

/// Receives gradients as the backward pass meets them; knows what they are for, which the pass does
/// not.
class BackwardObserver {
 public:
  virtual ~BackwardObserver() = default;
  virtual bool wants_gate(std::int64_t, UnitKind) const { return false; }
  virtual std::vector<TensorRole> wants_weights(std::int64_t, UnitKind) const { return {}; }
  /// Whether it wants the whole gate and the gradient of the output: the same answer on every
  /// tensor rank, since the gate is gathered.
  virtual bool wants_output(std::int64_t, UnitKind) const { return false; }
  virtual void observe(std::int64_t, UnitKind, const HalfGradients&) {}
};

/// Receives, on the way forward, what enters o_proj and down_proj.
class InputObserver {
 public:
  virtual ~InputObserver() = default;
  virtual bool wants_input(std::int64_t, UnitKind) const { return false; }
  /// [B, T, columns of o_proj or down_proj on this rank], with TokenBatch::real_BT.
  virtual void observe_input(std::int64_t, UnitKind, const at::Tensor&, const at::Tensor&) {}
};

/// What a backward pass covers, and what it may keep. Halves of layers are numbered along the
/// data's path: 2l is layer l's attention, 2l + 1 its MLP.
struct BackwardScope {
  /// Nothing below is differentiated; 2 * layers = nothing at all.
  std::int64_t lowest_half = 0;
  /// This rank may take as much to keep graphs; 0 = keep none.
  std::int64_t graph_bytes = 0;
};

struct BackwardPass {
  /// Negative log likelihoods, float64 on the host, same on every tensor rank.
  at::Tensor nll_N;
  /// Halves that ran forward twice on this rank.
  std::int64_t repeated_halves = 0;
  /// A loss or a gradient that is not finite (bad_content), the same on every tensor rank: the
  /// layer and half or the tensor where the first such value arose, on which tensor ranks, and the
  /// batch's origin. For the caller's next agreement.
  Problems problems;
};
struct TokenLosses {
  at::Tensor nll_N;
  /// As BackwardPass::problems.
  Problems problems;
};

/// Runs forward through all layers, then asks every half from the last down to the lowest for the
/// gradients of its input, its gate and its weights. No autograd graph spans two halves: the input
/// of each is kept, and its graph where memory allows, else the half runs again in the backward
/// pass. Both give the same bits; kept graphs save one forward in four for criteria with weight
/// gradients. Collective over `tensor`; collectives run on the calling thread only, in the same
/// order on every rank.
///
/// Under float16 the objective is multiplied by a power of two, chosen from the batch, that makes
/// its largest coefficient 1 to 2: coefficients are 1 / (sequences x tokens), which float16 cannot
/// hold. If a gradient overflows on any tensor rank, the whole pass runs again at 1/256 of the
/// scale, down to the objective itself. Each half is observed once all the same: at the first scale
/// at which it and all above it were finite on the rank.
///
/// Collectives per call and pass (T ranks > 1): 1 + 2L all-reduces of [B, T, D] forward, two per
/// chunk of the loss ([chunk] and [2, chunk]), 1 + (2L - 1 - lowest_half) of [B, T, D] backward,
/// one of the whole gate for each half whose output is observed, and one of a number: whether all
/// gradients are finite. A loss that is not finite ends the pass early, on all tensor ranks alike.
/// Where something is not, two more say where it arose.
BackwardPass blockwise_backward(const CausalLM& model, const TokenBatch& batch,
                                const BackwardScope& scope, BackwardObserver& observer,
                                const RankGroup& tensor);

/// Forward only: the [N] negative log likelihoods. Collective over `tensor`.
TokenLosses token_losses(const CausalLM& model, const TokenBatch& batch, const RankGroup& tensor);
/// The same for whoever looks at it. Of a batch with a loss that is not finite the observer has
/// seen what it asked for all the same.
TokenLosses observed_losses(const CausalLM& model, const TokenBatch& batch, InputObserver& observer,
                            const RankGroup& tensor);

/// Hidden states after the last layer, before the final norm. Collective over `tensor`.
at::Tensor forward_hidden(const CausalLM& model, const at::Tensor& tokens_BT,
                          const RankGroup& tensor);

/// Logits [n, vocabulary] at the given flat positions, gathered over tensor ranks; for checks on
/// small models.
at::Tensor logits_at(const CausalLM& model, const at::Tensor& hidden_BTD,
                     const at::Tensor& positions_N, const RankGroup& tensor);

}  // namespace espalier
