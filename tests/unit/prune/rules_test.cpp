#include <gtest/gtest.h>

#include "espalier/core/error.h"
#include "espalier/prune/plan.h"
#include "unit/prune/naive_advance.h"
#include "unit/prune/sample_models.h"

namespace espalier {
namespace {

using testing::Draw;
using testing::drawn_scores;
using testing::shape;

TEST(Rules, DefaultProtectsATenthAndTheLastLayer) {
  const ModelConfig config = shape(32, 8, 4, 2, 2, 3, 7);
  const PruneRules rules = prune_rules(config, PruneConfig{});
  for (std::size_t layer = 0; layer < 32; ++layer)
    EXPECT_EQ(rules.protected_layer[layer], layer < 3 || layer == 31) << layer;
  EXPECT_EQ(rules.min_heads, 1);
  EXPECT_EQ(rules.min_channels, 1);
}

TEST(Rules, ListedLayersAndCountsAreTaken) {
  PruneConfig prune;
  prune.protect = {0, 2, {1}, 0, 3};
  prune.ranking = Ranking::local;
  prune.measure = Measure::parameters;
  prune.mlp = false;
  const PruneRules rules = prune_rules(shape(5, 8, 4, 2, 2, 3, 7), prune);
  EXPECT_EQ(rules.protected_layer, (std::vector<bool>{false, true, false, true, true}));
  EXPECT_EQ(rules.min_heads, 0);
  EXPECT_EQ(rules.min_channels, 3);
  EXPECT_EQ(rules.ranking, Ranking::local);
  EXPECT_EQ(rules.measure, Measure::parameters);
  EXPECT_TRUE(rules.attention);
  EXPECT_FALSE(rules.mlp);
}

TEST(Rules, EveryWrongValueIsNamedAtOnce) {
  PruneConfig prune;
  prune.attention = prune.mlp = false;
  prune.protect = {6, -1, {5, -2}, 5, 4};
  try {
    prune_rules(shape(5, 8, 4, 2, 2, 3, 7), prune);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::config);
    EXPECT_EQ(error.problems().size(), 7u) << error.what();
    EXPECT_NE(std::string(error.what()).find("min_heads is 5"), std::string::npos);
  }
}

PruneRules rules_with(const ModelConfig& config, Ranking ranking, Measure measure) {
  PruneRules rules;
  rules.ranking = ranking;
  rules.measure = measure;
  rules.protected_layer.assign(static_cast<std::size_t>(config.layers), false);
  return rules;
}

TEST(Reachable, ByHand) {
  // 4 layers of 4 heads (2 KV) and 6 channels: 40 units; one layer protected.
  const ModelConfig config = shape(4, 5, 4, 2, 2, 6, 7);
  PruneRules rules = rules_with(config, Ranking::global, Measure::structures);
  rules.protected_layer[0] = true;
  EXPECT_DOUBLE_EQ(reachable_target(config, rules, AttentionUnit::query_head), 24.0 / 40);
  EXPECT_DOUBLE_EQ(reachable_target(config, rules, AttentionUnit::kv_group), 18.0 / 32);
  rules.ranking = Ranking::global_by_kind;  // heads 9 of 16, channels 15 of 24
  EXPECT_DOUBLE_EQ(reachable_target(config, rules, AttentionUnit::query_head), 9.0 / 16);
  rules.ranking = Ranking::local;  // 3 of 4 heads, 5 of 6 channels
  EXPECT_DOUBLE_EQ(reachable_target(config, rules, AttentionUnit::query_head), 0.75);
  rules.ranking = Ranking::global;
  rules.measure = Measure::parameters;
  // A layer: 4 heads x 20 + 2 KV heads x 20 + 6 channels x 15 + 2 norms x 5 = 220; a layer keeps
  // one head with its KV head, one channel and the norms.
  EXPECT_DOUBLE_EQ(reachable_target(config, rules, AttentionUnit::query_head),
                   3 * (220 - 20 - 20 - 15 - 10) / (4 * 220.0));
  rules.protected_layer.assign(4, true);
  EXPECT_EQ(reachable_target(config, rules, AttentionUnit::query_head), 0);
  EXPECT_THROW(require_reachable(config, rules, AttentionUnit::query_head, 0.1), Error);
  rules.ranking = Ranking::local;
  rules.measure = Measure::structures;
  EXPECT_THROW(require_reachable(config, rules, AttentionUnit::query_head, 0.1), Error);
  EXPECT_NO_THROW(require_reachable(config, rules, AttentionUnit::query_head, 0));
}

TEST(Reachable, TheMessageHasBothNumbersAndAWayOut) {
  const ModelConfig config = shape(4, 5, 4, 2, 2, 6, 7);
  PruneRules rules = rules_with(config, Ranking::global, Measure::structures);
  rules.protected_layer[0] = true;
  try {
    require_reachable(config, rules, AttentionUnit::query_head, 0.85);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::config);
    const std::string text = error.what();
    for (const char* part : {"0.85", "0.6000", "structures", "1 of 4 layers"})
      EXPECT_NE(text.find(part), std::string::npos) << text;
  }
}

