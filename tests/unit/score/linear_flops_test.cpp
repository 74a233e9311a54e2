#include "espalier/score/linear_flops.h"

#include <gtest/gtest.h>

#include "support/random_model.h"

namespace espalier {
namespace {

/// Per layer q 8 x 8, k and v 4 x 8, o 8 x 8, gate, up and down 6 x 8: 192 and 144 weights.
ModelConfig config() {
  ModelConfig config = testing::small_config(ModelFamily::llama);
  config.hidden = 8;
  config.layers = 2;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 2;
  config.channels = 6;
  config.vocabulary = 10;
  config.sliding_window.assign(2, 0);
  return config;
}

PassShape shape(Criterion criterion) {
  PassShape shape;
  shape.widths = dense_widths(config());
  shape.scored = {{true, true}, {true, true}};
  shape.criterion = criterion;
  shape.tokens = 10;
  return shape;
}

constexpr double kForward = 2 * 10 * 2 * (192 + 144);
constexpr double kHead = 2 * 9 * 10 * 8;

void expect(const LinearFlops& flops, double forward, double input, double weight,
            double recompute) {
  EXPECT_EQ(flops.forward, forward);
  EXPECT_EQ(flops.input_gradients, input);
  EXPECT_EQ(flops.weight_gradients, weight);
  EXPECT_EQ(flops.recompute, recompute);
  EXPECT_EQ(flops.needed(), forward + input + weight);
}

TEST(LinearFlops, OfGates) {
  // Below the lowest gate, which o_proj reads, nothing is asked for.
  expect(linear_flops(config(), shape(Criterion::taylor_gate), 9), kForward + kHead,
         20 * (64 + 144 + 336) + kHead, 0, kForward);
}

TEST(LinearFlops, OfWeights) {
  PassShape taylor = shape(Criterion::taylor);
  // k and v fall with the last head that reads them, and are not scored.
  expect(linear_flops(config(), taylor, 9), kForward + kHead, 20 * (64 + 144 + 336) + kHead,
         20 * 2 * (64 + 64 + 144), kForward);
  taylor.unit = AttentionUnit::kv_group;
  EXPECT_EQ(linear_flops(config(), taylor, 9).weight_gradients, 20 * 2 * 336);
}

TEST(LinearFlops, FromTheLowestScoredHalfUp) {
  PassShape taylor = shape(Criterion::taylor);
  taylor.scored[0] = {false, false};
  expect(linear_flops(config(), taylor, 9), kForward + kHead, 20 * (64 + 144) + kHead,
         20 * (64 + 64 + 144), 20 * 336);
  taylor.scored[0] = {false, true};
  expect(linear_flops(config(), taylor, 9), kForward + kHead, 20 * (48 + 336) + kHead,
         20 * (144 + 64 + 64 + 144), 20 * (144 + 336));
  taylor.scored = {{false, false}, {false, false}};
  expect(linear_flops(config(), taylor, 9), kForward + kHead, 0, 0, 0);
}

TEST(LinearFlops, LayersRunAgainWhole) {
  PassShape taylor = shape(Criterion::taylor);
  taylor.scored[0] = {false, true};
  LinearFlops flops = linear_flops(config(), taylor, 9);
  EXPECT_EQ(flops.recompute, 20 * (144 + 336));
  const double needed = flops.needed();
  taylor.layer_by_layer = true;
  flops = linear_flops(config(), taylor, 9);
  EXPECT_EQ(flops.recompute, 20 * 2 * 336);
  EXPECT_EQ(flops.needed(), needed);
  taylor.scored[0] = {false, false};
  EXPECT_EQ(linear_flops(config(), taylor, 9).recompute, 20 * 336);
  taylor.scored = {{false, false}, {false, false}};
  EXPECT_EQ(linear_flops(config(), taylor, 9).recompute, 0);
}

TEST(LinearFlops, OfWhatOnlyLooks) {
  for (const Criterion criterion :
       {Criterion::wanda_sp, Criterion::flap, Criterion::magnitude, Criterion::random})
    expect(linear_flops(config(), shape(criterion), 9), kForward + kHead, 0, 0, 0);
}

TEST(LinearFlops, ShrinkWithTheWidths) {
  PassShape gate = shape(Criterion::taylor_gate);
  gate.widths.layers[1] = {{0, 1, 3}, {0, 1}, {2, 5}};
  const double layer = 8 * 6 + 2 * 4 * 8 + 6 * 8 + 3 * 2 * 8;
  EXPECT_EQ(linear_flops(config(), gate, 9).forward, 20 * (336 + layer) + kHead);
  gate.widths.layers[1] = {{}, {}, {}};
  EXPECT_EQ(linear_flops(config(), gate, 9).forward, 20 * 336 + kHead);
}

/// 7 B parameters at 2,048 tokens, from the formula 2 (L layer + V d) worked out by hand.
TEST(LinearFlops, OfAKnownModel) {
  ModelConfig qwen = config();
  qwen.family = ModelFamily::qwen2;
  qwen.hidden = 3584;
  qwen.layers = 28;
  qwen.heads = 28;
  qwen.kv_heads = 4;
  qwen.head_dim = 128;
  qwen.channels = 18944;
  qwen.vocabulary = 152064;
  qwen.sliding_window.assign(28, 0);
  PassShape pass = shape(Criterion::taylor_gate);
  pass.widths = dense_widths(qwen);
  pass.scored.assign(28, {true, true});
  pass.tokens = 1;
  // A layer: 2 x 3584 x 3584 + 2 x 512 x 3584 + 3 x 18944 x 3584.
  EXPECT_EQ(linear_flops(qwen, pass, 1).forward, 2.0 * (28 * 233046016.0 + 544997376.0));
}

TEST(LinearFlops, NeedsAreThoseOfTheCriteria) {
  const ModelConfig small = config();
  std::vector<ShardWidths> shards{shard_of(small, dense_widths(small), 1, 0)};
  const CausalLM model(small, std::move(shards), 0, {});
  StatisticsOptions options;
  options.scored.assign(2, {true, true});
  for (const Criterion criterion :
       {Criterion::taylor, Criterion::taylor_gate, Criterion::taylor_gate_sample,
        Criterion::wanda_sp, Criterion::flap, Criterion::magnitude, Criterion::random}) {
    options.criterion = criterion;
    EXPECT_EQ(needs_of(criterion), make_statistics(model, options)->needs()) << name_of(criterion);
  }
}

}  // namespace
}  // namespace espalier
