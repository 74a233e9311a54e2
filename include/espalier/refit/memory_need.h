#pragma once

#include <cstdint>

#include <c10/core/ScalarType.h>

#include "espalier/config/model_config.h"
#include "espalier/config/run_config.h"
#include "espalier/prune/widths.h"

namespace espalier {

/// A refit as far as its memory depends on it.
struct RefitShape {
  /// Of the model before its units fell, and of what is left.
  ModelWidths source, kept;
  /// Ranks that share it.
  int tensor = 1;
  at::ScalarType dtype = at::kFloat;
  /// Of settings.shrink_to obs: second moments of the dense model's inputs too.
  bool moments = false;
  RefitMatrices matrices = RefitMatrices::outputs;
  /// Of all micro-batches of a data rank, padding included.
  std::int64_t stream_tokens = 0;
  /// One layer of the pruned model is here at a time.
  bool layer_by_layer = false;
};

/// Bytes of tensors that one rank holds at the height of a refit, with k kept of A inputs of the
/// widest matrix and D outputs.
struct RefitNeed {
  /// The pruned model's shard; layer by layer what of it lies outside the layers.
  std::int64_t held = 0;
  /// One layer of the dense model, this rank's part.
  std::int64_t dense_layer = 0;
  /// The same of the pruned model, where it is held layer by layer; else 0.
  std::int64_t pruned_layer = 0;
  /// Both residual streams [B, T, D] of the rank's micro-batches, in the model's dtype, on the
  /// host.
  std::int64_t streams = 0;
  /// H and C of both folds, in float64: summed in shares of the tensor ranks, then whole with a
  /// damped copy of H and its factor: about 8 x (5 k k + 8 k D), and with moments 3 k A more. For
  /// the projections of a half, with D hidden inputs and R of the widest's outputs left, about 8 x
  /// (8 D D + 8 D R).
  std::int64_t sums = 0;

  /// What comes to what is held when the refit begins.
  std::int64_t beside() const { return dense_layer + pruned_layer + streams + sums; }
  std::int64_t total() const { return held + beside(); }
};

/// Pure arithmetic: no tensor is made.
RefitNeed refit_need(const ModelConfig& config, const RefitShape& shape);

}  // namespace espalier
