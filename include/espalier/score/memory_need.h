#pragma once

#include <cstdint>

#include <c10/core/ScalarType.h>

#include "espalier/config/model_config.h"
#include "espalier/prune/widths.h"
#include "espalier/score/statistics.h"

namespace espalier {

/// A scoring pass as far as its memory depends on it.
struct PassShape {
  /// What is left of the model.
  ModelWidths widths;
  /// Ranks that share it.
  int tensor = 1;
  /// Of channels at which these are cut.
  std::int64_t channel_multiple = 1;
  /// Halves whose units can fall; all false = losses only.
  ScoredHalves scored;
  Criterion criterion = Criterion::taylor;
  AttentionUnit unit = AttentionUnit::query_head;
  Accumulate accumulate = Accumulate::automatic;
  /// Of criterion obs; automatic counts as scalar, the least it can need.
  Curvature curvature = Curvature::automatic;
  at::ScalarType dtype = at::kFloat;
  /// There norms are loops that keep no wider copies (model/fused.h).
  bool on_cpu = true;
  /// Of the calibration, which criteria with small sums keep apart.
  std::int64_t domains = 1;
  /// Of the largest micro-batch: B x T.
  std::int64_t tokens = 0;
  /// A layer at a time: two layers' weights and the statistics of one, and boundaries between.
  bool layer_by_layer = false;
  /// Of all micro-batches of a data rank, as far as their boundaries are in this memory.
  std::int64_t boundary_tokens = 0;
  /// What the rank may take to keep graphs, with its statistics (ScoreRequest::spare_bytes).
  std::int64_t spare_bytes = 0;
  /// Slots of keys and values that a generation keeps, of all rows together; 0 = none is kept.
  std::int64_t cached_tokens = 0;
};

/// Bytes of tensors that one rank holds at the height of a pass. What LibTorch, MPI and the
/// allocator take beside tensors is not in it (kBesideTensors).
struct MemoryNeed {
  /// The rank's slices of all tensors; layer by layer those of what lies outside, of the layer at
  /// hand and of the one that is read beside it.
  std::int64_t weights = 0;
  /// taylor: a sum per scored weight; gate criteria: a float64 per unit and domain; wanda_sp and
  /// flap: one or two per entry at the gates and domain. obs: a matrix of the inputs of every
  /// scored o_proj and down_proj, and of their outputs' gradients under full curvature. Layer by
  /// layer, the sums per weight and the matrices are those of one layer, and none where the loss is
  /// the height: they begin behind it.
  std::int64_t statistics = 0;
  /// [B, T, D] in the model's dtype, in full on every tensor rank: the input of every half layer
  /// from the lowest scored one up, and two more under way; layer by layer, of the halves at hand.
  std::int64_t hidden_states = 0;
  /// The graph of one half layer with the gradients on their way through it, or the loss, whichever
  /// is more (loss_bytes; a graph: what RMSNorm, the projections, silu or attention keep); obs: or
  /// the ordering of the largest sublayer after the pass.
  std::int64_t working = 0;
  /// Keys and values of the rank's KV heads in all layers, and a second copy of the largest layer's
  /// while rows leave.
  std::int64_t cache = 0;
  /// Layer by layer: [B, T, D] of every micro-batch at the entrance of every layer from the lowest
  /// scored one up, and on its way back.
  std::int64_t boundaries = 0;
  /// What graphs that are kept because there is room for them add to the height.
  std::int64_t kept_graphs = 0;

  /// The least that the pass needs: without graphs that are kept (`execution.recompute: all`).
  std::int64_t total() const {
    return weights + statistics + hidden_states + working + cache + boundaries;
  }
};

/// Of the tensor rank that needs most. Pure arithmetic: no tensor is made.
MemoryNeed memory_need(const ModelConfig& config, const PassShape& pass);

}  // namespace espalier
