#include "espalier/refit/solve.h"

#include <limits>
#include <tuple>

#include <ATen/ATen.h>

#include "espalier/core/error.h"

namespace espalier {
namespace {

constexpr double kObsDamping = 0.01;
/// Sums of squares lose this much of themselves at most; a variance below it is none.
constexpr double kNoVariance = 1e-12;

/// (H + l diag(H)) with ones where an input is always zero, as its Cholesky factor.
std::optional<at::Tensor> damped_factor(const at::Tensor& h_KK, double ridge) {
  at::Tensor damped_KK = h_KK.clone();
  at::Tensor diagonal_K = damped_KK.diagonal();
  diagonal_K.mul_(1 + ridge);
  diagonal_K.masked_fill_(diagonal_K == 0, 1.0);
  const auto [factor_KK, info] = at::linalg_cholesky_ex(damped_KK);
  if (info.item<std::int64_t>() != 0) return std::nullopt;
  return factor_KK;
}

/// tr(S A^T B).
double weighted_trace(const at::Tensor& a_KD, const at::Tensor& b_KD, const at::Tensor& s_D) {
  return at::dot((a_KD * b_KD).sum(0), s_D).item<double>();
}

double unit(const TargetSums& sums) { return sums.weight * static_cast<double>(sums.y_D.numel()); }

}  // namespace

void add_tokens(NormalEquations& equations, const Range& rows, const at::Tensor& x_NK,
                const at::Tensor& y_ND, const at::Tensor& weights_N1) {
  const at::Tensor weighted_KN = (x_NK.narrow(1, rows.begin, rows.size()) * weights_N1).t();
  equations.h_KK += at::matmul(weighted_KN, x_NK);
  equations.c_KD += at::matmul(weighted_KN, y_ND);
}

void add_inputs(InputSums& sums, std::size_t f, const Range& rows, const at::Tensor& x_NK,
                const at::Tensor& e_NK, const at::Tensor& weights_N1) {
  add_tokens(sums.folds[f], rows, x_NK, e_NK, weights_N1);
  const at::Tensor weighted_KN = (e_NK.narrow(1, rows.begin, rows.size()) * weights_N1).t();
  sums.difference_KK += at::matmul(weighted_KN, e_NK);
  const at::Tensor w_N1 = weights_N1.to(at::kDouble);
  sums.dense_K += (w_N1 * (x_NK.to(at::kDouble) + e_NK)).sum(0);
  sums.weight += w_N1.sum().item<double>();
}

at::Tensor inverse_variance(const TargetSums& sums) {
  const at::Tensor square_D = sums.square_D / sums.weight;
  const at::Tensor variance_D = square_D - (sums.y_D / sums.weight).pow(2);
  const at::Tensor varies_D = variance_D > kNoVariance * square_D;
  return at::where(varies_D, variance_D.reciprocal(), at::zeros_like(variance_D));
}

std::optional<at::Tensor> ridge_solution(const NormalEquations& equations, const at::Tensor& q_KD,
                                         double ridge) {
  const std::optional<at::Tensor> factor_KK = damped_factor(equations.h_KK, ridge);
  if (!factor_KK) return std::nullopt;
  return at::cholesky_solve(q_KD, *factor_KK);
}

std::array<at::Tensor, 2> residuals(const Folds& folds, const at::Tensor& v0_KD) {
  return {folds[0].c_KD - at::matmul(folds[0].h_KK, v0_KD),
          folds[1].c_KD - at::matmul(folds[1].h_KK, v0_KD)};
}

TargetSums target_of(const InputSums& sums, const at::Tensor& v0_KD) {
  at::Tensor dense_KK = sums.difference_KK.clone();
  for (const NormalEquations& fold : sums.folds)
    dense_KK.add_(fold.h_KK).add_(fold.c_KD).add_(fold.c_KD.t());
  return {(sums.dense_K.unsqueeze(1) * v0_KD).sum(0), (at::matmul(dense_KK, v0_KD) * v0_KD).sum(0),
          sums.weight};
}

std::array<at::Tensor, 2> residuals(const InputSums& sums, const at::Tensor& v0_KD) {
  return {at::matmul(sums.folds[0].c_KD, v0_KD), at::matmul(sums.folds[1].c_KD, v0_KD)};
}

double relative_error(const InputSums& sums, const TargetSums& target, const at::Tensor& v0_KD) {
  const at::Tensor left_KD = at::matmul(sums.difference_KK, v0_KD);
  return weighted_trace(v0_KD, left_KD, inverse_variance(target)) / unit(target);
}

double relative_error(const Folds& folds, const TargetSums& sums, const at::Tensor& v_KD) {
  const at::Tensor s_D = inverse_variance(sums);
  double error = at::dot(sums.square_D, s_D).item<double>();
  for (const NormalEquations& fold : folds)
    error += weighted_trace(v_KD, at::matmul(fold.h_KK, v_KD) - 2 * fold.c_KD, s_D);
  return error / unit(sums);
}

double held_out_change(const Folds& folds, const std::array<at::Tensor, 2>& q_KD,
                       const TargetSums& sums, double ridge) {
  const at::Tensor s_D = inverse_variance(sums);
  double change = 0;
  for (std::size_t f = 0; f < folds.size(); ++f) {
    const std::size_t other = 1 - f;
    const std::optional<at::Tensor> d_KD = ridge_solution(folds[other], q_KD[other], ridge);
    if (!d_KD) return std::numeric_limits<double>::infinity();
    change += weighted_trace(*d_KD, at::matmul(folds[f].h_KK, *d_KD) - 2 * q_KD[f], s_D);
  }
  return change / unit(sums);
}

const std::vector<double>& ridge_candidates() {
  static const std::vector<double> ridges{1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0};
  return ridges;
}

at::Tensor obs_weights(const at::Tensor& a_KA, const at::Tensor& kept_K, const at::Tensor& w_AD) {
  at::Tensor right_KA = a_KA.clone();
  // A~ differs from A on its diagonal alone, which a kept input has at its own place.
  const at::Tensor rows_K = at::arange(kept_K.size(0), kept_K.options());
  at::Tensor diagonal_K = right_KA.index({rows_K, kept_K});
  right_KA.index_put_({rows_K, kept_K}, diagonal_K * (1 + kObsDamping));
  const at::Tensor a_KK = a_KA.index_select(1, kept_K);
  const std::optional<at::Tensor> factor_KK = damped_factor(a_KK, kObsDamping);
  if (!factor_KK)
    throw Error(ExitCode::bad_content, "the second moments of the inputs are not positive definite",
                "their damping of 0.01 of each input's power is lost in rounding",
                "Use refit.shrink_to: dense, or a wider model.dtype.");
  // A dead input keeps its dense column: it multiplies zero, whatever it is.
  const at::Tensor dead_K = (diagonal_K == 0).unsqueeze(1);
  return at::where(dead_K, w_AD.index_select(0, kept_K),
                   at::cholesky_solve(at::matmul(right_KA, w_AD), *factor_KK));
}

}  // namespace espalier
