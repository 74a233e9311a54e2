#include <chrono>
#include <cmath>
#include <iostream>
#include <limits>
#include <numeric>

#include <gtest/gtest.h>

#include "espalier/core/error.h"
#include "espalier/prune/plan.h"
#include "unit/prune/naive_advance.h"
#include "unit/prune/sample_models.h"

namespace espalier {
namespace {

using testing::Draw;
using testing::drawn_scores;
using testing::NaiveAdvance;
using testing::shape;
using testing::small_gqa;
using Units = std::vector<std::int32_t>;

PruneRules open_rules(const ModelConfig& config) {
  PruneRules rules;
  rules.protected_layer.assign(static_cast<std::size_t>(config.layers), false);
  return rules;
}

/// Scores of a dense model, row by row: [layer][unit].
ScoreList list_of(const std::vector<std::vector<double>>& rows) {
  ScoreList list;
  for (std::size_t layer = 0; layer < rows.size(); ++layer)
    for (std::size_t unit = 0; unit < rows[layer].size(); ++unit) {
      list.layer.push_back(static_cast<std::int32_t>(layer));
      list.unit.push_back(static_cast<std::int32_t>(unit));
      list.score.push_back(rows[layer][unit]);
    }
  return list;
}

ScoreTable table_of(const std::vector<std::vector<double>>& attention,
                    const std::vector<std::vector<double>>& mlp) {
  ScoreTable table;
  table.attention = list_of(attention);
  table.mlp = list_of(mlp);
  return table;
}

/// 2 layers, 4 query heads on 2 KV heads, head_dim 2, hidden 5, 3 channels: 14 units. A head costs
/// 20 parameters and 20 more with its KV head, a channel 15; a layer is 175 with its norms.
ModelConfig tiny() { return shape(2, 5, 4, 2, 2, 3, 7); }

void expect_error(ExitCode code, const std::string& part, const std::function<void()>& call) {
  try {
    call();
    FAIL() << "no error; expected: " << part;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

TEST(Advance, TiesFallByLayerThenKindThenUnit) {
  const ModelConfig config = tiny();
  const ScoreTable scores = table_of({{1, 1, 1, 1}, {1, 1, 1, 1}}, {{1, 1, 1}, {1, 1, 1}});
  const PruningPlan dense = dense_plan(config, AttentionUnit::query_head);
  PruneRules rules = open_rules(config);
  rules.min_heads = 3;  // one head per layer may fall, then two channels
  const Advance step = advance(config, dense, scores, 5.0 / 14, rules, 1);
  EXPECT_EQ(step.plan.attention_order.values,
            (std::vector<std::int64_t>{0, -1, -1, -1, 3, -1, -1, -1}));
  EXPECT_EQ(step.plan.mlp_order.values, (std::vector<std::int64_t>{1, 2, -1, 4, -1, -1}));
  EXPECT_EQ(step.plan.mlp_removed_at.values, (Units{1, 1, -1, 1, -1, -1}));
  EXPECT_EQ(step.removed_heads, 2);
  EXPECT_EQ(step.removed_channels, 3);
  EXPECT_EQ(step.margin_at_cut, 0);
  EXPECT_EQ(step.plan.iteration, 1);
  EXPECT_EQ(dense.removed(), 0);
}

TEST(Advance, StructuresTakeFloorOfNTimesTarget) {
  const ModelConfig config = tiny();
  const ScoreTable scores = table_of({{9, 8, 7, 6}, {5, 4, 3, 2}}, {{20, 21, 22}, {1, 0.5, 23}});
  const PruningPlan dense = dense_plan(config, AttentionUnit::query_head);
  const PruneRules rules = open_rules(config);
  for (int k = 0; k <= 6; ++k) {
    const double ratio = k / 14.0;
    EXPECT_EQ(advance(config, dense, scores, ratio, rules, 1).plan.removed(), k);
    EXPECT_EQ(advance(config, dense, scores, ratio + 0.9 / 14, rules, 1).plan.removed(), k);
  }
  const Advance step = advance(config, dense, scores, 0.3, rules, 1);  // 4.2: 0.5, 1, 2, 3
  EXPECT_EQ(step.plan.mlp_order.values, (std::vector<std::int64_t>{-1, -1, -1, 1, 0, -1}));
  EXPECT_EQ(step.plan.attention_order.values,
            (std::vector<std::int64_t>{-1, -1, -1, -1, -1, -1, 3, 2}));
  EXPECT_DOUBLE_EQ(step.margin_at_cut, 1.0 / 3.0);
}

// 100 * 0.29 is 28.999999999999996 in binary; 29 units are meant.
TEST(Advance, RoundingOfTheTargetTakesNoUnitAway) {
  const ModelConfig config = shape(2, 5, 10, 5, 2, 40, 7);
  const PruneRules rules = open_rules(config);
  const PruningPlan dense = dense_plan(config, AttentionUnit::query_head);
  Draw draw(8);
  const ScoreTable scores = drawn_scores(draw, dense);
  for (int k : {7, 28, 29, 57, 58})
    EXPECT_EQ(advance(config, dense, scores, k / 100.0, rules, 1).plan.removed(), k);
  EXPECT_EQ(advance(config, dense, scores, 0.29, rules, 1).plan.removed(), 29);
}

TEST(Advance, ScoresOfRemovedUnitsCountNoMore) {
  const ModelConfig config = tiny();
  const ScoreTable scores = table_of({{9, 8, 7, 6}, {5, 4, 3, 2}}, {{20, 21, 22}, {1, 0.5, 23}});
  const PruneRules rules = open_rules(config);
  const PruningPlan once =
      advance(config, dense_plan(config, AttentionUnit::query_head), scores, 2.0 / 14, rules, 3)
          .plan;
  const PruningPlan twice = advance(config, once, scores, 4.0 / 14, rules, 5).plan;
  EXPECT_EQ(twice.mlp_removed_at.values, (Units{-1, -1, -1, 3, 3, -1}));
  EXPECT_EQ(twice.attention_removed_at.values, (Units{-1, -1, -1, -1, -1, -1, 5, 5}));
  EXPECT_EQ(twice.attention_order.at(1, 3), 2);
  // A target below what is gone removes nothing.
  const Advance none = advance(config, twice, scores, 1.0 / 14, rules, 6);
  EXPECT_EQ(none.plan.removed(), 4);
  EXPECT_EQ(none.margin_at_cut, 0);
}

TEST(Advance, FloorsPassOverAndTakeTheNext) {
  const ModelConfig config = tiny();
  const ScoreTable scores = table_of({{1, 2, 3, 4}, {30, 31, 32, 33}}, {{5, 6, 7}, {40, 41, 42}});
  PruneRules rules = open_rules(config);
  rules.min_heads = 3;
  rules.min_channels = 2;
  const Advance step =
      advance(config, dense_plan(config, AttentionUnit::query_head), scores, 3.0 / 14, rules, 1);
  const ModelWidths widths = widths_of(config, step.plan);
  EXPECT_EQ(widths.layers[0].query_heads, (Units{1, 2, 3}));
  EXPECT_EQ(widths.layers[0].channels, (Units{1, 2}));
  EXPECT_EQ(widths.layers[1].query_heads, (Units{1, 2, 3}));
  // Highest removed 30; the next that could fall is channel 0 of layer 1, at 40.
  EXPECT_DOUBLE_EQ(step.margin_at_cut, 10.0 / 30.0);
}

TEST(Advance, LastReaderCarriesKAndV) {
  const ModelConfig config = tiny();  // 350 decoder parameters
  EXPECT_EQ(count_parameters(config, dense_widths(config)).decoder, 2 * (80 + 40 + 45 + 10));
  const double decoder = 350;
  const ScoreTable scores = table_of({{1, 2, 9, 9}, {9, 9, 9, 9}}, {{3, 9, 9}, {9, 9, 9}});
  const PruningPlan dense = dense_plan(config, AttentionUnit::query_head);
  PruneRules rules = open_rules(config);
  rules.measure = Measure::parameters;
  const auto removed = [&](double parameters) {
    return advance(config, dense, scores, parameters / decoder, rules, 1).plan.removed();
  };
  EXPECT_EQ(removed(19), 0);
  EXPECT_EQ(removed(20), 1);
  EXPECT_EQ(removed(55), 1);  // head 1 is the last reader of KV head 0 and would bring 60
  EXPECT_EQ(removed(60), 2);
  EXPECT_EQ(removed(74), 2);
  EXPECT_EQ(removed(75), 3);
  const PruningPlan plan = advance(config, dense, scores, 75 / decoder, rules, 1).plan;
  EXPECT_EQ(widths_of(config, plan).layers[0].kv_heads, (Units{1}));
  EXPECT_DOUBLE_EQ(sparsity_of(config, rules, plan).parameters, 75 / decoder);
}

TEST(Advance, KvGroupTakesItsQueryHeadsAndCountsFloorsInHeads) {
  const ModelConfig config = tiny();
  const ScoreTable scores = table_of({{1, 2}, {3, 4}}, {{9, 9, 9}, {9, 9, 9}});
  const PruningPlan dense = dense_plan(config, AttentionUnit::kv_group);
  PruneRules rules = open_rules(config);
  rules.min_heads = 1;
  const Advance step = advance(config, dense, scores, 2.0 / 10, rules, 1);
  const ModelWidths widths = widths_of(config, step.plan);
  EXPECT_EQ(widths.layers[0].query_heads, (Units{2, 3}));  // KV head 1 is kept by the floor
  EXPECT_EQ(widths.layers[0].kv_heads, (Units{1}));
  EXPECT_EQ(widths.layers[1].query_heads, (Units{2, 3}));
  rules.min_heads = 3;  // no group of two may go
  EXPECT_EQ(widths_of(config, advance(config, dense, scores, 0.1, rules, 1).plan).layers[0],
            (LayerWidths{{0, 1, 2, 3}, {0, 1}, {1, 2}}));
  rules.min_heads = 0;
  EXPECT_EQ(widths_of(config, advance(config, dense, scores, 0.2, rules, 1).plan).layers[0],
            (LayerWidths{{}, {}, {0, 1, 2}}));
}

// 6 heads on 2 KV heads. Layer 0: groups (1, 5, 9) and (8, 2, 4): bundles {0, 4}, {1, 5}, {2, 3}
// with means 1.5, 4.5, 8.5. Layer 1: {0, 3} at 4.5 and two ties at 4.5 behind it.
TEST(Advance, EqualPerGroupRanksTheJthLowestHeadsByTheirMean) {
  const ModelConfig config = shape(2, 5, 6, 2, 2, 3, 7);
  const ScoreTable scores =
      table_of({{1, 5, 9, 8, 2, 4}, {4, 4, 4, 5, 5, 5}}, {{3, 20, 20}, {20, 20, 20}});
  const PruningPlan dense = dense_plan(config, AttentionUnit::equal_per_group);
  PruneRules rules = open_rules(config);
  const auto order = [&](double units) {
    return advance(config, dense, scores, units / 18, rules, 1).plan.attention_order.values;
  };
  using Order = std::vector<std::int64_t>;
  EXPECT_EQ(order(1), (Order{-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1}));
  EXPECT_EQ(order(4),
            (Order{0, -1, -1, -1, 1, -1, -1, -1, -1, -1, -1, -1}));  // 3 of 4: the next takes 2
  EXPECT_EQ(order(9), (Order{0, 3, -1, -1, 1, 4, 5, 7, -1, 6, 8, -1}));
  const Advance step = advance(config, dense, scores, 4.0 / 18, rules, 1);
  EXPECT_EQ(step.removed_heads, 2);
  EXPECT_EQ(step.removed_channels, 1);
  EXPECT_DOUBLE_EQ(step.margin_at_cut, 0.5);  // 3, then 4.5
  // By parameters: a bundle costs 2 x 20, and 2 x 20 more when it is the last of its layer.
  rules.min_heads = 0;
  rules.mlp = false;
  rules.measure = Measure::parameters;
  const double decoder = 2 * (6 * 20 + 2 * 20 + 3 * 15 + 10);
  const auto removed = [&](double parameters) {
    return advance(config, dense, scores, parameters / decoder, rules, 1).plan.removed();
  };
  EXPECT_EQ(removed(39), 0);
  EXPECT_EQ(removed(40), 2);
  EXPECT_EQ(removed(160), 8);
  EXPECT_EQ(removed(199), 8);
  EXPECT_EQ(removed(240), 10);  // the third of layer 1 takes k and v with it
}

TEST(Advance, ProtectedLayersCountInNAndLoseNothing) {
  const ModelConfig config = tiny();
  const ScoreTable scores = table_of({{0, 0, 0, 0}, {1, 2, 3, 4}}, {{0, 0, 0}, {5, 6, 7}});
  PruneRules rules = open_rules(config);
  rules.protected_layer[0] = true;
  const PruningPlan dense = dense_plan(config, AttentionUnit::query_head);
  const PruningPlan plan = advance(config, dense, scores, 4.0 / 14, rules, 1).plan;
  EXPECT_EQ(widths_of(config, plan).layers[0], dense_widths(config).layers[0]);
  EXPECT_EQ(widths_of(config, plan).layers[1].query_heads, (Units{3}));
  EXPECT_EQ(widths_of(config, plan).layers[1].channels, (Units{1, 2}));
}

TEST(Advance, LocalAndByKindByHand) {
  const ModelConfig config = tiny();
  const ScoreTable scores = table_of({{4, 3, 2, 1}, {8, 7, 6, 5}}, {{20, 21, 22}, {25, 24, 23}});
  const PruningPlan dense = dense_plan(config, AttentionUnit::query_head);
  PruneRules rules = open_rules(config);
  rules.ranking = Ranking::local;
  const Advance local = advance(config, dense, scores, 0.5, rules, 1);
  EXPECT_EQ(widths_of(config, local.plan).layers[0], (LayerWidths{{0, 1}, {0}, {1, 2}}));
  EXPECT_EQ(widths_of(config, local.plan).layers[1], (LayerWidths{{0, 1}, {0}, {0, 1}}));
  EXPECT_EQ(local.plan.mlp_order.values, (std::vector<std::int64_t>{4, -1, -1, -1, -1, 5}));
  EXPECT_DOUBLE_EQ(local.margin_at_cut, 1.0 / 23.0);  // the closest of the four cuts
  rules.ranking = Ranking::global_by_kind;
  const Advance by_kind = advance(config, dense, scores, 0.5, rules, 1);
  EXPECT_EQ(widths_of(config, by_kind.plan).layers[0], (LayerWidths{{0}, {0}, {2}}));
  EXPECT_EQ(widths_of(config, by_kind.plan).layers[1], (LayerWidths{{0, 1, 2}, {0, 1}, {0, 1}}));
}

TEST(Advance, OneKindOnly) {
  const ModelConfig config = tiny();
  ScoreTable scores;
  scores.mlp = list_of({{1, 2, 3}, {4, 5, 6}});
  PruneRules rules = open_rules(config);
  rules.attention = false;
  const PruningPlan plan =
      advance(config, dense_plan(config, AttentionUnit::query_head), scores, 0.5, rules, 1).plan;
  EXPECT_EQ(plan.mlp_order.values, (std::vector<std::int64_t>{0, 1, -1, 2, -1, -1}));
  EXPECT_DOUBLE_EQ(sparsity_of(config, rules, plan).structures, 0.5);
}

/// 2 layers, 2 query heads on KV heads of their own, 6 channels: 16 units. A head costs 40
/// parameters, a channel 15; a layer is 180 with its norms.
ModelConfig six_channels() { return shape(2, 5, 2, 2, 2, 6, 7); }

TEST(WidthMultiple, BlocksByHand) {
  const ModelConfig config = six_channels();
  // Blocks of 2. Layer 0: {0, 2} at 1.5, {3, 5} at 3.5, {4, 1} at 8.5; layer 1: three at 5.
  const ScoreTable scores =
      table_of({{3.5, 10}, {2, 20}}, {{1, 9, 2, 3, 8, 4}, {5, 5, 5, 5, 5, 5}});
  const PruningPlan dense = dense_plan(config, AttentionUnit::query_head);
  PruneRules rules = open_rules(config);
  rules.width_multiple = 2;
  const auto fallen = [&](int k) { return advance(config, dense, scores, k / 16.0, rules, 1); };
  const auto counts = [&](int k) {
    const Advance step = fallen(k);
    return std::vector<std::int64_t>{step.removed_heads, step.removed_channels};
  };
  using Counts = std::vector<std::int64_t>;
  EXPECT_EQ(counts(1), (Counts{0, 0}));  // a block is more than is left
  EXPECT_EQ(counts(2), (Counts{0, 2}));
  EXPECT_EQ(counts(3), (Counts{1, 2}));
  EXPECT_EQ(counts(4), (Counts{2, 2}));  // of equal scores in a layer attention falls first
  EXPECT_EQ(counts(5), (Counts{2, 2}));
  EXPECT_EQ(counts(6), (Counts{2, 4}));
  EXPECT_EQ(counts(8), (Counts{2, 6}));
  EXPECT_EQ(counts(10), (Counts{2, 8}));
  const Advance eight = fallen(8);
  EXPECT_EQ(eight.plan.mlp_order.values,
            (std::vector<std::int64_t>{0, -1, 1, 4, -1, 5, 6, 7, -1, -1, -1, -1}));
  EXPECT_EQ(eight.plan.attention_order.values, (std::vector<std::int64_t>{3, -1, 2, -1}));
  EXPECT_EQ(eight.margin_at_cut, 0);                // 5, then 5
  EXPECT_DOUBLE_EQ(fallen(3).margin_at_cut, 0.75);  // 2, then 3.5
  // One block of each layer stays, though min_channels is 1.
  expect_error(ExitCode::config, "width_multiple is 2", [&] { fallen(11); });
}

TEST(WidthMultiple, ByParametersAndFloorsByHand) {
  const ModelConfig config = six_channels();
  const ScoreTable scores =
      table_of({{90, 91}, {92, 93}}, {{1, 2, 3, 4, 5, 6}, {7, 7, 7, 7, 7, 7}});
  const PruningPlan dense = dense_plan(config, AttentionUnit::query_head);
  PruneRules rules = open_rules(config);
  rules.width_multiple = 3;
  rules.measure = Measure::parameters;
  const auto channels = [&](double parameters) {
    return advance(config, dense, scores, parameters / 360, rules, 1).removed_channels;
  };
  EXPECT_EQ(channels(44), 0);
  EXPECT_EQ(channels(45), 3);  // a block costs 3 x 15
  EXPECT_EQ(channels(89), 3);
  EXPECT_EQ(channels(90), 6);
  rules.min_channels = 4;  // rounds up to 6: no block can fall
  EXPECT_EQ(channels(89), 0);
  EXPECT_EQ(advance(config, dense, scores, 89.0 / 360, rules, 1).removed_heads, 2);
}

TEST(WidthMultiple, CostAgainstTheFreeChoiceByHand) {
  const ModelConfig config = six_channels();
  const ScoreTable scores =
      table_of({{90, 91}, {92, 93}}, {{1, 10, 20, 30, 40, 50}, {4, 4, 4, 4, 4, 4}});
  const PruningPlan dense = dense_plan(config, AttentionUnit::query_head);
  PruneRules rules = open_rules(config);
  EXPECT_FALSE(advance(config, dense, scores, 2.0 / 16, rules, 1).rounding);
  rules.width_multiple = 2;
  const auto cost = [&](double ratio) {
    return advance(config, dense, scores, ratio, rules, 1).rounding.value();
  };
  // Two of layer 1 at 4 in place of 1 + 4: the first block of layer 0 is at 5.5.
  EXPECT_EQ(cost(2.0 / 16).importance, 8);
  EXPECT_EQ(cost(2.0 / 16).free_importance, 5);
  EXPECT_EQ(cost(3.0 / 16).free_importance, 5);  // of as many as fell
  EXPECT_EQ(cost(1.0 / 16).importance, 0);
  EXPECT_EQ(cost(1.0 / 16).free_importance, 0);
  rules.ranking = Ranking::local;  // where every layer loses as many, blocks are the free choice
  EXPECT_EQ(cost(1.0 / 3).importance, 19);
  EXPECT_EQ(cost(1.0 / 3).free_importance, 19);
  ScoreTable infinite = scores;
  infinite.mlp.score.assign(12, std::numeric_limits<double>::infinity());
  EXPECT_FALSE(advance(config, dense, infinite, 1.0 / 3, rules, 1).rounding);
}

TEST(WidthMultiple, AModelOfOtherWidthsIsRefused) {
  const ModelConfig config = six_channels();
  const ScoreTable scores = table_of({{1, 1}, {1, 1}}, {{1, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 1}});
  PruneRules rules = open_rules(config);
  const PruningPlan ragged =
      advance(config, dense_plan(config, AttentionUnit::query_head), scores, 2.0 / 16, rules, 1)
          .plan;
  rules.width_multiple = 3;
  expect_error(ExitCode::config,
               "prune.width_multiple is 3, and layer 0 of the model has 5 channels",
               [&] { advance(config, ragged, scores, 0.5, rules, 2); });
}

TEST(Margin, StaysFiniteAndHandlesZeroAndNegativeScores) {
  const ModelConfig config = tiny();
  const PruneRules rules = open_rules(config);
  const PruningPlan dense = dense_plan(config, AttentionUnit::query_head);
  const auto margin = [&](double lowest, double next) {
    const ScoreTable scores =
        table_of({{lowest, next, 90, 90}, {90, 90, 90, 90}}, {{90, 90, 90}, {90, 90, 90}});
    return advance(config, dense, scores, 1.0 / 14, rules, 1).margin_at_cut;
  };
  EXPECT_EQ(margin(2, 3), 0.5);
  EXPECT_EQ(margin(0, 0), 0);
  EXPECT_EQ(margin(0, 1), std::numeric_limits<double>::max());
  EXPECT_EQ(margin(-2, -1), 0.5);
}

TEST(Advance, UnitsOfInfiniteScoreFallAfterAllOthers) {
  const ModelConfig config = tiny();
  const double never = std::numeric_limits<double>::infinity();
  const ScoreTable scores =
      table_of({{never, 1, 1, 1}, {1, 1, 1, never}}, {{1, never, 1}, {never, 1, 1}});
  const Advance step = advance(config, dense_plan(config, AttentionUnit::query_head), scores, 0.7,
                               open_rules(config), 1);
  EXPECT_EQ(step.plan.attention_removed_at.values,
            (std::vector<std::int32_t>{-1, 1, 1, 1, 1, 1, 1, -1}));
  EXPECT_EQ(step.plan.mlp_removed_at.values, (std::vector<std::int32_t>{1, -1, 1, -1, 1, -1}));
}

TEST(Advance, RefusesScoresThatCannotBeRanked) {
  const ModelConfig config = tiny();
  const PruneRules rules = open_rules(config);
  const PruningPlan dense = dense_plan(config, AttentionUnit::query_head);
  const ScoreTable good = table_of({{1, 1, 1, 1}, {1, 1, 1, 1}}, {{1, 1, 1}, {1, 1, 1}});
  const auto run = [&](const ScoreTable& scores) {
    return [&, scores] { advance(config, dense, scores, 0.1, rules, 1); };
  };
  ScoreTable bad = good;
  bad.mlp.score[4] = std::nan("");
  expect_error(ExitCode::bad_content, "layer 1, channel 1 is nan", run(bad));
  bad = good;
  bad.attention.score[2] = -std::numeric_limits<double>::infinity();
  expect_error(ExitCode::bad_content, "layer 0, query head 2 is -inf", run(bad));
  bad = good;
  bad.attention.unit[2] = 4;
  expect_error(ExitCode::internal, "query head 4", run(bad));
  bad = good;
  bad.attention.unit[2] = 1;
  expect_error(ExitCode::internal, "query head 1 has two scores", run(bad));
  bad = good;
  bad.mlp.layer.pop_back();
  bad.mlp.unit.pop_back();
  bad.mlp.score.pop_back();
  expect_error(ExitCode::internal, "layer 1, channel 2 has no score", run(bad));
}

TEST(Advance, ScoresOfProtectedLayersMayBeAbsent) {
  const ModelConfig config = tiny();
  PruneRules rules = open_rules(config);
  rules.protected_layer[1] = true;
  const ScoreTable scores = table_of({{1, 2, 3, 4}}, {{5, 6, 7}});
  const PruningPlan plan =
      advance(config, dense_plan(config, AttentionUnit::query_head), scores, 0.2, rules, 1).plan;
  EXPECT_EQ(plan.removed(), 2);
}

TEST(Advance, RefusesTargetsThatFloorsForbid) {
  const ModelConfig config = tiny();
  const PruneRules rules = open_rules(config);
  const PruningPlan dense = dense_plan(config, AttentionUnit::query_head);
  const ScoreTable scores = table_of({{1, 1, 1, 1}, {1, 1, 1, 1}}, {{1, 1, 1}, {1, 1, 1}});
  expect_error(ExitCode::config, "cannot be reached",
               [&] { advance(config, dense, scores, 0.9, rules, 1); });
  expect_error(ExitCode::config, "target is 1.5",
               [&] { advance(config, dense, scores, 1.5, rules, 1); });
  expect_error(ExitCode::config, "target is nan",
               [&] { advance(config, dense, scores, std::nan(""), rules, 1); });
}

// --- against the naive implementation
// ---------------------------------------------------------------

struct Case {
  Ranking ranking;
  Measure measure;
  AttentionUnit unit;
};

class AgainstNaive : public ::testing::TestWithParam<Case> {};

ModelConfig drawn_config(Draw& draw) {
  const std::int64_t kv_heads = 1 + draw.below(3);
  ModelConfig config = shape(2 + draw.below(3), 5 + draw.below(4), kv_heads * (1 + draw.below(3)),
                             kv_heads, 2, 4 + draw.below(6), 9);
  config.qkv_bias = draw.uniform() < 0.5;
  config.qk_norm = draw.uniform() < 0.3;
  config.tied_embeddings = draw.uniform() < 0.3;
  return config;
}

PruneRules drawn_rules(Draw& draw, const ModelConfig& config, const Case& c) {
  PruneRules rules = open_rules(config);
  rules.ranking = c.ranking;
  rules.measure = c.measure;
  rules.min_heads = draw.below(std::min<std::int64_t>(config.heads, 3) + 1);
  rules.min_channels = draw.below(3);
  for (std::size_t i = 1; i < rules.protected_layer.size(); ++i)
    rules.protected_layer[i] = draw.uniform() < 0.3;
  const double kinds = draw.uniform();
  rules.attention = kinds > 0.1;
  rules.mlp = kinds < 0.9;
  return rules;
}

TEST_P(AgainstNaive, EveryStepOfARunIsTheSame) {
  const Case c = GetParam();
  Draw draw(100 + static_cast<std::uint64_t>(c.ranking) * 10 +
            static_cast<std::uint64_t>(c.measure) * 3 + static_cast<std::uint64_t>(c.unit));
  std::int64_t heads = 0;
  for (int round = 0; round < 30; ++round) {
    const ModelConfig config = drawn_config(draw);
    const PruneRules rules = drawn_rules(draw, config, c);
    const double most =
        reachable_target(config, rules, dense_plan(config, c.unit)) * draw.uniform();
    PruningPlan plan = dense_plan(config, c.unit);
    const std::int64_t first = 1 + draw.below(3);
    for (std::int64_t i = 0; i < 4; ++i) {
      const double target = most * static_cast<double>(i + 1) / 4;
      ScoreTable scores = drawn_scores(draw, plan);
      const Advance step = advance(config, plan, scores, target, rules, first + i);
      const NaiveAdvance naive(config, rules, plan, scores, target, first + i);
      ASSERT_EQ(step.plan, naive.plan()) << "round " << round << ", step " << i;
      heads += step.removed_heads;
      EXPECT_EQ(step.plan.removed() - plan.removed(), step.removed_heads + step.removed_channels);
      EXPECT_LE(sparsity_of(config, rules, step.plan).of(rules.measure), target + 1e-12);
      for (std::size_t u = 0; u < plan.mlp_order.values.size(); ++u)
        if (plan.mlp_order.values[u] >= 0) {
          EXPECT_EQ(plan.mlp_order.values[u], step.plan.mlp_order.values[u]);
        }
      // The order in which the scores arrive does not matter.
      auto& list = scores.mlp;
      std::reverse(list.layer.begin(), list.layer.end());
      std::reverse(list.unit.begin(), list.unit.end());
      std::reverse(list.score.begin(), list.score.end());
      EXPECT_EQ(advance(config, plan, scores, target, rules, first + i).plan.digest(),
                step.plan.digest());
      plan = step.plan;
    }
  }
  EXPECT_GT(heads, 0);
}

/// Units that one entry takes at most, under these rules.
std::int64_t largest_step(const ModelConfig& config, const PruneRules& rules, AttentionUnit unit) {
  const bool bundles = rules.attention && unit == AttentionUnit::equal_per_group;
  return std::max(bundles ? config.kv_heads : 1, rules.mlp ? rules.width_multiple : 1);
}

TEST_P(AgainstNaive, EveryStepOfARunInMultiplesIsTheSame) {
  const Case c = GetParam();
  Draw draw(700 + static_cast<std::uint64_t>(c.ranking) * 10 +
            static_cast<std::uint64_t>(c.measure) * 3 + static_cast<std::uint64_t>(c.unit));
  std::int64_t channels = 0;
  for (int round = 0; round < 30; ++round) {
    ModelConfig config = drawn_config(draw);
    PruneRules rules = drawn_rules(draw, config, c);
    rules.width_multiple = 2 + draw.below(3);
    config.channels = rules.width_multiple * (2 + draw.below(4));
    const PruningPlan dense = dense_plan(config, c.unit);
    const double most = reachable_target(config, rules, dense) * draw.uniform();
    PruningPlan plan = dense;
    for (std::int64_t i = 0; i < 4; ++i) {
      const double target = most * static_cast<double>(i + 1) / 4;
      const ScoreTable scores = drawn_scores(draw, plan);
      const Advance step = advance(config, plan, scores, target, rules, 1 + i);
      ASSERT_EQ(step.plan, NaiveAdvance(config, rules, plan, scores, target, 1 + i).plan())
          << "round " << round << ", step " << i;
      channels += step.removed_channels;
      for (const LayerWidths& layer : widths_of(config, step.plan).layers)
        EXPECT_EQ(static_cast<std::int64_t>(layer.channels.size()) % rules.width_multiple, 0);
      EXPECT_NO_THROW(require_part(plan, step.plan));
      EXPECT_LE(sparsity_of(config, rules, step.plan).of(c.measure), target + 1e-12);
      if (c.ranking == Ranking::global && c.measure == Measure::structures) {
        const std::int64_t units =
            config.layers * ((rules.attention ? plan.attention_removed_at.units : 0) +
                             (rules.mlp ? config.channels : 0));
        EXPECT_LT(static_cast<double>(units) * target - static_cast<double>(step.plan.removed()),
                  static_cast<double>(largest_step(config, rules, c.unit)));
      }
      ASSERT_TRUE(step.rounding.has_value());
      // Of as much the free choice takes the least, where nothing but channels is in blocks and a
      // unit costs one.
      if (c.measure == Measure::structures && c.unit != AttentionUnit::equal_per_group) {
        EXPECT_GE(step.rounding->importance, step.rounding->free_importance - 1e-9);
      }
      plan = step.plan;
    }
  }
  EXPECT_GT(channels, 0);
}

INSTANTIATE_TEST_SUITE_P(
    AllForms, AgainstNaive, ::testing::ValuesIn([] {
      std::vector<Case> cases;
      for (Ranking ranking : {Ranking::global, Ranking::global_by_kind, Ranking::local})
        for (Measure measure :
             {Measure::structures, Measure::parameters, Measure::total_parameters})
          for (AttentionUnit unit :
               {AttentionUnit::query_head, AttentionUnit::equal_per_group, AttentionUnit::kv_group})
            cases.push_back({ranking, measure, unit});
      return cases;
    }()));

TEST(Advance, TimeAt64LayersOf27648Channels) {
  const ModelConfig config = shape(64, 5120, 40, 8, 128, 27648, 152064);
  const PruningPlan dense = dense_plan(config, AttentionUnit::query_head);
  Draw draw(3);
  ScoreTable scores = drawn_scores(draw, dense);
  for (double& score : scores.mlp.score) score = draw.uniform();
  for (Ranking ranking : {Ranking::global, Ranking::local}) {
    PruneRules rules = open_rules(config);
    rules.ranking = ranking;
    rules.measure = Measure::parameters;
    const auto start = std::chrono::steady_clock::now();
    const Advance step = advance(config, dense, scores, 0.5, rules, 1);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    std::cout << "ranking " << static_cast<int>(ranking) << ": " << seconds.count() << " s, "
              << step.plan.removed() << " units\n";
    EXPECT_NEAR(sparsity_of(config, rules, step.plan).parameters, 0.5, 1e-3);
  }
}

}  // namespace
}  // namespace espalier
