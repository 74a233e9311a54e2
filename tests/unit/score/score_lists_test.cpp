#include "espalier/score/score_lists.h"

#include <gtest/gtest.h>

#include "espalier/core/error.h"

namespace espalier {
namespace {

using Rows = std::vector<std::vector<double>>;

ModelConfig config() {
  ModelConfig config;
  config.layers = 3;
  config.hidden = 10;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 5;
  config.channels = 6;
  return config;
}

RawBlock heads(std::int32_t layer, std::vector<std::int32_t> units, Rows values) {
  RawBlock block{layer, UnitKind::attention, std::move(units), {}, std::move(values)};
  block.heads.assign(block.units.size(), 1);
  return block;
}
RawBlock channels(std::int32_t layer, std::vector<std::int32_t> units, Rows values) {
  return {layer, UnitKind::mlp, std::move(units), {}, std::move(values)};
}

void expect_scores(const char* name, const Scoring& scoring, const RawBlock& block,
                   const std::vector<double>& scores) {
  const ScoreLists lists = make_lists(config(), std::span(&block, 1), scoring);
  const bool is_mlp = block.kind == UnitKind::mlp;
  const ScoreList& list = is_mlp ? lists.mlp : lists.attention;
  EXPECT_EQ(list.score, scores) << name;
  EXPECT_EQ(list.raw, block.values) << name;
  EXPECT_EQ(list.unit, block.units) << name;
  const ScoreList& other = is_mlp ? lists.attention : lists.mlp;
  EXPECT_TRUE(other.score.empty()) << name;
  EXPECT_EQ(other.raw.size(), block.values.size()) << "a row without units: " << name;
}

TEST(ScoreLists, Table) {
  const auto unit = AttentionUnit::query_head;
  const auto pooled = Combine::pooled, mean = Combine::weighted_mean;
  const auto none = Normalization::none, gisp = Normalization::gisp;
  const RawBlock one_row = channels(0, {1, 4}, {{3, 5}});
  const RawBlock two_rows = channels(0, {0, 5}, {{4, 0}, {8, 2}});
  expect_scores("as it is", {none, unit, pooled, {}}, one_row, {3, 5});
  expect_scores("pooled knows no weights", {none, unit, pooled, {7, 9}}, one_row, {3, 5});
  expect_scores("mean of two rows", {none, unit, mean, {1, 3}}, two_rows, {7, 1.5});
  expect_scores("weights need not add up to one", {none, unit, mean, {10, 30}}, two_rows, {7, 1.5});
  expect_scores("a weight of zero", {none, unit, mean, {0, 2}}, two_rows, {8, 2});
  expect_scores("divided by the dense width", {gisp, unit, pooled, {}}, channels(0, {0}, {{36}}),
                {2});
  expect_scores("heads by their size", {gisp, unit, pooled, {}}, heads(0, {2}, {{400}}), {2});
  expect_scores("normalised before the mean", {Normalization::block_mean, unit, mean, {1, 1}},
                channels(0, {0, 1}, {{1, 3}, {300, 100}}), {1, 1});
}

TEST(ScoreLists, DomainsAreCombinedOverAllBlocks) {
  const std::vector<RawBlock> blocks{heads(0, {0, 3}, {{1, 4}, {9, 9}, {100, 100}}),
                                     channels(0, {5, 6}, {{4, 7}, {1, 2}, {100, 100}})};
  const std::vector<std::pair<Combine, std::vector<double>>> expected{
      {Combine::max, {9, 9, 4, 7}},
      // Ranks 1, 2.5, 2.5, 4 and 3.5, 3.5, 1, 2 with weights 1 and 3.
      {Combine::rank_mean, {11.5 / 4, 13.0 / 4, 5.5 / 4, 10.0 / 4}},
      // Means 4 and 5.25.
      {Combine::worst_domain, {9 / 5.25, 9 / 5.25, 1, 1.75}},
  };
  for (const auto& [combine, scores] : expected) {
    const ScoreLists lists = make_lists(
        config(), blocks, {Normalization::none, AttentionUnit::query_head, combine, {1, 3, 0}});
    const std::vector<double> found{lists.attention.score[0], lists.attention.score[1],
                                    lists.mlp.score[0], lists.mlp.score[1]};
    EXPECT_EQ(found, scores) << "a domain of weight 0 takes no part";
  }
}

TEST(ScoreLists, BlocksFollowOneAnotherByKind) {
  const std::vector<RawBlock> blocks{heads(0, {0, 3}, {{1, 2}}), heads(2, {1}, {{3}}),
                                     channels(0, {5}, {{4}}), channels(1, {}, {{}}),
                                     channels(2, {0, 1}, {{5, 6}})};
  const ScoreLists lists = make_lists(
      config(), blocks, {Normalization::none, AttentionUnit::query_head, Combine::pooled, {}});
  EXPECT_EQ(lists.attention.layer, (std::vector<std::int32_t>{0, 0, 2}));
  EXPECT_EQ(lists.attention.unit, (std::vector<std::int32_t>{0, 3, 1}));
  EXPECT_EQ(lists.attention.score, (std::vector<double>{1, 2, 3}));
  EXPECT_EQ(lists.mlp.layer, (std::vector<std::int32_t>{0, 2, 2}));
  EXPECT_EQ(lists.mlp.raw, (Rows{{4, 5, 6}}));
}

TEST(ScoreLists, ABlockIsNormalisedByItself) {
  const std::vector<RawBlock> blocks{channels(0, {0, 1}, {{1, 3}}),
                                     channels(1, {0, 1}, {{100, 300}})};
  const ScoreLists lists =
      make_lists(config(), blocks,
                 {Normalization::block_mean, AttentionUnit::query_head, Combine::pooled, {}});
  EXPECT_EQ(lists.mlp.score, (std::vector<double>{0.5, 1.5, 0.5, 1.5}));
}

TEST(ScoreLists, RowsAndWeightsMustMatch) {
  const std::vector<RawBlock> blocks{channels(0, {0}, {{1}, {2}})};
  for (const Scoring& scoring :
       {Scoring{Normalization::none, AttentionUnit::query_head, Combine::pooled, {}},
        Scoring{Normalization::none, AttentionUnit::query_head, Combine::weighted_mean, {1}},
        Scoring{Normalization::none, AttentionUnit::query_head, Combine::weighted_mean, {1, 2, 3}}})
    EXPECT_THROW((void)make_lists(config(), blocks, scoring), Error);
}

}  // namespace
}  // namespace espalier
