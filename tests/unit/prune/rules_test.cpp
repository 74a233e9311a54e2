#include <functional>
#include <vector>

#include <fmt/format.h>
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
  EXPECT_DOUBLE_EQ(reachable_target(config, rules, dense_plan(config, AttentionUnit::query_head)),
                   24.0 / 40);
  EXPECT_DOUBLE_EQ(reachable_target(config, rules, dense_plan(config, AttentionUnit::kv_group)),
                   18.0 / 32);
  rules.ranking = Ranking::global_by_kind;  // heads 9 of 16, channels 15 of 24
  EXPECT_DOUBLE_EQ(reachable_target(config, rules, dense_plan(config, AttentionUnit::query_head)),
                   9.0 / 16);
  rules.ranking = Ranking::local;  // 3 of 4 heads, 5 of 6 channels
  EXPECT_DOUBLE_EQ(reachable_target(config, rules, dense_plan(config, AttentionUnit::query_head)),
                   0.75);
  rules.ranking = Ranking::global;
  rules.measure = Measure::parameters;
  // A layer: 4 heads x 20 + 2 KV heads x 20 + 6 channels x 15 + 2 norms x 5 = 220; a layer keeps
  // one head with its KV head, one channel and the norms.
  EXPECT_DOUBLE_EQ(reachable_target(config, rules, dense_plan(config, AttentionUnit::query_head)),
                   3 * (220 - 20 - 20 - 15 - 10) / (4 * 220.0));
  rules.protected_layer.assign(4, true);
  EXPECT_EQ(reachable_target(config, rules, dense_plan(config, AttentionUnit::query_head)), 0);
  EXPECT_THROW(require_reachable(config, rules, dense_plan(config, AttentionUnit::query_head), 0.1),
               Error);
  rules.ranking = Ranking::local;
  rules.measure = Measure::structures;
  EXPECT_THROW(require_reachable(config, rules, dense_plan(config, AttentionUnit::query_head), 0.1),
               Error);
  EXPECT_NO_THROW(
      require_reachable(config, rules, dense_plan(config, AttentionUnit::query_head), 0));
}

TEST(Reachable, UnderEqualPerGroupByHand) {
  const ModelConfig config = shape(4, 5, 6, 2, 2, 6, 7);  // groups of 3
  PruneRules rules = rules_with(config, Ranking::global, Measure::structures);
  const PruningPlan dense = dense_plan(config, AttentionUnit::equal_per_group);
  rules.protected_layer[0] = true;
  // One head of each group stays: 4 of 6 heads, 5 of 6 channels.
  EXPECT_DOUBLE_EQ(reachable_target(config, rules, dense), 3 * 9.0 / 48);
  rules.min_heads = 3;  // rounds up to 4
  EXPECT_DOUBLE_EQ(reachable_target(config, rules, dense), 3 * 7.0 / 48);
  rules.ranking = Ranking::local;
  EXPECT_DOUBLE_EQ(reachable_target(config, rules, dense), 2.0 / 6);
  // floor(6 x 0.6) = 3 heads are one bundle; 4 would be two.
  EXPECT_NO_THROW(require_reachable(config, rules, dense, 0.6));
  EXPECT_THROW(require_reachable(config, rules, dense, 0.67), Error);
  // The last bundle takes both KV heads with it: 6 x 20 + 2 x 20 + 5 x 15 of 270 - 10 of norms.
  rules.min_heads = 0;
  rules.measure = Measure::parameters;
  EXPECT_DOUBLE_EQ(reachable_target(config, rules, dense),
                   3 * (120 + 40 + 75) / (4.0 * (120 + 40 + 90 + 10)));
}

TEST(Rules, EqualPerGroupNeedsGroups) {
  PruneConfig prune;
  prune.attention_unit = AttentionUnit::equal_per_group;
  EXPECT_NO_THROW(prune_rules(shape(5, 8, 4, 2, 2, 3, 7), prune));
  EXPECT_NO_THROW(prune_rules(shape(5, 8, 4, 1, 2, 3, 7), prune));
  try {
    prune_rules(shape(5, 8, 4, 4, 2, 3, 7), prune);
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::config);
    EXPECT_NE(std::string(error.what()).find("query_head"), std::string::npos);
  }
  prune.attention = false;
  EXPECT_NO_THROW(prune_rules(shape(5, 8, 4, 4, 2, 3, 7), prune));
}

