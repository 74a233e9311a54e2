#pragma once

#include <array>
#include <optional>
#include <string>

#include <ATen/core/Tensor.h>

#include "espalier/comm/communicator.h"
#include "espalier/core/dtype.h"
#include "espalier/refit/refit.h"
#include "espalier/refit/solve.h"

namespace espalier::refit_detail {

/// What one matrix is solved from: the same on every rank.
struct MatrixFit {
  /// In the checkpoint, whose dtype it is rounded to.
  std::string name;
  DType stored = DType::f32;
  /// Of which H is needed.
  const Folds& folds;
  TargetSums target{};
  /// V0 and what it leaves.
  at::Tensor v0_KD{};
  std::array<at::Tensor, 2> q_KD{};
  /// V0 is not what the source has.
  bool updated = false;
};

/// The ridge of least held-out error, which every rank tries its share of, and the new matrix,
/// which rank `solver` computes. Returns it as it is stored, whole, on the host of every rank;
/// nothing where the source's own stays. Sets all of `facts` but the width, with facts.error_before
/// given. Collective.
std::optional<at::Tensor> settle(Communicator& world, int solver, const RefitConfig& settings,
                                 const MatrixFit& fit, MatrixFacts& facts);

}  // namespace espalier::refit_detail
