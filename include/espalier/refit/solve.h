#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include <ATen/core/Tensor.h>

#include "espalier/store/tensor_layout.h"

// Shape suffixes: K inputs that are kept, A inputs of the dense matrix, D outputs. All tensors are
// on one device, and float64 unless something else is said. Nothing here is collective.

namespace espalier {

/// Weighted sums over the tokens of one fold: the normal equations of X V = Y.
struct NormalEquations {
  /// X^T W X.
  at::Tensor h_KK;
  /// X^T W Y.
  at::Tensor c_KD;
};
using Folds = std::array<NormalEquations, 2>;

/// Adds tokens to some rows of a fold's equations: H += (X_rows w)^T X, C += (X_rows w)^T Y, as
/// products in the type of X and Y. `weights_N1` is of that type too.
void add_tokens(NormalEquations& equations, const Range& rows, const at::Tensor& x_NK,
                const at::Tensor& y_ND, const at::Tensor& weights_N1);

/// Weighted sums over the tokens of what a half's projections read: x in the pruned model, x + e in
/// the dense one. All rows K, or those of some inputs.
struct InputSums {
  /// X^T W X and, as c, X^T W E: the difference enters the products as such, since H and
  /// X^T W (X + E) may agree in all but their last digits.
  Folds folds;
  /// E^T W E of both folds.
  at::Tensor difference_KK;
  /// Sum of w (x + e).
  at::Tensor dense_K;
  double weight = 0;
};

/// Adds tokens of fold f to some rows of the sums, as add_tokens does.
void add_inputs(InputSums& sums, std::size_t f, const Range& rows, const at::Tensor& x_NK,
                const at::Tensor& e_NK, const at::Tensor& weights_N1);

/// Weighted sums over the tokens of both folds that tell how much each output varies.
struct TargetSums {
  at::Tensor y_D;
  at::Tensor square_D;
  double weight = 0;
};

/// 1 / variance of each output, 0 where it does not vary (less than rounding of its square would
/// show). Errors are divided by it: outputs of a few massive activations do not decide alone.
at::Tensor inverse_variance(const TargetSums& sums);

/// What the outputs Y = (X + E) V0 of a dense projection sum up to.
TargetSums target_of(const InputSums& sums, const at::Tensor& v0_KD);
/// Q = X^T W E V0 of each fold: what V0 leaves of that Y when it reads X.
std::array<at::Tensor, 2> residuals(const InputSums& sums, const at::Tensor& v0_KD);
/// relative_error of V0 there.
double relative_error(const InputSums& sums, const TargetSums& target, const at::Tensor& v0_KD);

/// D(l) = (H + l diag(H))^-1 Q. The penalty is in each input's own power, so that the result does
/// not depend on its scale. An input that is always zero gets no row of D but zeros. Nothing where
/// the matrix is not positive definite in float64.
std::optional<at::Tensor> ridge_solution(const NormalEquations& equations, const at::Tensor& q_KD,
                                         double ridge);

/// Q = C - H V0 of each fold: what V0 leaves.
std::array<at::Tensor, 2> residuals(const Folds& folds, const at::Tensor& v0_KD);

/// Sum over outputs of the squared error that V leaves on both folds, divided by the output's
/// variance and by the weight of all tokens; averaged over the outputs: 1 is the mean alone.
double relative_error(const Folds& folds, const TargetSums& sums, const at::Tensor& v_KD);

/// By how much V0 + D(l) changes that error, D fitted on one fold and the error taken on the other:
/// sum_f tr(S D^T H_f D) - 2 tr(S D^T Q_f), S the inverse variances, in the unit of
/// relative_error. Infinite where a fold has no solution.
double held_out_change(const Folds& folds, const std::array<at::Tensor, 2>& q_KD,
                       const TargetSums& sums, double ridge);

/// The ridges among which the least held-out error chooses: 1e-5, 1e-4 ... 10.
const std::vector<double>& ridge_candidates();

/// (A~_KK)^-1 A~_K: W^T, A~ = A + 0.01 diag(A): the kept columns after those that fell were taken
/// out one by one (Optimal Brain Surgeon, Hassibi and Stork 1993). `a_KA` has the rows of the kept
/// inputs, `kept_K` their places, `w_AD` the dense matrix transposed. Throws Error(bad_content)
/// where the matrix is not positive definite.
at::Tensor obs_weights(const at::Tensor& a_KA, const at::Tensor& kept_K, const at::Tensor& w_AD);

}  // namespace espalier
