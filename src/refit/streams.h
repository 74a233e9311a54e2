#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "espalier/calib/calibration.h"

namespace espalier::refit_detail {

/// Tokens of a micro-batch that belong to one fold.
struct FoldTokens {
  /// int64, flat places b * T + t, ascending.
  at::Tensor places_N;
  /// float64.
  at::Tensor weights_N;
};

/// What is kept of one micro-batch from half layer to half layer: both residual streams, on the
/// host in the model's dtype, the same on every tensor rank.
struct Streams {
  at::Tensor dense_BTD;
  at::Tensor pruned_BTD;
  /// On the model's device.
  std::array<FoldTokens, 2> folds;
};

/// The fold and the weight of every token of a micro-batch (see refit()). Pure.
std::array<FoldTokens, 2> fold_tokens(const Calibration& data, const MicroBatch& micro_batch,
                                      const CalibrationBatch& batch);

}  // namespace espalier::refit_detail
