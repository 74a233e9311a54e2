#pragma once

#include <cstdint>

#include "espalier/score/memory_need.h"

namespace espalier {

/// Floating-point operations of the linear maps (2 per weight and token) that a scoring pass over
/// one micro-batch comes to, over all ranks of a tensor group. Attention's own products, sums and
/// norms are not in it. In F = 2 T (weights of all layers) and H = 2 N V D of the head for T tokens
/// and N predictions, D hidden, V vocabulary: forward F + H; input gradients F + H less what lies
/// below the lowest scored half; weight gradients those of the matrices whose weights are scored.
struct LinearFlops {
  double forward = 0;
  double input_gradients = 0;
  double weight_gradients = 0;
  /// Of obs: 2 T K^2 for the K inputs of every scored o_proj and down_proj, and 2 T D^2 for its
  /// outputs under full curvature. Their ordering, after the pass, is not in it.
  double statistics = 0;
  /// Forward once more of all halves that are differentiated: what recomputing all of them costs.
  /// Layer by layer of all their layers, to whose entrances alone the pass goes back.
  double recompute = 0;

  /// What the criterion cannot do without: every half runs forward once.
  double needed() const { return forward + input_gradients + weight_gradients + statistics; }
};

/// Of shape.tokens tokens, `predictions` of which are compared with a target. Pure arithmetic.
LinearFlops linear_flops(const ModelConfig& config, const PassShape& shape,
                         std::int64_t predictions);

/// What a criterion has to see of the model: make_statistics(...)->needs(), without a model.
Needs needs_of(Criterion criterion);

}  // namespace espalier
