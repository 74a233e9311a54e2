#include <gtest/gtest.h>

#include "model_case.h"

namespace espalier {
namespace {

using testing::ModelCase;

/// Zeroes what reads the removed units' output: the meaning of "removed".
void mask(CausalLM& model, const ModelWidths& kept) {
  const std::int64_t E = model.config().head_dim;
  for (std::int64_t l = 0; l < model.layers(); ++l) {
    const LayerWidths& want = kept.layers[static_cast<std::size_t>(l)];
    const LayerWidths& have = model.widths(l);
    for (std::size_t i = 0; i < have.query_heads.size(); ++i)
      if (!std::binary_search(want.query_heads.begin(), want.query_heads.end(),
                              have.query_heads[i]))
        model.layer(l).o_DHE.narrow(1, static_cast<std::int64_t>(i) * E, E).zero_();
    for (std::size_t i = 0; i < have.channels.size(); ++i)
      if (!std::binary_search(want.channels.begin(), want.channels.end(), have.channels[i]))
        model.layer(l).down_DF.select(1, static_cast<std::int64_t>(i)).zero_();
  }
}

void expect_close(const at::Tensor& a, const at::Tensor& b, const char* what) {
  const double scale = a.abs().max().item<double>();
  // Sums of up to hidden x layers terms in another order.
  EXPECT_LE((a - b).abs().max().item<double>(), testing::rounding(24 * 6 * 13, scale)) << what;
}

TEST(Slicing, MaskedDenseEqualsSlicedLiveEqualsSlicedOnLoad) {
  RankGroup& world = testing::world_group();
  for (const ModelFamily family : testing::all_families()) {
    const ModelCase c(family);
    for (const std::uint64_t seed : {1u, 2u, 3u}) {
      const ModelWidths kept = testing::random_widths(c.config(), seed);
      CausalLM masked = c.load(dense_widths(c.config()), world);
      CausalLM live = c.load(dense_widths(c.config()), world);
      mask(masked, kept);
      live.apply(kept);
      const CausalLM loaded = c.load(kept, world);
      const at::Tensor want = token_losses(masked, c.batch(), world).nll_N;
      expect_close(want, token_losses(live, c.batch(), world).nll_N, "live");
      expect_close(want, token_losses(loaded, c.batch(), world).nll_N, "on load");
      EXPECT_LT(live.weight_bytes(), masked.weight_bytes());
    }
  }
}

TEST(Slicing, OutputBiasesStayWholeAndAreAddedOnceOnAnyCut) {
  RankGroup& world = testing::world_group();
  const RankGroup self(make_self_communicator());
  for (const ModelFamily family : testing::all_families()) {
    ModelConfig config = testing::small_config(family);
    config.output_bias = true;
    const ModelCase c(config);
    // Layer 1 has no heads and layer 2 no channels: what they add is the bias alone.
    const ModelWidths kept = testing::random_widths(config, 2);
    const CausalLM whole = c.load(kept, self);
    const at::Tensor want = token_losses(whole, c.batch(), self).nll_N;
    expect_close(want, token_losses(c.load(kept, world), c.batch(), world).nll_N, "cut");
    CausalLM live = c.load(dense_widths(config), world);
    live.apply(kept);
    expect_close(want, token_losses(live, c.batch(), world).nll_N, "live");
    EXPECT_TRUE(at::equal(live.layer(1).o_bias_D, whole.layer(1).o_bias_D));
    // By hand: what the halves without units add is the bias.
    const at::Tensor x_BTD = at::randn({2, 3, config.hidden}, at::kDouble);
    EXPECT_TRUE(at::equal(whole.attention_half(1, x_BTD).partial_BTD,
                          whole.layer(1).o_bias_D.expand({2, 3, config.hidden})));
    EXPECT_TRUE(at::equal(whole.mlp_half(2, x_BTD).partial_BTD,
                          whole.layer(2).down_bias_D.expand({2, 3, config.hidden})));
    CausalLM without = c.load(kept, self);
    without.layer(0).down_bias_D.zero_();
    const at::Tensor difference_BTD =
        whole.mlp_half(0, x_BTD).partial_BTD - without.mlp_half(0, x_BTD).partial_BTD;
    expect_close(whole.layer(0).down_bias_D.expand({2, 3, config.hidden}), difference_BTD, "bias");
  }
}

TEST(Slicing, RebalancingChangesTheCutAndNothingElse) {
  RankGroup& world = testing::world_group();
  const ModelCase c(ModelFamily::qwen2);
  // Only the last ranks' channels fall, who have no more heads than the others: the widest rank is
  // then far above the mean.
  ModelWidths kept = dense_widths(c.config());
  for (LayerWidths& layer : kept.layers) layer.channels.resize(6);
  CausalLM model = c.load(dense_widths(c.config()), world);
  model.apply(kept);
  const at::Tensor before = token_losses(model, c.batch(), world).nll_N;
  const double imbalance_before = imbalance(c.config(), model.shards());
  const bool cut_anew = rebalance(model, c.source(), 1.05);
  EXPECT_EQ(cut_anew, world.size() > 1);
  if (cut_anew) {
    EXPECT_LT(imbalance(c.config(), model.shards()), imbalance_before);
  }
  expect_close(before, token_losses(model, c.batch(), world).nll_N, "rebalanced");
  EXPECT_FALSE(rebalance(model, c.source(), 1.05)) << "a second time nothing is left to gain";
}

TEST(Slicing, CuttingInStepsEqualsCuttingAtOnce) {
  RankGroup& world = testing::world_group();
  const ModelCase c(ModelFamily::qwen3);
  const ModelWidths kept = testing::random_widths(c.config(), 4);
  ModelWidths half = kept;
  for (std::size_t l = 0; l < half.layers.size(); ++l)
    if (l != 1) half.layers[l] = dense_widths(c.config()).layers[l];
  CausalLM model = c.load(dense_widths(c.config()), world);
  model.apply(half);
  model.apply(kept);
  expect_close(token_losses(c.load(kept, world), c.batch(), world).nll_N,
               token_losses(model, c.batch(), world).nll_N, "two steps");
}

}  // namespace
}  // namespace espalier