// What is reachable is reached for any scores, and nothing above it.
TEST(Reachable, AgreesWithAdvance) {
  Draw draw(77);
  for (Ranking ranking : {Ranking::global, Ranking::global_by_kind, Ranking::local})
    for (AttentionUnit unit : {AttentionUnit::query_head, AttentionUnit::kv_group})
      for (int round = 0; round < 20; ++round) {
        const ModelConfig config = shape(3, 5, 6, 3, 2, 5 + draw.below(4), 7);
        PruneRules rules = rules_with(config, ranking, Measure::structures);
        rules.min_heads = draw.below(4);
        rules.min_channels = draw.below(4);
        rules.protected_layer[1] = draw.uniform() < 0.5;
        const PruningPlan dense = dense_plan(config, unit);
        const ScoreTable scores = drawn_scores(draw, dense);
        for (int k = 0; k <= 40; ++k) {
          const double target = k / 40.0;
          bool allowed = true;
          try {
            require_reachable(config, rules, unit, target);
          } catch (const Error&) {
            allowed = false;
          }
          bool reached = true;
          try {
            advance(config, dense, scores, target, rules, 1);
          } catch (const Error&) {
            reached = false;
          }
          EXPECT_EQ(allowed, reached) << target;
          if (target <= reachable_target(config, rules, unit)) {
            EXPECT_TRUE(allowed) << target;
          }
        }
        EXPECT_NO_THROW(
            require_reachable(config, rules, unit, reachable_target(config, rules, unit)));
      }
}

TEST(Reachable, ByParametersTheWholeReachIsTaken) {
  Draw draw(78);
  for (Ranking ranking : {Ranking::global, Ranking::global_by_kind, Ranking::local})
    for (AttentionUnit unit : {AttentionUnit::query_head, AttentionUnit::kv_group}) {
      const ModelConfig config = shape(3, 5, 6, 3, 2, 7, 7);
      const PruneRules rules = rules_with(config, ranking, Measure::total_parameters);
      const double most = reachable_target(config, rules, unit);
      EXPECT_NO_THROW(require_reachable(config, rules, unit, most));
      EXPECT_THROW(require_reachable(config, rules, unit, most + 0.01), Error);
      const PruningPlan dense = dense_plan(config, unit);
      const PruningPlan plan =
          advance(config, dense, drawn_scores(draw, dense), most, rules, 1).plan;
      const double reached = sparsity_of(config, rules, plan).total_parameters;
      if (ranking == Ranking::global_by_kind)
        EXPECT_LE(reached, most + 1e-12);
      else
        EXPECT_DOUBLE_EQ(reached, most);
    }
}

TEST(Sparsity, ByHand) {
  const ModelConfig config = shape(2, 5, 4, 2, 2, 3, 7);  // decoder 350, ends 75
  PruneRules rules = rules_with(config, Ranking::global, Measure::parameters);
  PruningPlan plan = dense_plan(config, AttentionUnit::query_head);
  plan.attention_removed_at.at(1, 2) = plan.attention_removed_at.at(1, 3) = 1;
  plan.mlp_removed_at.at(0, 1) = 1;
  const Sparsity sparsity = sparsity_of(config, rules, plan);
  EXPECT_DOUBLE_EQ(sparsity.structures, 3.0 / 14);
  EXPECT_DOUBLE_EQ(sparsity.parameters, 75.0 / 350);
  EXPECT_DOUBLE_EQ(sparsity.total_parameters, 75.0 / 425);
  EXPECT_EQ(sparsity.of(Measure::total_parameters), sparsity.total_parameters);
  rules.attention = false;
  EXPECT_DOUBLE_EQ(sparsity_of(config, rules, plan).structures, 1.0 / 6);
}

}  // namespace
}  // namespace espalier
