#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

#include "espalier/comm/rank_group.h"
#include "espalier/model/blockwise.h"
#include "espalier/prune/unit_tensors.h"
#include "finite_watch.h"

namespace espalier {

/// The halves of layers in the order of BackwardScope.
inline UnitKind kind_of(std::int64_t half) {
  return half % 2 == 0 ? UnitKind::attention : UnitKind::mlp;
}

/// One half on this rank, from its input to its part of the output. Not collective.
HalfOutput run_half(const CausalLM& model, std::int64_t half, const at::Tensor& x_BTD,
                    const PackedRows* packed = nullptr);

/// The embedded tokens, on every tensor rank. Collective.
at::Tensor embed(const CausalLM& model, const at::Tensor& tokens_BT, TensorReducer& tensor,
                 FiniteWatch& watch);
/// The residual after a half, from that before it and this rank's part of the half's output.
/// Collective.
at::Tensor after_half(std::int64_t half, const at::Tensor& x_BTD, at::Tensor partial_BTD,
                      TensorReducer& tensor, FiniteWatch& watch);
/// The gradient of the residual before a half, from that after it and this rank's part of the
/// half's. Collective.
at::Tensor before_half(std::int64_t half, const at::Tensor& dy_BTD, at::Tensor dx_BTD,
                       TensorReducer& tensor, FiniteWatch& watch);

/// HalfGradients::row_weights_B of a batch.
at::Tensor row_weights(const TokenBatch& batch);

/// The power of two by which the coefficients of a micro-batch are multiplied before they meet
/// float16, whose smallest normal number is 2^-14: the largest coefficient becomes 1 to 2. Other
/// types have the range of float32 and need none. A function of the batch alone, so that all ranks
/// choose the same whoever computes it.
class LossScale {
 public:
  LossScale(const TokenBatch& batch, at::ScalarType dtype);
  double factor() const;
  /// A gradient may overflow for no other reason than the scale.
  bool may_overflow() const { return narrow_; }
  /// 256 times less, down to the loss itself; false when that is what it was.
  bool lower();
  /// Goes on with a factor that this had in another process.
  void restore(double factor);

 private:
  bool narrow_;
  int exponent_ = 0;
};

/// One half run with gradients on: from its input to this rank's part of its output.
class HalfGraph {
 public:
  HalfGraph(const CausalLM& model, std::int64_t half, const at::Tensor& x_BTD,
            const PackedRows* packed, const BackwardObserver& observer);

  at::Tensor partial_BTD() const { return out_.partial_BTD.detach(); }

  struct Gradients {
    // What the observer wants, if anything, of a rank's units.
    at::Tensor dx_BTD;  // of this rank's part; zero where it holds no unit; undefined if not needed
    std::optional<HalfGradients> observed;
  };

  /// Gradients of the input, where needed, and of what the observer wants. Once only.
  Gradients backward(const at::Tensor& dy_BTD, bool needs_input);

 private:
  bool is_wanted(const LinearMap& map) const;
  WeightGradient weight_gradient(TensorRole role, std::span<const at::Tensor> of_outputs) const;

  bool wants_gate_;
  bool wants_output_;
  std::vector<TensorRole> roles_;
  at::Tensor leaf_BTD_;
  HalfOutput out_;
};

/// What every half counts on its way back: its gradients, in the order in which they arise.
void see_gradients(std::int64_t half, HalfGraph::Gradients& gradients, FiniteWatch& watch);

/// For an observer that wants the output of a half, what it needs beside the rank's gate.
/// Collective.
void add_output(const CausalLM& model, std::int64_t half, const TokenBatch& batch,
                const at::Tensor& dy_BTD, const at::Tensor& row_weights_B, const RankGroup& tensor,
                HalfGradients& observed);

}  // namespace espalier
