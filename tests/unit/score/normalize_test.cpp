#include "espalier/score/normalize.h"

#include <cmath>
#include <limits>

#include <gtest/gtest.h>

namespace espalier {
namespace {

ModelConfig config_of(std::int64_t heads, std::int64_t kv_heads) {
  ModelConfig config;
  config.hidden = 10;
  config.heads = heads;
  config.kv_heads = kv_heads;
  config.head_dim = 3;
  config.channels = 7;
  return config;
}

std::vector<double> one(const ModelConfig& config, Normalization n, AttentionUnit unit,
                        UnitKind kind, std::vector<double> values) {
  const std::vector<std::int64_t> heads(values.size(),
                                        unit == AttentionUnit::kv_group ? config.group_size() : 1);
  return normalized(config, n, unit, kind, values, heads);
}

TEST(Normalize, DivisorsByHand) {
  const ModelConfig gqa = config_of(8, 2), mha = config_of(4, 4);
  const auto head = AttentionUnit::query_head, group = AttentionUnit::kv_group;
  EXPECT_DOUBLE_EQ(one(gqa, Normalization::gisp, head, UnitKind::attention, {120})[0], 1.0)
      << "4 x 3 x 10, also grouped";
  EXPECT_DOUBLE_EQ(one(gqa, Normalization::gisp, group, UnitKind::attention, {120})[0], 1.0);
  EXPECT_DOUBLE_EQ(one(gqa, Normalization::gisp, head, UnitKind::mlp, {21})[0], 1.0)
      << "3 x 7 channels";
  EXPECT_DOUBLE_EQ(one(gqa, Normalization::param_mean, head, UnitKind::attention, {60})[0], 1.0)
      << "2 E D";
  EXPECT_DOUBLE_EQ(one(mha, Normalization::param_mean, head, UnitKind::attention, {120})[0], 1.0)
      << "4 E D";
  EXPECT_DOUBLE_EQ(one(gqa, Normalization::param_mean, group, UnitKind::attention, {300})[0], 1.0)
      << "(2 x 4 + 2) E D";
  EXPECT_DOUBLE_EQ(one(gqa, Normalization::param_mean, head, UnitKind::mlp, {30})[0], 1.0) << "3 D";
  EXPECT_DOUBLE_EQ(one(gqa, Normalization::none, head, UnitKind::mlp, {5})[0], 5.0);
}

TEST(Normalize, CostsByHand) {
  const auto head = AttentionUnit::query_head, group = AttentionUnit::kv_group;
  const auto cost = [](const ModelConfig& config, AttentionUnit unit, UnitKind kind) {
    return 1 / one(config, Normalization::cost, unit, kind, {1})[0];
  };
  ModelConfig gqa = config_of(8, 2);
  EXPECT_DOUBLE_EQ(cost(gqa, head, UnitKind::mlp), 30) << "3 D";
  EXPECT_DOUBLE_EQ(cost(gqa, head, UnitKind::attention), 60 + 60 * 2.0 / 8)
      << "2 E D, and a quarter of a KV head's 2 E D";
  EXPECT_DOUBLE_EQ(cost(gqa, group, UnitKind::attention), 4 * 60 + 60);
  EXPECT_DOUBLE_EQ(cost(config_of(4, 4), head, UnitKind::attention), 120) << "4 E D";
  gqa.family = ModelFamily::qwen2;
  gqa.qkv_bias = true;
  EXPECT_DOUBLE_EQ(cost(gqa, head, UnitKind::attention), 63 + 66 * 2.0 / 8) << "with biases";
  EXPECT_DOUBLE_EQ(cost(gqa, group, UnitKind::attention), 4 * 63 + 66);
  const double never = std::numeric_limits<double>::infinity();
  EXPECT_EQ(one(gqa, Normalization::cost, head, UnitKind::mlp, {never})[0], never);
}

TEST(Normalize, BlocksByHand) {
  const ModelConfig config = config_of(8, 2);
  const auto block = [&](Normalization n, std::vector<double> values) {
    return one(config, n, AttentionUnit::query_head, UnitKind::mlp, std::move(values));
  };
  EXPECT_EQ(block(Normalization::block_mean, {1, 2, 3}), (std::vector<double>{0.5, 1, 1.5}));
  EXPECT_EQ(block(Normalization::block_l2, {3, 4}), (std::vector<double>{0.6, 0.8}));
  EXPECT_EQ(block(Normalization::block_standardize, {1, 2, 3}), (std::vector<double>{-1, 0, 1}))
      << "n - 1";
}

TEST(Normalize, DegenerateBlocksStayFinite) {
  const ModelConfig config = config_of(8, 2);
  for (const Normalization n :
       {Normalization::block_mean, Normalization::block_l2, Normalization::block_standardize}) {
    for (const std::vector<double>& values :
         {std::vector<double>{}, std::vector<double>{0, 0}, std::vector<double>{2}})
      for (const double v : one(config, n, AttentionUnit::query_head, UnitKind::mlp, values))
        EXPECT_TRUE(std::isfinite(v));
    const std::vector<double> equal =
        one(config, n, AttentionUnit::query_head, UnitKind::mlp, {2, 2});
    EXPECT_EQ(equal[0], equal[1]);
  }
  EXPECT_EQ(one(config, Normalization::block_standardize, AttentionUnit::query_head, UnitKind::mlp,
                {5})[0],
            0.0);
}

}  // namespace
}  // namespace espalier
