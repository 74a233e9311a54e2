#include "espalier/model/work_meter.h"

#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "espalier/model/random_weights.h"
#include "espalier/score/linear_flops.h"
#include "espalier/score/score.h"
#include "model_case.h"

namespace espalier {
namespace {

TEST(WorkMeter, CountsProductsOfMatrices) {
  const at::Tensor x = at::ones({2, 5, 7}), w = at::ones({3, 7}), b = at::ones({3});
  const WorkMeter meter;
  EXPECT_EQ(meter.work().flops, 0);
  at::linear(x, w);
  EXPECT_EQ(meter.work().flops, 2 * 10 * 7 * 3);
  at::linear(x, w, b);
  EXPECT_EQ(meter.work().flops, 2 * 2 * 10 * 7 * 3);
  at::ones({10, 3}).addmm_(x.flatten(0, 1), w.t());
  EXPECT_EQ(meter.work().flops, 3 * 2 * 10 * 7 * 3);
  at::bmm(at::ones({4, 5, 6}), at::ones({4, 6, 5}));
  x + x;
  EXPECT_EQ(meter.work().flops, 3 * 2 * 10 * 7 * 3);
  EXPECT_GT(meter.work().forward_seconds, 0);
  EXPECT_GT(meter.work().attention_seconds, 0);
  EXPECT_EQ(meter.work().backward_seconds, 0);
}

TEST(WorkMeter, CountsBothWays) {
  const c10::AutoGradMode with_gradients(true);
  const at::Tensor x = at::ones({10, 7}).requires_grad_(true),
                   w = at::ones({3, 7}).requires_grad_(true);
  const WorkMeter meter;
  at::linear(x, w).sum().backward();
  EXPECT_EQ(meter.work().flops, 3 * 2 * 10 * 7 * 3);
  EXPECT_GT(meter.work().backward_seconds, 0);
}

TEST(WorkMeter, IsOneAtATime) {
  {
    const WorkMeter meter;
    at::mm(at::ones({2, 3}), at::ones({3, 4}));
    EXPECT_THROW(WorkMeter(), Error);
    EXPECT_EQ(meter.work().flops, 2 * 2 * 3 * 4);
  }
  const WorkMeter next;
  EXPECT_EQ(next.work().flops, 0);
}

/// What is computed of a pass is what it asks for, over all tensor ranks together: with graphs
/// kept, and with every half run again.
class PassFlopsTest : public ::testing::TestWithParam<ModelFamily> {
 protected:
  double counted(const CausalLM& model, const TokenBatch& batch, const PassShape& pass,
                 std::int64_t graph_bytes) {
    StatisticsOptions what;
    what.criterion = pass.criterion;
    what.unit = pass.unit;
    what.scored = pass.scored;
    const std::unique_ptr<Statistics> statistics = make_statistics(model, what);
    const WorkMeter meter;
    if (statistics->needs() == Needs::gradients)
      blockwise_backward(model, batch, {lowest_half(pass.scored), graph_bytes}, *statistics,
                         testing::world_group());
    else
      observed_losses(model, batch, *statistics, testing::world_group());
    double flops = meter.work().flops;
    testing::world().all_reduce_sum(std::span<double>(&flops, 1));
    return flops;
  }
};

TEST_P(PassFlopsTest, AreWhatIsComputed) {
  const testing::ModelCase made(GetParam());
  const ModelConfig& config = made.config();
  const std::int64_t predictions = made.batch().positions_N.numel();
  for (const ModelWidths& widths : {dense_widths(config), testing::random_widths(config, 5)}) {
    const CausalLM model = made.load(widths, testing::world_group());
    PassShape pass;
    pass.widths = widths;
    pass.tokens = made.batch().tokens_BT.numel();
    for (const bool attention_first : {true, false})
      for (const Criterion criterion :
           {Criterion::taylor, Criterion::taylor_gate, Criterion::flap}) {
        pass.criterion = criterion;
        pass.scored = all_halves(config);
        if (!attention_first) pass.scored[0] = {false, true};
        const LinearFlops flops = linear_flops(config, pass, predictions);
        const std::string what = fmt::format("{} {} {}", name_of(criterion), attention_first,
                                             widths == dense_widths(config));
        EXPECT_EQ(counted(model, made.batch(), pass, std::int64_t{1} << 30), flops.needed())
            << what;
        EXPECT_EQ(counted(model, made.batch(), pass, 0), flops.needed() + flops.recompute) << what;
      }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, PassFlopsTest, ::testing::ValuesIn(testing::all_families()),
                         [](const auto& family) { return std::string(name_of(family.param)); });

class RandomWeightsTest : public ::testing::TestWithParam<ModelFamily> {};

TEST_P(RandomWeightsTest, HaveTheShapesOfALoadedModel) {
  const testing::ModelCase made(GetParam());
  RankGroup& tensor = testing::world_group();
  for (const ModelWidths& widths :
       {dense_widths(made.config()), testing::random_widths(made.config(), 5)}) {
    CausalLM loaded = made.load(widths, tensor, at::kFloat);
    CausalLM random =
        random_causal_lm(made.config(), widths, loaded.options(), tensor.size(), tensor.rank());
    EXPECT_EQ(random.shards(), loaded.shards());
    EXPECT_EQ(random.weight_bytes(), loaded.weight_bytes());
    for (const TensorSpec& spec : tensor_catalog(made.config())) {
      EXPECT_EQ(random.tensor(spec).sizes(), loaded.tensor(spec).sizes()) << spec.name;
      EXPECT_EQ(random.tensor(spec).dtype(), loaded.tensor(spec).dtype()) << spec.name;
    }
    const TokenLosses losses = token_losses(random, made.batch(), tensor);
    EXPECT_TRUE(losses.problems.empty());
    // Small weights know nothing: every token is about as likely as any other.
    EXPECT_NEAR(losses.nll_N.mean().item<double>(),
                std::log(static_cast<double>(made.config().vocabulary)), 0.5);
  }
}

INSTANTIATE_TEST_SUITE_P(Families, RandomWeightsTest, ::testing::ValuesIn(testing::all_families()),
                         [](const auto& family) { return std::string(name_of(family.param)); });

}  // namespace
}  // namespace espalier
