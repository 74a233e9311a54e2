#include "espalier/score/statistics.h"

#include <limits>

#include <gtest/gtest.h>

#include "model_case.h"

namespace espalier {
namespace {

using testing::ModelCase;

// Ranks share the data here; each has the whole model.
TEST(TaylorStatistics, ARankWithABrokenGradientObjectsAfterTheReduction) {
  const ProcessGrid grid(testing::world(), 1);
  const RankGroup& world = grid.data();
  const RankGroup self(make_self_communicator());
  const ModelCase c(ModelFamily::llama);
  const CausalLM model = c.load(dense_widths(c.config()), self);
  StatisticsOptions options;
  options.scored = ScoredHalves(static_cast<std::size_t>(model.layers()), {true, true});
  for (const Reduction reduction : {Reduction::gradients, Reduction::scores}) {
    options.reduction = reduction;
    const std::unique_ptr<Statistics> statistics = make_statistics(model, options);
    at::Tensor gradient = at::ones_like(model.layer(1).up_FD);
    if (world.rank() == world.size() - 1)
      gradient.view(-1)[3] = std::numeric_limits<double>::quiet_NaN();
    HalfGradients observed;
    observed.weight_gradients.push_back({TensorRole::up, {}, {}, gradient});
    statistics->observe(1, UnitKind::mlp, observed);
    Problems problems;
    EXPECT_NO_THROW(problems = statistics->reduce(grid, {0, model.layers()}))
        << "the others would wait for ever";
    if (reduction == Reduction::scores && world.rank() != world.size() - 1) {
      EXPECT_TRUE(problems.empty()) << "another rank's gradient";
      continue;
    }
    ASSERT_EQ(problems.list().size(), 1u);
    EXPECT_EQ(problems.list().front().code, ExitCode::bad_content);
    EXPECT_NE(testing::text_of(problems).find("model.layers.1.mlp.up_proj.weight"),
              std::string::npos)
        << testing::text_of(problems);
  }
}

}  // namespace
}  // namespace espalier
