// The CPU is the oracle of the GPU: the same checkpoint, batch and criteria on both devices, in
// float32.

#include <cmath>

#include <ATen/Context.h>
#include <gtest/gtest.h>

#include "espalier/score/statistics.h"
#include "unit/model/model_case.h"

namespace espalier {
namespace {

using testing::ModelCase;

class Gpu : public ::testing::TestWithParam<ModelFamily> {
 protected:
  void SetUp() override {
    if (!at::globalContext().hasCUDA()) GTEST_SKIP() << "no GPU is visible to this process";
  }
};

CausalLM load_on(const ModelCase& c, at::Device device, const RankGroup& tensor) {
  ComputeOptions options;
  options.dtype = at::kFloat;
  options.device = device;
  return load_causal_lm(c.config(), dense_widths(c.config()), c.source(), options, tensor.size(),
                        tensor.rank());
}

TokenBatch batch_on(const TokenBatch& batch, at::Device device) {
  return {batch.tokens_BT.to(device), batch.positions_N.to(device), batch.targets_N.to(device),
          batch.weights_N.to(device)};
}

UnitSums sums_on(const ModelCase& c, at::Device device, Criterion criterion, at::Tensor& losses) {
  RankGroup& world = testing::world_group();
  const CausalLM model = load_on(c, device, world);
  StatisticsOptions options;
  options.criterion = criterion;
  options.scored.assign(static_cast<std::size_t>(model.layers()), {true, true});
  const std::unique_ptr<Statistics> statistics = make_statistics(model, options);
  losses = blockwise_backward(model, batch_on(c.batch(), device), {}, *statistics, world).nll_N;
  EXPECT_TRUE(
      statistics->reduce(ProcessGrid(testing::world(), world.size()), {0, model.layers()}).empty());
  return statistics->finish({{1.0}, {0.0}}, {0, model.layers()});
}

void expect_same(const UnitSums& a, const UnitSums& b) {
  double scale = 0;
  for (const auto& layer : a)
    for (const auto& values : layer)
      for (const double v : values) scale = std::max(scale, std::abs(v));
  // Sums of up to 24 x 13 x 18 float32 terms in another order.
  const double tolerance = 2 * 24 * 13 * 18 * 1.2e-7 * scale;
  for (std::size_t l = 0; l < a.size(); ++l)
    for (std::size_t k = 0; k < 2; ++k)
      for (std::size_t u = 0; u < a[l][k].size(); ++u)
        EXPECT_NEAR(a[l][k][u], b[l][k][u], tolerance) << "layer " << l;
}

TEST_P(Gpu, LossesAndScoresEqualTheCpus) {
  const ModelCase c(GetParam());
  for (const Criterion criterion :
       {Criterion::taylor, Criterion::taylor_gate, Criterion::taylor_gate_sample}) {
    at::Tensor on_cpu, on_gpu;
    const UnitSums cpu = sums_on(c, at::kCPU, criterion, on_cpu);
    const UnitSums gpu = sums_on(c, at::Device(at::kCUDA, 0), criterion, on_gpu);
    EXPECT_LE((on_cpu - on_gpu).abs().max().item<double>(),
              2 * 24 * 37 * 1.2e-7 * on_cpu.abs().max().item<double>());
    expect_same(cpu, gpu);
  }
}

TEST_P(Gpu, SlicingLiveEqualsSlicingOnLoad) {
  RankGroup& world = testing::world_group();
  const ModelCase c(GetParam());
  const ModelWidths kept = testing::random_widths(c.config(), 2);
  CausalLM live = load_on(c, at::Device(at::kCUDA, 0), world);
  live.apply(kept);
  CausalLM cpu = load_on(c, at::kCPU, world);
  cpu.apply(kept);
  const at::Tensor on_gpu =
      token_losses(live, batch_on(c.batch(), at::Device(at::kCUDA, 0)), world).nll_N;
  const at::Tensor on_cpu = token_losses(cpu, c.batch(), world).nll_N;
  EXPECT_LE((on_cpu - on_gpu).abs().max().item<double>(),
            2 * 24 * 37 * 1.2e-7 * on_cpu.abs().max().item<double>());
}

INSTANTIATE_TEST_SUITE_P(Families, Gpu, ::testing::ValuesIn(testing::all_families()),
                         [](const auto& test) { return std::string(name_of(test.param)); });

}  // namespace
}  // namespace espalier
