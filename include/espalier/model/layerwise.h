#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include <ATen/core/Tensor.h>

#include "espalier/comm/rank_group.h"
#include "espalier/core/error.h"
#include "espalier/model/blockwise.h"
#include "espalier/model/boundaries.h"

namespace espalier {

/// The micro-batches of a tensor group on their way through the model a layer at a time: the same
/// operations on the same numbers as blockwise_backward and observed_losses, in another order, so
/// the same bits. Only the layer at hand needs its weights; between layers each micro-batch is at a
/// boundary. The caller takes all micro-batches through embed(), then forward() of layer 0, 1, ...,
/// then loss(), then backward() of the last layer, the one before, ..., down to that of the lowest
/// half.
///
/// Each of these comes in two parts, so that what may fail alone lies outside the collectives:
/// fetch...() reads the boundary and is not collective; the other one is collective over the tensor
/// group and returns what went wrong when its result was put away.
///
/// Collectives of a micro-batch (T ranks > 1): those of blockwise_backward, and one all-reduce of
/// [B, T, D] more for each layer whose MLP is differentiated, since its attention runs twice; under
/// float16 one of a number for each differentiated half. A gradient that overflows there is
/// computed once more from 1/256 of what came from above.
class LayerwisePass {
 public:
  /// Halves below `lowest_half` are not differentiated (BackwardScope); 2 * layers = losses only.
  LayerwisePass(const CausalLM& model, const RankGroup& tensor,
                std::unique_ptr<Boundaries> boundaries, std::int64_t lowest_half);
  ~LayerwisePass();
  LayerwisePass(const LayerwisePass&) = delete;
  LayerwisePass& operator=(const LayerwisePass&) = delete;

  /// Takes up a micro-batch: its number is how many there were. Not collective.
  void add(TokenBatch batch);
  std::size_t micro_batches() const;
  /// The layer that differentiation ends at; `layers` where nothing is differentiated.
  std::int64_t lowest_layer() const { return lowest_half_ / 2; }

  Problems embed(std::size_t micro_batch);

  /// Where all micro-batches are between two layers, for another process to go on from. `place` is
  /// the next layer on the way forward (or `layers`), kGradients on the way back. Not collective.
  static constexpr std::int64_t kGradients = -1;
  std::vector<std::int64_t> shape_at_boundary(std::size_t micro_batch) const;
  AtBoundary at_boundary(std::int64_t place, std::size_t micro_batch);
  /// Puts a micro-batch there. Throws Error(bad_content) for another shape or dtype.
  void put_back(std::int64_t place, std::size_t micro_batch, const AtBoundary& there);

  void fetch_forward(std::int64_t layer, std::size_t micro_batch);
  /// `observer` sees the inputs of o_proj and down_proj.
  Problems forward(std::int64_t layer, std::size_t micro_batch, InputObserver& observer);
  /// After all micro-batches went through the layer.
  void leave_forward(std::int64_t layer);

  void fetch_loss(std::size_t micro_batch);
  /// As checked: a loss that is not finite is among the problems.
  TokenLosses loss(std::size_t micro_batch);

  void fetch_backward(std::int64_t layer, std::size_t micro_batch);
  Problems backward(std::int64_t layer, std::size_t micro_batch, BackwardObserver& observer);
  void leave_backward(std::int64_t layer);

  struct Broken {
    std::size_t micro_batch = 0;
    Problem problem;
  };
  /// The micro-batches with values so far that are not finite on any tensor rank, and what is to be
  /// said of them: the same on all these ranks. Collective.
  std::vector<Broken> broken();

  /// Halves that run forward twice.
  std::int64_t repeated_halves() const;
  /// What boundaries took at most.
  std::int64_t boundary_bytes() const { return boundaries_->most_bytes(); }

 private:
  struct MicroBatch;

  /// The place of what is on its way: hidden states after the last layer, then gradients.
  std::int64_t under_way() const { return model_.layers(); }
  Problems put(std::int64_t place, std::size_t micro_batch, const at::Tensor& x_BTD);
  at::Tensor through_half(std::int64_t half, MicroBatch& batch, const at::Tensor& x_BTD,
                          InputObserver& observer);

  const CausalLM& model_;
  const RankGroup& tensor_;
  std::unique_ptr<Boundaries> boundaries_;
  std::int64_t lowest_half_;
  std::vector<std::unique_ptr<MicroBatch>> batches_;
  at::Tensor x_BTD_, dx_BTD_;  // fetched
  bool going_back_ = false;
};

}  // namespace espalier
