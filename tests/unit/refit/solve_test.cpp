#include "espalier/refit/solve.h"

#include <cmath>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "espalier/core/error.h"

namespace espalier {
namespace {

constexpr std::int64_t kInputs = 7, kOutputs = 5;

at::Tensor drawn(std::int64_t rows, std::int64_t columns, std::uint64_t seed) {
  at::manual_seed(seed);
  return at::randn({rows, columns}, at::kDouble);
}

/// Tokens of two folds with their weights, and the sums that a pass makes of them.
struct Data {
  std::array<at::Tensor, 2> x_NK, y_ND, w_N;

  Folds folds() const {
    Folds folds;
    for (std::size_t f = 0; f < 2; ++f) {
      const at::Tensor xw = (x_NK[f] * w_N[f].unsqueeze(1)).t();
      folds[f] = {at::matmul(xw, x_NK[f]), at::matmul(xw, y_ND[f])};
    }
    return folds;
  }
  TargetSums target() const {
    TargetSums sums{at::zeros({kOutputs}, at::kDouble), at::zeros({kOutputs}, at::kDouble), 0};
    for (std::size_t f = 0; f < 2; ++f) {
      sums.y_D += (w_N[f].unsqueeze(1) * y_ND[f]).sum(0);
      sums.square_D += (w_N[f].unsqueeze(1) * y_ND[f].pow(2)).sum(0);
      sums.weight += w_N[f].sum().item<double>();
    }
    return sums;
  }
  /// Mean over outputs of the weighted squared error over the output's variance, token by token.
  double error(const std::array<at::Tensor, 2>& v_KD) const {
    const at::Tensor y = at::cat({y_ND[0], y_ND[1]}), w = at::cat({w_N[0], w_N[1]});
    const at::Tensor left =
        y - at::cat({at::matmul(x_NK[0], v_KD[0]), at::matmul(x_NK[1], v_KD[1])});
    double sum = 0;
    for (std::int64_t d = 0; d < kOutputs; ++d) {
      double mean = 0, variance = 0, lost = 0;
      const double total = w.sum().item<double>();
      for (std::int64_t n = 0; n < y.size(0); ++n)
        mean += w[n].item<double>() * y[n][d].item<double>() / total;
      for (std::int64_t n = 0; n < y.size(0); ++n) {
        variance += w[n].item<double>() * std::pow(y[n][d].item<double>() - mean, 2) / total;
        lost += w[n].item<double>() * std::pow(left[n][d].item<double>(), 2) / total;
      }
      sum += lost / variance / kOutputs;
    }
    return sum;
  }
};

Data data_of(std::int64_t tokens, double noise, std::uint64_t seed, const at::Tensor& v_KD) {
  Data data;
  for (std::size_t f = 0; f < 2; ++f) {
    data.x_NK[f] = drawn(tokens, kInputs, seed + 10 * f);
    data.y_ND[f] =
        at::matmul(data.x_NK[f], v_KD) + noise * drawn(tokens, kOutputs, seed + 10 * f + 1) + 0.5;
    data.w_N[f] = drawn(tokens, 1, seed + 10 * f + 2).abs().flatten() + 0.1;
  }
  return data;
}

void expect_close(const at::Tensor& a, const at::Tensor& b, double tolerance) {
  EXPECT_LE((a - b).abs().max().item<double>(), tolerance * (1 + b.abs().max().item<double>()));
}

TEST(RefitSolve, ErrorsAreThoseOfTheTokensOneByOne) {
  const at::Tensor v_KD = drawn(kInputs, kOutputs, 1), v0_KD = drawn(kInputs, kOutputs, 2);
  const Data data = data_of(40, 0.3, 3, v_KD);
  const Folds folds = data.folds();
  const std::array<at::Tensor, 2> q_KD = residuals(folds, v0_KD);
  EXPECT_NEAR(relative_error(folds, data.target(), v0_KD), data.error({v0_KD, v0_KD}), 1e-10);
  for (const double ridge : {1e-3, 0.5}) {
    const at::Tensor d0 = ridge_solution(folds[0], q_KD[0], ridge).value();
    const at::Tensor d1 = ridge_solution(folds[1], q_KD[1], ridge).value();
    const double wanted = data.error({v0_KD + d1, v0_KD + d0}) - data.error({v0_KD, v0_KD});
    EXPECT_NEAR(held_out_change(folds, q_KD, data.target(), ridge), wanted, 1e-10);
    EXPECT_LT(wanted, 0);
  }
}

/// The sums over a projection's inputs say the same as those over its outputs, token by token.
TEST(RefitSolve, ProjectionsNeedNoOutputs) {
  const at::Tensor v0_KD = drawn(kInputs, kOutputs, 40);
  Data data;
  std::array<at::Tensor, 2> e_NK;
  InputSums whole;
  const auto zeros = [](std::int64_t rows) { return at::zeros({rows, kInputs}, at::kDouble); };
  const std::array<Range, 2> shares{Range{0, 3}, Range{3, kInputs}};
  std::array<InputSums, 2> sums;
  for (std::size_t s = 0; s < 2; ++s) {
    for (NormalEquations& fold : sums[s].folds)
      fold = {zeros(shares[s].size()), zeros(shares[s].size())};
    sums[s].difference_KK = zeros(shares[s].size());
    sums[s].dense_K = at::zeros({kInputs}, at::kDouble);
  }
  for (std::size_t f = 0; f < 2; ++f) {
    data.x_NK[f] = drawn(30, kInputs, 41 + 10 * f);
    e_NK[f] = 0.3 * drawn(30, kInputs, 42 + 10 * f) + 0.1;
    data.w_N[f] = drawn(30, 1, 43 + 10 * f).abs().flatten() + 0.1;
    data.y_ND[f] = at::matmul(data.x_NK[f] + e_NK[f], v0_KD);
    for (std::size_t s = 0; s < 2; ++s)
      add_inputs(sums[s], f, shares[s], data.x_NK[f], e_NK[f], data.w_N[f].unsqueeze(1));
  }
  for (std::size_t f = 0; f < 2; ++f)
    whole.folds[f] = {at::cat({sums[0].folds[f].h_KK, sums[1].folds[f].h_KK}),
                      at::cat({sums[0].folds[f].c_KD, sums[1].folds[f].c_KD})};
  whole.difference_KK = at::cat({sums[0].difference_KK, sums[1].difference_KK});
  whole.dense_K = sums[0].dense_K;
  whole.weight = sums[0].weight;

  const TargetSums target = target_of(whole, v0_KD), wanted = data.target();
  expect_close(target.y_D, wanted.y_D, 1e-12);
  expect_close(target.square_D, wanted.square_D, 1e-12);
  EXPECT_NEAR(target.weight, wanted.weight, 1e-12);
  EXPECT_NEAR(relative_error(whole, target, v0_KD), data.error({v0_KD, v0_KD}), 1e-10);
  const Folds folds = data.folds();
  const auto q_KD = residuals(whole, v0_KD), others_KD = residuals(folds, v0_KD);
  for (std::size_t f = 0; f < 2; ++f) expect_close(q_KD[f], others_KD[f], 1e-10);
  const at::Tensor d0 = ridge_solution(whole.folds[0], q_KD[0], 0.1).value();
  const at::Tensor d1 = ridge_solution(whole.folds[1], q_KD[1], 0.1).value();
  EXPECT_NEAR(held_out_change(whole.folds, q_KD, target, 0.1),
              data.error({v0_KD + d1, v0_KD + d0}) - data.error({v0_KD, v0_KD}), 1e-10);
}

TEST(RefitSolve, ProjectionsThatReadTheSameStayAsTheyAre) {
  InputSums sums;
  const at::Tensor x_NK = drawn(20, kInputs, 50), zeros_NK = at::zeros_like(x_NK);
  for (NormalEquations& fold : sums.folds)
    fold = {at::zeros({kInputs, kInputs}, at::kDouble), at::zeros({kInputs, kInputs}, at::kDouble)};
  sums.difference_KK = at::zeros({kInputs, kInputs}, at::kDouble);
  sums.dense_K = at::zeros({kInputs}, at::kDouble);
  for (std::size_t f = 0; f < 2; ++f)
    add_inputs(sums, f, {0, kInputs}, x_NK, zeros_NK, at::ones({20, 1}, at::kDouble));
  const at::Tensor v0_KD = drawn(kInputs, kOutputs, 51);
  const TargetSums target = target_of(sums, v0_KD);
  EXPECT_EQ(relative_error(sums, target, v0_KD), 0);
  EXPECT_EQ(held_out_change(sums.folds, residuals(sums, v0_KD), target, 1e-5), 0);
}

TEST(RefitSolve, WithoutPenaltyTheTruthIsFound) {
  const at::Tensor v_KD = drawn(kInputs, kOutputs, 4);
  Data data = data_of(30, 0, 5, v_KD);
  for (at::Tensor& y : data.y_ND) y -= 0.5;
  const Folds folds = data.folds();
  const auto q_KD = residuals(folds, at::zeros_like(v_KD));
  expect_close(ridge_solution(folds[0], q_KD[0], 1e-12).value(), v_KD, 1e-10);
}

TEST(RefitSolve, NoiseFromFewTokensIsNotFitted) {
  const at::Tensor v_KD = drawn(kInputs, kOutputs, 6);
  const Data data = data_of(4, 3, 7, v_KD);
  const Folds folds = data.folds();
  const auto q_KD = residuals(folds, v_KD);
  for (const double ridge : ridge_candidates())
    EXPECT_GT(held_out_change(folds, q_KD, data.target(), ridge), 0) << ridge;
}

TEST(RefitSolve, OneFoldAloneChangesNothing) {
  Data data = data_of(12, 0.1, 8, drawn(kInputs, kOutputs, 9));
  data.x_NK[1] = at::zeros({0, kInputs}, at::kDouble);
  data.y_ND[1] = at::zeros({0, kOutputs}, at::kDouble);
  data.w_N[1] = at::zeros({0}, at::kDouble);
  const Folds folds = data.folds();
  const auto q_KD = residuals(folds, at::zeros({kInputs, kOutputs}, at::kDouble));
  // Nothing is fitted on the empty fold, and nothing is measured there.
  EXPECT_EQ(held_out_change(folds, q_KD, data.target(), 0.1), 0);
}

TEST(RefitSolve, ADeadInputKeepsItsColumn) {
  const at::Tensor v_KD = drawn(kInputs, kOutputs, 10);
  Data data = data_of(30, 0.2, 11, v_KD);
  for (at::Tensor& x : data.x_NK) x.select(1, 3).zero_();
  const Folds folds = data.folds();
  const auto q_KD = residuals(folds, v_KD);
  const at::Tensor d_KD = ridge_solution(folds[0], q_KD[0], 1e-3).value();
  EXPECT_TRUE(at::isfinite(d_KD).all().item<bool>());
  EXPECT_EQ(d_KD[3].abs().max().item<double>(), 0);
  EXPECT_TRUE(std::isfinite(held_out_change(folds, q_KD, data.target(), 1e-3)));
  // The others are solved as without it.
  const at::Tensor others = at::tensor({0, 1, 2, 4, 5, 6}, at::kLong);
  const NormalEquations without{folds[0].h_KK.index_select(0, others).index_select(1, others),
                                folds[0].c_KD.index_select(0, others)};
  expect_close(d_KD.index_select(0, others),
               ridge_solution(without, q_KD[0].index_select(0, others), 1e-3).value(), 1e-12);
}

TEST(RefitSolve, TheScaleOfAnInputOrAnOutputDoesNotMatter) {
  const at::Tensor v_KD = drawn(kInputs, kOutputs, 12), v0_KD = drawn(kInputs, kOutputs, 13);
  const Data data = data_of(30, 0.2, 14, v_KD);
  Data scaled = data;
  for (std::size_t f = 0; f < 2; ++f) {
    scaled.x_NK[f] = data.x_NK[f].clone();
    scaled.x_NK[f].select(1, 2).mul_(300);
    scaled.y_ND[f] = data.y_ND[f].clone();
    scaled.y_ND[f].select(1, 1).mul_(50);
  }
  at::Tensor scaled_v0_KD = v0_KD.clone();
  scaled_v0_KD.select(0, 2).div_(300);
  scaled_v0_KD.select(1, 1).mul_(50);
  const auto q = residuals(data.folds(), v0_KD), scaled_q = residuals(scaled.folds(), scaled_v0_KD);
  for (const double ridge : ridge_candidates())
    EXPECT_NEAR(held_out_change(scaled.folds(), scaled_q, scaled.target(), ridge),
                held_out_change(data.folds(), q, data.target(), ridge), 1e-9);
  at::Tensor d = ridge_solution(scaled.folds()[0], scaled_q[0], 0.1).value();
  d.select(0, 2).mul_(300);
  d.select(1, 1).div_(50);
  expect_close(d, ridge_solution(data.folds()[0], q[0], 0.1).value(), 1e-10);
}

TEST(RefitSolve, AnOutputThatDoesNotVaryHasNoSay) {
  Data data = data_of(20, 0.2, 15, drawn(kInputs, kOutputs, 16));
  for (at::Tensor& y : data.y_ND) y.select(1, 4).fill_(0.7);
  const at::Tensor s_D = inverse_variance(data.target());
  EXPECT_EQ(s_D[4].item<double>(), 0);
  EXPECT_GT(s_D.narrow(0, 0, 4).min().item<double>(), 0);
}

TEST(RefitSolve, AMatrixThatIsNotPositiveDefiniteHasNoSolution) {
  NormalEquations equations{at::eye(3, at::kDouble), at::ones({3, 2}, at::kDouble)};
  equations.h_KK[0][1] = equations.h_KK[1][0] = 2;
  EXPECT_FALSE(ridge_solution(equations, equations.c_KD, 1e-5).has_value());
  EXPECT_TRUE(ridge_solution(equations, equations.c_KD, 10).has_value());
}

/// Removes one input after the other, each by the rule of Optimal Brain Surgeon.
at::Tensor surgeon(const at::Tensor& a_AA, const std::vector<std::int64_t>& gone, at::Tensor w_DA) {
  at::Tensor p = at::inverse(a_AA);
  w_DA = w_DA.clone();
  for (const std::int64_t u : gone) {
    w_DA = w_DA - at::outer(w_DA.select(1, u), p[u] / p[u][u]);
    p = p - at::outer(p.select(1, u), p[u] / p[u][u]);
  }
  return w_DA;
}

TEST(RefitSolve, ObsWeightsAreThoseOfRemovingOneByOne) {
  const at::Tensor x = drawn(40, kInputs, 17), w_DA = drawn(kOutputs, kInputs, 18);
  const at::Tensor a_AA = at::matmul(x.t(), x) / 40;
  at::Tensor damped_AA = a_AA.clone();
  damped_AA.diagonal().mul_(1.01);
  const std::vector<std::int64_t> kept{0, 3, 4, 6};
  const at::Tensor kept_K = at::tensor(kept, at::kLong);
  const at::Tensor found = obs_weights(a_AA.index_select(0, kept_K), kept_K, w_DA.t());
  expect_close(found, surgeon(damped_AA, {5, 1, 2}, w_DA).index_select(1, kept_K).t(), 1e-10);
}

TEST(RefitSolve, ObsLeavesADeadInputAsItIs) {
  at::Tensor x = drawn(40, kInputs, 19);
  x.select(1, 3).zero_();
  const at::Tensor a_AA = at::matmul(x.t(), x) / 40, w_DA = drawn(kOutputs, kInputs, 20);
  const at::Tensor kept_K = at::tensor({0, 3, 4, 6}, at::kLong);
  const at::Tensor found = obs_weights(a_AA.index_select(0, kept_K), kept_K, w_DA.t());
  EXPECT_TRUE(at::isfinite(found).all().item<bool>());
  EXPECT_TRUE(at::equal(found[1], w_DA.select(1, 3)));
}

}  // namespace
}  // namespace espalier
