// What float16 needs: coefficients of one token in 2^14 or 2^24 must not reach it as they are.
#include <cmath>
#include <map>

#include <gtest/gtest.h>

#include "espalier/prune/tensor_catalog.h"
#include "espalier/score/statistics.h"
#include "model_case.h"

namespace espalier {
namespace {

using testing::ModelCase;

constexpr Criterion kWithGradients[] = {Criterion::taylor, Criterion::taylor_gate,
                                        Criterion::taylor_gate_sample};

ScoredHalves every_half(const CausalLM& model) {
  return ScoredHalves(static_cast<std::size_t>(model.layers()), {true, true});
}

/// This rank's scores of one batch whose coefficients are multiplied by `factor`.
UnitSums sums_of(const CausalLM& model, TokenBatch batch, double factor, Criterion criterion,
                 const RankGroup& world) {
  StatisticsOptions options;
  options.criterion = criterion;
  options.scored = every_half(model);
  const std::unique_ptr<Statistics> statistics = make_statistics(model, options);
  batch.weights_N = batch.weights_N * factor;
  blockwise_backward(model, batch, {}, *statistics, world);
  EXPECT_TRUE(
      statistics->reduce(ProcessGrid(testing::world(), world.size()), {0, model.layers()}).empty());
  return statistics->finish({{1.0}, {0.0}}, {0, model.layers()});
}

UnitSums times(UnitSums sums, double factor) {
  for (auto& layer : sums)
    for (auto& values : layer)
      for (double& value : values) value *= factor;
  return sums;
}

TEST(LossScale, ScoresFollowTheCoefficientsExactly) {
  RankGroup& world = testing::world_group();
  const ModelCase c(ModelFamily::qwen2);
  for (const at::ScalarType dtype : {at::kHalf, at::kBFloat16, at::kFloat, at::kDouble}) {
    const CausalLM model = c.load(dense_widths(c.config()), world, dtype);
    for (const Criterion criterion : kWithGradients) {
      const UnitSums whole = sums_of(model, c.batch(), 1, criterion, world);
      for (const int exponent : {-14, -24})
        EXPECT_EQ(sums_of(model, c.batch(), std::ldexp(1, exponent), criterion, world),
                  times(whole, std::ldexp(1, exponent)))
            << name_of(criterion) << " in " << dtype << " at 2^" << exponent;
    }
  }
}

/// Residuals so small that the last norm's gradient is large, and a head that makes it larger: with
/// coefficients of 1 it leaves the range of float16, with 2^-10 it does not.
void make_steep(CausalLM& model) {
  for (const TensorSpec& spec : tensor_catalog(model.config())) {
    at::Tensor& t = model.tensor(spec);
    if (!t.defined()) continue;
    if (spec.role == TensorRole::embedding || spec.role == TensorRole::o ||
        spec.role == TensorRole::down)
      t.mul_(std::ldexp(1, -10));
    if (spec.role == TensorRole::head) t.mul_(std::ldexp(1, 7));
  }
}

/// Counts how often a half was shown, and at which scale.
class Counter final : public BackwardObserver {
 public:
  bool wants_gate(std::int64_t, UnitKind) const override { return true; }
  std::vector<TensorRole> wants_weights(std::int64_t, UnitKind) const override { return {}; }
  void observe(std::int64_t layer, UnitKind half, const HalfGradients& g) override {
    scales[{layer, half}].push_back(g.scale);
    EXPECT_TRUE(at::isfinite(g.gate_gradient).all().item<bool>());
  }
  std::map<std::pair<std::int64_t, UnitKind>, std::vector<double>> scales;
};

double relative_error(const UnitSums& found, const UnitSums& truth) {
  double wrong = 0, size = 0;
  for (std::size_t l = 0; l < truth.size(); ++l)
    for (std::size_t k = 0; k < 2; ++k)
      for (std::size_t u = 0; u < truth[l][k].size(); ++u) {
        wrong += std::pow(found[l][k][u] - truth[l][k][u], 2);
        size += std::pow(truth[l][k][u], 2);
      }
  return size == 0 ? 0 : std::sqrt(wrong / size);
}

TEST(LossScale, AnOverflowIsRepeatedAtASmallerScale) {
  RankGroup& world = testing::world_group();
  const ModelCase c(ModelFamily::llama);
  TokenBatch batch = c.batch();
  batch.weights_N = batch.weights_N * std::ldexp(1, -12);
  std::map<at::ScalarType, std::map<Criterion, double>> error;
  for (const at::ScalarType dtype : {at::kHalf, at::kBFloat16}) {
    CausalLM model = c.load(dense_widths(c.config()), world, dtype);
    make_steep(model);
    CausalLM exact = c.load(dense_widths(c.config()), world);
    for (const TensorSpec& spec : tensor_catalog(c.config()))
      exact.tensor(spec).copy_(model.tensor(spec));
    Counter counter;
    blockwise_backward(model, batch, {}, counter, world);
    for (const auto& [half, scales] : counter.scales) {
      ASSERT_EQ(scales.size(), 1u) << "each half is shown once";
      // What overflows is the gradient below the last MLP, whose own gate was seen before.
      const double first = half == std::pair<std::int64_t, UnitKind>{2, UnitKind::mlp} ? 4096 : 16;
      EXPECT_EQ(scales[0], dtype == at::kHalf ? first : 1) << "2^12, and 2^4 below it";
    }
    for (const Criterion criterion : kWithGradients)
      error[dtype][criterion] = relative_error(sums_of(model, batch, 1, criterion, world),
                                               sums_of(exact, batch, 1, criterion, world));
  }
  // float16 keeps three bits more than bfloat16: with its range mended it must be the better one.
  for (const Criterion criterion : kWithGradients)
    if (error[at::kBFloat16][criterion] > 0) {
      EXPECT_LT(error[at::kHalf][criterion], error[at::kBFloat16][criterion] / 2)
          << name_of(criterion);
    }
}

TEST(LossScale, WhatOverflowsAtItsOwnSizeIsAnError) {
  RankGroup& world = testing::world_group();
  const ModelCase c(ModelFamily::llama);
  CausalLM model = c.load(dense_widths(c.config()), world, at::kHalf);
  make_steep(model);
  TokenBatch batch = c.batch();
  batch.origin = "micro-batch 3 of 7";
  Counter counter;
  const Problems problems = blockwise_backward(model, batch, {}, counter, world).problems;
  ASSERT_EQ(problems.list().size(), 1u);
  EXPECT_EQ(problems.list().front().code, ExitCode::bad_content);
  const std::string text = testing::text_of(problems);
  for (const char* word :
       {"a gradient is NaN or infinite", "'model.layers.2.post_attention_layernorm.weight'",
        "MLP of layer 2", "tensor rank", "float16", "micro-batch 3 of 7"})
    EXPECT_NE(text.find(word), std::string::npos) << word << " is not in: " << text;
  EXPECT_EQ(counter.scales.size(), 1u) << "what came before it";
}

}  // namespace
}  // namespace espalier