TEST(Rules, AWidthMultipleDividesTheChannelsThatMayFall) {
  PruneConfig prune;
  const auto refusal = [&](std::int64_t multiple) -> std::string {
    prune.width_multiple = multiple;
    try {
      prune_rules(shape(5, 8, 4, 2, 2, 96, 7), prune);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::config);
      return error.what();
    }
    return {};
  };
  for (std::int64_t multiple : {1, 2, 3, 32, 48, 96}) EXPECT_EQ(refusal(multiple), "") << multiple;
  for (std::int64_t multiple : {5, 64, 192}) {
    EXPECT_NE(refusal(multiple).find(fmt::format("prune.width_multiple is {}", multiple)),
              std::string::npos);
    EXPECT_NE(refusal(multiple).find("give a divisor of 96: 32 is the largest power of two"),
              std::string::npos);
  }
  prune.mlp = false;
  EXPECT_NE(refusal(32).find("no channel falls"), std::string::npos);
  EXPECT_EQ(refusal(1), "");
}

TEST(Reachable, InMultiplesByHand) {
  const ModelConfig config = shape(4, 5, 4, 2, 2, 6, 7);
  PruneRules rules = rules_with(config, Ranking::global, Measure::structures);
  const PruningPlan dense = dense_plan(config, AttentionUnit::query_head);
  rules.attention = false;
  rules.width_multiple = 2;
  EXPECT_DOUBLE_EQ(reachable_target(config, rules, dense), 4.0 / 6);  // a block of each stays
  rules.min_channels = 3;                                             // rounds up to 4
  EXPECT_DOUBLE_EQ(reachable_target(config, rules, dense), 2.0 / 6);
  EXPECT_NO_THROW(require_reachable(config, rules, dense, 9.0 / 24));  // takes 8
  EXPECT_THROW(require_reachable(config, rules, dense, 10.0 / 24), Error);
  EXPECT_NO_THROW(require_work(config, rules, dense, 2.0 / 24));
  EXPECT_THROW(require_work(config, rules, dense, 1.9 / 24), Error);
  rules.ranking = Ranking::local;
  EXPECT_DOUBLE_EQ(reachable_target(config, rules, dense), 2.0 / 6);
  EXPECT_THROW(require_work(config, rules, dense, 1.9 / 6), Error);
  rules.measure = Measure::parameters;  // a layer is 220
  EXPECT_DOUBLE_EQ(reachable_target(config, rules, dense), 4 * 2 * 15 / (4 * 220.0));
}

TEST(Reachable, TheMessageHasBothNumbersAndAWayOut) {
  const ModelConfig config = shape(4, 5, 4, 2, 2, 6, 7);
  PruneRules rules = rules_with(config, Ranking::global, Measure::structures);
  rules.protected_layer[0] = true;
  try {
    require_reachable(config, rules, dense_plan(config, AttentionUnit::query_head), 0.85);
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
    for (AttentionUnit unit :
         {AttentionUnit::query_head, AttentionUnit::equal_per_group, AttentionUnit::kv_group})
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
            require_reachable(config, rules, dense_plan(config, unit), target);
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
          if (target <= reachable_target(config, rules, dense_plan(config, unit))) {
            EXPECT_TRUE(allowed) << target;
          }
        }
        EXPECT_NO_THROW(
            require_reachable(config, rules, dense_plan(config, unit),
                              reachable_target(config, rules, dense_plan(config, unit))));
      }
}

