#pragma once

#include <cstdint>

#include "espalier/config/model_config.h"
#include "espalier/config/run_config.h"
#include "espalier/prune/widths.h"

namespace espalier {

/// A refit as far as its arithmetic depends on it.
struct RefitWork {
  /// Of the model before its units fell, and of what is left.
  ModelWidths source, kept;
  /// Of all micro-batches: with the padding that goes through the model, and without it.
  std::int64_t computed_tokens = 0;
  std::int64_t tokens = 0;
  /// Of settings.shrink_to obs: second moments of the dense model's inputs too.
  bool moments = false;
  RefitMatrices matrices = RefitMatrices::outputs;
};

/// Floating-point operations of one kind over all matrices, 2 to a multiplication with its
/// addition.
struct DenseFlops {
  /// Products of matrices.
  double products = 0;
  /// Cholesky factors, k^3 / 3, and solutions, 2 k^2 n for n columns.
  double solutions = 0;

  double all() const { return products + solutions; }
};

/// Floating-point operations of a refit. Of a matrix with k kept of A inputs and D outputs (of a
/// projection all hidden inputs and what is left of its outputs), for T tokens with padding and N
/// without. Attention's own products, norms and sums are not in it.
struct RefitFlops {
  /// 2 T (weights of the dense layers + 2 x of the pruned ones, which run once for the inputs of a
  /// matrix and once with the new matrix). In model.dtype.
  double streams = 0;
  /// H and C of both folds: 2 N k (k + D); with moments 2 N k A more. Of the projections of a half
  /// together 6 N k^2. In float32 or float64.
  double sums = 0;
  /// One ridge tried: for each fold a factor, its solution and H D. In float64, as is what follows.
  DenseFlops ridge;
  /// What every rank computes: what V_0 leaves, and its error.
  double residuals = 0;
  /// On the rank that solves the layer: the factor of both folds and its solution; with moments
  /// V_0 too.
  DenseFlops solution;
};

/// Pure arithmetic: no tensor is made.
RefitFlops refit_flops(const ModelConfig& config, const RefitWork& work);

/// Elements of the matrices that a refit may change: sum of k D.
std::int64_t refitted_elements(const ModelConfig& config, const ModelWidths& kept,
                               RefitMatrices matrices);

}  // namespace espalier