TEST(Reachable, ByParametersTheWholeReachIsTaken) {
  Draw draw(78);
  for (Ranking ranking : {Ranking::global, Ranking::global_by_kind, Ranking::local})
    for (AttentionUnit unit :
         {AttentionUnit::query_head, AttentionUnit::equal_per_group, AttentionUnit::kv_group}) {
      const ModelConfig config = shape(3, 5, 6, 3, 2, 7, 7);
      const PruneRules rules = rules_with(config, ranking, Measure::total_parameters);
      const double most = reachable_target(config, rules, dense_plan(config, unit));
      EXPECT_NO_THROW(require_reachable(config, rules, dense_plan(config, unit), most));
      EXPECT_THROW(require_reachable(config, rules, dense_plan(config, unit), most + 0.01), Error);
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

// Removed layer by layer beyond today's floors, or in layers that are protected today.
TEST(Reachable, FromAPrunedStart) {
  const ModelConfig config = shape(4, 5, 4, 2, 2, 6, 7);
  PruneRules rules = rules_with(config, Ranking::global, Measure::structures);
  PruningPlan start = dense_plan(config, AttentionUnit::query_head);
  for (std::int64_t unit = 0; unit < 5; ++unit) start.mlp_removed_at.at(0, unit) = 1;
  start.attention_removed_at.at(1, 0) = 1;
  rules.min_channels = 3;
  rules.protected_layer[0] = true;
  // 6 gone; layers 1 to 3 can lose 3 channels and 2, 3, 3 heads more: 23 of 40.
  EXPECT_DOUBLE_EQ(reachable_target(config, rules, start), 23.0 / 40);
  EXPECT_DOUBLE_EQ(reached_target(config, rules, start), 6.0 / 40);
  rules.protected_layer[0] = false;  // its channels are below the floor: 3 heads more
  EXPECT_DOUBLE_EQ(reachable_target(config, rules, start), 26.0 / 40);
  rules.ranking = Ranking::global_by_kind;  // heads 12 of 16, channels 14 of 24
  EXPECT_DOUBLE_EQ(reachable_target(config, rules, start), 14.0 / 24);
  EXPECT_DOUBLE_EQ(reached_target(config, rules, start), 1.0 / 16);
  rules.ranking = Ranking::local;  // 3 of 6 channels in layers 1 to 3, and no layer is ahead of all
  EXPECT_DOUBLE_EQ(reachable_target(config, rules, start), 0.5);
  EXPECT_EQ(reached_target(config, rules, start), 0);
  rules.ranking = Ranking::global;
  rules.measure = Measure::parameters;
  // A layer of 220: 5 channels of 15 and a head of 20 are gone. What can go: in every layer a head
  // and its KV head stay, and 3 channels in layers 1 to 3.
  EXPECT_DOUBLE_EQ(reached_target(config, rules, start), (75 + 20) / 880.0);
  EXPECT_DOUBLE_EQ(reachable_target(config, rules, start),
                   (75 + 4 * (3 * 20 + 20) + 3 * 45) / 880.0);
}

TEST(Work, ATargetThatTakesNoUnitIsRefused) {
  const ModelConfig config = shape(4, 5, 4, 2, 2, 6, 7);
  Draw draw(79);
  for (Ranking ranking : {Ranking::global, Ranking::global_by_kind, Ranking::local})
    for (Measure measure : {Measure::structures, Measure::parameters, Measure::total_parameters}) {
      const PruneRules rules = rules_with(config, ranking, measure);
      const PruningPlan dense = dense_plan(config, AttentionUnit::query_head);
      const PruningPlan start =
          advance(config, dense, drawn_scores(draw, dense), 0.5, rules, 1).plan;
      const double reached = reached_target(config, rules, start);
      EXPECT_GT(reached, 0.3);
      for (const PruningPlan& plan : {dense, start})
        for (double target : {1e-6, 0.2, reached, 0.7}) {
          const bool takes = target > (plan == dense ? 1e-3 : 0.5);
          try {
            require_work(config, rules, plan, target);
            EXPECT_TRUE(takes) << target;
          } catch (const Error& error) {
            EXPECT_FALSE(takes) << target << ": " << error.what();
            EXPECT_EQ(error.code(), ExitCode::config);
            if (plan == start) {
              EXPECT_NE(std::string(error.what()).find(fmt::format("{:.6g}", reached)),
                        std::string::npos)
                  << error.what();
            }
          }
        }
    }
}

// Whatever is asked of whatever plan: an answer, or a message that names what is wrong with the
// request. Never the message of a bug.
void expect_answers(Draw draw, const std::vector<AttentionUnit>& units) {
  const auto answered = [](const char* what, const std::function<void()>& request) {
    try {
      request();
      return true;
    } catch (const Error& error) {
      const bool named = error.code() == ExitCode::config || error.code() == ExitCode::bad_content;
      EXPECT_TRUE(named) << what << ": " << error.what();
    }
    return false;
  };
  int done = 0;
  for (int round = 0; round < 600; ++round) {
    const std::int64_t group = 1 + draw.below(3);
    const std::int64_t kv_heads = 1 + draw.below(3);
    const ModelConfig config =
        shape(1 + draw.below(4), 4, kv_heads * group, kv_heads, 2, 1 + draw.below(7), 7);
    const AttentionUnit unit = units[static_cast<std::size_t>(draw.below(2))];
    const auto drawn_rules = [&] {
      PruneRules rules;
      rules.ranking = static_cast<Ranking>(draw.below(3));
      rules.measure = static_cast<Measure>(draw.below(3));
      rules.attention = draw.below(4) > 0;
      rules.mlp = !rules.attention || draw.below(4) > 0;
      rules.min_heads = draw.below(config.heads + 1);
      rules.min_channels = draw.below(config.channels + 1);
      for (std::int64_t layer = 0; layer < config.layers; ++layer)
        rules.protected_layer.push_back(draw.below(3) == 0);
      return rules;
    };
    const auto step = [&](const PruningPlan& plan, double target, std::int64_t iteration) {
      const PruneRules rules = drawn_rules();
      PruningPlan next = plan;
      answered("advance", [&] {
        next = advance(config, plan, drawn_scores(draw, plan), target, rules, iteration).plan;
      });
      return next;
    };
    const PruningPlan dense = dense_plan(config, unit);
    const PruningPlan base = step(dense, draw.uniform() / 2, 1);
    const PruningPlan plan = step(base, draw.uniform(), 2);
    const PruneRules rules = drawn_rules();
    const double target = draw.below(8) == 0 ? 1.5 - draw.uniform() : draw.uniform();
    answered("require_work", [&] { require_work(config, rules, base, target); });
    const bool can =
        answered("require_reachable", [&] { require_reachable(config, rules, base, target); });
    const bool reached = answered(
        "advance", [&] { advance(config, base, drawn_scores(draw, base), target, rules, 3); });
    // A run is refused before it starts, not by its last iteration.
    if (can) {
      EXPECT_TRUE(reached) << "round " << round;
    }
    done += answered("truncate", [&] {
      const PruningPlan part = truncate_plan(config, plan, base, target, rules);
      require_part(base, part);
      require_part(part, plan);
      const ModelWidths widths = widths_of(config, part);
      EXPECT_EQ(intersect({widths_of(config, base), {}}, widths).widths, widths);
    });
    answered("truncate to another", [&] { truncate_plan(config, base, plan, target, rules); });
    if (rules.attention && rules.mlp)
      for (const PruningPlan& each : {base, plan}) {
        const double own = reached_target(config, rules, each);
        EXPECT_LE(reached_target(config, rules, base), reached_target(config, rules, plan) + 1e-12);
        EXPECT_TRUE(answered("truncate at the ends of the range",
                             [&] { truncate_plan(config, plan, base, own, rules); }))
            << "round " << round << ", " << own << ", " << name_of(unit);
      }
  }
  EXPECT_GT(done, 100);
}

TEST(Requests, NoneIsAnsweredWithAnInternalError) {
  expect_answers(Draw(80), {AttentionUnit::query_head, AttentionUnit::kv_group});
}

TEST(Requests, NorAreThoseUnderEqualPerGroup) {
  expect_answers(Draw(81), {AttentionUnit::equal_per_group, AttentionUnit::equal_per_group});
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
