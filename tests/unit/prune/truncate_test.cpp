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

struct History {
  ModelConfig config;
  PruneRules rules;
  std::vector<double> targets;
  std::vector<PruningPlan> plans;  // dense, then after each iteration
};

History drawn_run(Draw& draw, Ranking ranking, Measure measure, AttentionUnit unit,
                  std::int64_t width_multiple = 1) {
  History run;
  run.config = shape(4, 6, 6, 3, 2, 9, 11);
  run.config.qkv_bias = true;
  run.rules.ranking = ranking;
  run.rules.measure = measure;
  run.rules.protected_layer = {false, false, false, true};
  run.rules.width_multiple = width_multiple;
  run.plans.push_back(dense_plan(run.config, unit));
  run.targets.push_back(0);
  const double most = 0.9 * reachable_target(run.config, run.rules, run.plans.front());
  for (int i = 1; i <= 5; ++i) {
    const ScoreTable scores = drawn_scores(draw, run.plans.back());
    run.targets.push_back(most * i / 5);
    run.plans.push_back(
        advance(run.config, run.plans.back(), scores, run.targets.back(), run.rules, i).plan);
  }
  return run;
}

const Ranking rankings[] = {Ranking::global, Ranking::global_by_kind, Ranking::local};
const AttentionUnit units[] = {AttentionUnit::query_head, AttentionUnit::equal_per_group,
                               AttentionUnit::kv_group};

/// Every unit that `small` removed fell in `large` too, in the same iteration and relative order.
void expect_part_of(const PruningPlan& small, const PruningPlan& large) {
  std::vector<std::int64_t> order(static_cast<std::size_t>(small.removed()), -1);
  const auto walk = [&](const auto& removed_at, const auto& places, const auto& all_removed_at,
                        const auto& all_places) {
    for (std::size_t i = 0; i < places.values.size(); ++i) {
      if (places.values[i] < 0) {
        EXPECT_EQ(removed_at.values[i], -1);
        continue;
      }
      EXPECT_EQ(removed_at.values[i], all_removed_at.values[i]);
      order.at(static_cast<std::size_t>(places.values[i])) = all_places.values[i];
    }
  };
  walk(small.attention_removed_at, small.attention_order, large.attention_removed_at,
       large.attention_order);
  walk(small.mlp_removed_at, small.mlp_order, large.mlp_removed_at, large.mlp_order);
  for (std::size_t i = 0; i < order.size(); ++i) {
    EXPECT_GE(order[i], 0);
    if (i > 0) {
      EXPECT_LT(order[i - 1], order[i]);
    }
  }
}

/// An iteration of one list with bundles and channels ends where the next entry is a bundle that is
/// more than its target leaves. The next iteration's scores may put channels there instead.
bool passes_a_bundle(Ranking ranking, AttentionUnit unit) {
  return ranking == Ranking::global && unit == AttentionUnit::equal_per_group;
}

void expect_beyond_by_less_than_a_bundle(const PruningPlan& of_run, const PruningPlan& part,
                                         const ModelConfig& config) {
  EXPECT_NO_THROW(require_part(of_run, part));
  EXPECT_EQ(part.attention_removed_at, of_run.attention_removed_at);
  EXPECT_LT(part.removed() - of_run.removed(), config.kv_heads);
}

TEST(Truncate, ByStructuresGivesBackEveryEarlierPlan) {
  Draw draw(31);
  for (Ranking ranking : rankings)
    for (AttentionUnit unit : units)
      for (int round = 0; round < 5; ++round) {
        const History run = drawn_run(draw, ranking, Measure::structures, unit);
        for (std::size_t i = 0; i < run.plans.size(); ++i) {
          const PruningPlan part = truncate_plan(run.config, run.plans.back(), run.plans.front(),
                                                 run.targets[i], run.rules);
          EXPECT_EQ(part.model_config_sha256, run.config.sha256);
          if (passes_a_bundle(ranking, unit)) {
            expect_part_of(part, run.plans.back());
            expect_beyond_by_less_than_a_bundle(run.plans[i], part, run.config);
            continue;
          }
          EXPECT_EQ(part.attention_removed_at, run.plans[i].attention_removed_at);
          EXPECT_EQ(part.mlp_removed_at, run.plans[i].mlp_removed_at);
          EXPECT_EQ(part.attention_order, run.plans[i].attention_order);
          EXPECT_LE(part.iteration, run.plans[i].iteration);
        }
      }
}

TEST(Truncate, AtItsOwnTargetAndSparsityNothingChanges) {
  Draw draw(32);
  for (Ranking ranking : rankings)
    for (Measure measure : {Measure::structures, Measure::parameters, Measure::total_parameters})
      for (AttentionUnit unit : units) {
        const History run = drawn_run(draw, ranking, measure, unit);
        const PruningPlan& whole = run.plans.back();
        EXPECT_EQ(truncate_plan(run.config, whole, run.plans.front(), run.targets.back(), run.rules)
                      .digest(),
                  whole.digest());
        if (ranking == Ranking::global) {
          const double reached = sparsity_of(run.config, run.rules, whole).of(measure);
          EXPECT_EQ(
              truncate_plan(run.config, whole, run.plans.front(), reached, run.rules).digest(),
              whole.digest());
        }
        EXPECT_THROW(truncate_plan(run.config, whole, run.plans.front(), 0.99, run.rules), Error);
      }
}

TEST(Truncate, ByParametersTakesTheLongestPrefix) {
  Draw draw(33);
  for (AttentionUnit unit : units)
    for (int round = 0; round < 10; ++round) {
      const History run = drawn_run(draw, Ranking::global, Measure::parameters, unit);
      const PruningPlan& whole = run.plans.back();
      const double target = draw.uniform() * sparsity_of(run.config, run.rules, whole).parameters;
      const PruningPlan part =
          truncate_plan(run.config, whole, run.plans.front(), target, run.rules);
      expect_part_of(part, whole);
      EXPECT_LE(sparsity_of(run.config, run.rules, part).parameters, target);
      PruningPlan longer = part;  // with the next unit of the order it would exceed the target
      // Every head of the next bundle, which lie behind one another in the order.
      std::int64_t entry = 1;
      for (std::size_t i = 0; i < longer.attention_order.values.size(); ++i)
        if (unit == AttentionUnit::equal_per_group &&
            whole.attention_order.values[i] == part.removed())
          entry = run.config.kv_heads;
      for (std::size_t i = 0; i < longer.attention_order.values.size(); ++i)
        if (whole.attention_order.values[i] >= part.removed() &&
            whole.attention_order.values[i] < part.removed() + entry)
          longer.attention_removed_at.values[i] = 1;
      for (std::size_t i = 0; i < longer.mlp_order.values.size(); ++i)
        if (whole.mlp_order.values[i] == part.removed()) longer.mlp_removed_at.values[i] = 1;
      EXPECT_EQ(longer.removed(), part.removed() + entry);
      EXPECT_GT(sparsity_of(run.config, run.rules, longer).parameters, target);
    }
}

TEST(Truncate, PartsNestAndKeepARemovalOrderWithoutGaps) {
  Draw draw(34);
  for (Ranking ranking : rankings)
    for (Measure measure : {Measure::structures, Measure::parameters, Measure::total_parameters})
      for (AttentionUnit unit : units) {
        const History run = drawn_run(draw, ranking, measure, unit);
        PruningPlan larger = run.plans.back();
        for (int k = 9; k >= 0; --k) {
          const double target = run.targets.back() * k / 10;
          const PruningPlan part =
              truncate_plan(run.config, run.plans.back(), run.plans.front(), target, run.rules);
          expect_part_of(part, run.plans.back());
          expect_part_of(part, larger);
          // Of the part a part again: the way does not matter.
          EXPECT_EQ(truncate_plan(run.config, larger, run.plans.front(), target, run.rules), part);
          EXPECT_EQ(widths_of(run.config, part).layers[3], dense_widths(run.config).layers[3]);
          larger = part;
        }
        EXPECT_EQ(larger.removed(), 0);
        EXPECT_EQ(larger.iteration, 0);
      }
}

TEST(Truncate, WhatTheRulesDoNotRankStays) {
  const ModelConfig config = shape(2, 5, 4, 2, 2, 3, 7);
  PruneRules rules;
  rules.protected_layer = {true, false};
  const PruningPlan dense = dense_plan(config, AttentionUnit::query_head);
  PruningPlan plan = dense;
  plan.mlp_removed_at.at(0, 1) = 1;  // a protected layer of a plan that the run started from
  plan.mlp_order.at(0, 1) = 0;
  plan.mlp_removed_at.at(1, 2) = 2;
  plan.mlp_order.at(1, 2) = 1;
  plan.iteration = 2;
  const PruningPlan part = truncate_plan(config, plan, dense, 1.0 / 14, rules);
  EXPECT_EQ(part.mlp_removed_at.at(0, 1), 1);
  EXPECT_EQ(part.removed(), 1);
  EXPECT_EQ(part.iteration, 1);
  // Its place in the order is kept among those that stay.
  plan.mlp_removed_at.at(1, 2) = 1;
  plan.mlp_order.at(1, 2) = 0;
  plan.mlp_order.at(0, 1) = 1;
  EXPECT_EQ(truncate_plan(config, plan, dense, 2.0 / 14, rules).mlp_order, plan.mlp_order);
}

// --- a plan that began on a pruned model --------------------------------------------------------

const Measure measures[] = {Measure::structures, Measure::parameters, Measure::total_parameters};

/// Iterations 3 to 5 of `run` on a source that has what the first two removed, and a schedule that
/// begins there.
History continued_run(Draw& draw, Ranking ranking, Measure measure, AttentionUnit unit) {
  History run = drawn_run(draw, ranking, measure, unit);
  run.plans.resize(3);
  run.plans.erase(run.plans.begin(), run.plans.begin() + 2);
  const double start = reached_target(run.config, run.rules, run.plans.front());
  PruneConfig prune;
  prune.iterations = 3;
  prune.target = 0.9 * reachable_target(run.config, run.rules, run.plans.front());
  run.targets = {start};
  for (int i = 1; i <= 3; ++i) {
    run.targets.push_back(scheduled_target(prune, start, i));
    const ScoreTable scores = drawn_scores(draw, run.plans.back());
    run.plans.push_back(
        advance(run.config, run.plans.back(), scores, run.targets.back(), run.rules, 2 + i).plan);
  }
  return run;
}

TEST(TruncateToASource, EveryIterationRemovesSomethingAndIsFoundAgain) {
  Draw draw(35);
  for (Ranking ranking : rankings)
    for (Measure measure : measures)
      for (AttentionUnit unit : units)
        for (int round = 0; round < 4; ++round) {
          const History run = continued_run(draw, ranking, measure, unit);
          for (std::size_t i = 1; i < run.plans.size(); ++i) {
            // `local` by parameters goes in steps of a unit in every layer, larger than these.
            if (ranking != Ranking::local || measure == Measure::structures) {
              EXPECT_GT(run.plans[i].removed(), run.plans[i - 1].removed());
            }
            if (measure == Measure::structures && !passes_a_bundle(ranking, unit)) {
              EXPECT_EQ(truncate_plan(run.config, run.plans.back(), run.plans.front(),
                                      run.targets[i], run.rules)
                            .digest(),
                        run.plans[i].digest());
            }
          }
          EXPECT_EQ(truncate_plan(run.config, run.plans.back(), run.plans.front(), run.targets[0],
                                  run.rules)
                        .digest(),
                    run.plans[0].digest());
        }
}

TEST(TruncateToASource, BelowIsRefusedWithTheRange) {
  Draw draw(36);
  for (Ranking ranking : rankings)
    for (Measure measure : measures)
      for (AttentionUnit unit : units) {
        const History run = continued_run(draw, ranking, measure, unit);
        const double low = reached_target(run.config, run.rules, run.plans.front());
        const double high = reached_target(run.config, run.rules, run.plans.back());
        EXPECT_LT(low, high);
        // One more bundle in every layer is more than 0.3 of this model.
        const double above = unit == AttentionUnit::equal_per_group ? 1 : high + 0.3;
        for (double target : {0.0, low / 2, low - 1e-6, above}) {
          try {
            truncate_plan(run.config, run.plans.back(), run.plans.front(), target, run.rules);
            ADD_FAILURE() << target << " of " << low << " to " << high;
          } catch (const Error& error) {
            EXPECT_EQ(error.code(), ExitCode::config);
            const std::string range = fmt::format("from {:.6f} to {:.6f} of the", low, high);
            EXPECT_NE(std::string(error.what()).find(range), std::string::npos) << error.what();
          }
        }
      }
}

// The first bundles of an order are what `export --sparsity` takes of a plan file.
TEST(Truncate, UnderEqualPerGroupEveryPartIsOfWholeBundles) {
  Draw draw(37);
  for (Ranking ranking : rankings)
    for (Measure measure : measures) {
      const History run = drawn_run(draw, ranking, measure, AttentionUnit::equal_per_group);
      PruneRules open;
      open.protected_layer.assign(4, false);
      PruningPlan before = run.plans.front();
      for (int k = 0; k <= 50; ++k) {
        const double target = k / 50.0 * reached_target(run.config, open, run.plans.back());
        const PruningPlan part =
            truncate_plan(run.config, run.plans.back(), run.plans.front(), target, open);
        for (const LayerWidths& layer : widths_of(run.config, part).layers) {
          EXPECT_TRUE(layer.even_groups(run.config));
          EXPECT_TRUE(layer.kv_heads.empty() || layer.kv_heads.size() == 3u);
        }
        EXPECT_NO_THROW(require_part(before, part));
        before = part;
      }
      EXPECT_EQ(before.digest(), run.plans.back().digest());
    }
}

TEST(Truncate, InMultiplesEveryPartIsOfWholeBlocksAndNests) {
  Draw draw(38);
  for (Ranking ranking : rankings)
    for (Measure measure : measures)
      for (AttentionUnit unit : units) {
        const History run = drawn_run(draw, ranking, measure, unit, 3);
        const PruningPlan& whole = run.plans.back();
        PruningPlan larger = whole;
        for (int k = 25; k >= 0; --k) {
          const double target = run.targets.back() * k / 25;
          const PruningPlan part =
              truncate_plan(run.config, whole, run.plans.front(), target, run.rules);
          for (const LayerWidths& layer : widths_of(run.config, part).layers)
            EXPECT_EQ(layer.channels.size() % 3, 0u);
          EXPECT_LE(sparsity_of(run.config, run.rules, part).of(measure), target + 1e-12);
          expect_part_of(part, whole);
          expect_part_of(part, larger);
          EXPECT_EQ(truncate_plan(run.config, larger, run.plans.front(), target, run.rules), part);
          larger = part;
        }
        EXPECT_EQ(larger.removed(), 0);
        EXPECT_EQ(truncate_plan(run.config, whole, run.plans.front(), run.targets.back(), run.rules)
                      .digest(),
                  whole.digest());
        // By parameters what separate lists have come to is that of the one that is behind.
        if (ranking == Ranking::global || measure == Measure::structures) {
          const double reached = reached_target(run.config, run.rules, whole);
          EXPECT_EQ(
              truncate_plan(run.config, whole, run.plans.front(), reached, run.rules).digest(),
              whole.digest())
              << static_cast<int>(ranking) << static_cast<int>(measure) << static_cast<int>(unit);
        }
        EXPECT_THROW(truncate_plan(run.config, whole, run.plans.front(), 0.99, run.rules), Error);
      }
}

// Lists of one kind are cut at the same places again. In one list of heads and blocks an iteration
// may end before a block that is more than its target leaves, and the next begin with heads.
TEST(Truncate, InMultiplesByStructuresGivesBackEveryEarlierPlan) {
  Draw draw(39);
  for (Ranking ranking : rankings)
    for (AttentionUnit unit : units)
      for (int round = 0; round < 5; ++round) {
        const History run = drawn_run(draw, ranking, Measure::structures, unit, 3);
        for (std::size_t i = 0; i < run.plans.size(); ++i) {
          const PruningPlan part = truncate_plan(run.config, run.plans.back(), run.plans.front(),
                                                 run.targets[i], run.rules);
          if (ranking == Ranking::global) {
            EXPECT_NO_THROW(require_part(run.plans[i], part));
            EXPECT_LT(part.removed() - run.plans[i].removed(), 3);
            continue;
          }
          EXPECT_EQ(part.attention_removed_at, run.plans[i].attention_removed_at);
          EXPECT_EQ(part.mlp_removed_at, run.plans[i].mlp_removed_at);
        }
      }
}

TEST(TruncateToASource, APlanOfAnotherModelIsRefused) {
  const ModelConfig config = shape(2, 5, 4, 2, 2, 3, 7);
  PruneRules rules;
  rules.protected_layer = {false, false};
  PruningPlan base = dense_plan(config, AttentionUnit::query_head);
  base.mlp_removed_at.at(1, 2) = 1;
  base.mlp_order.at(1, 2) = 0;
  base.iteration = 1;
  PruningPlan plan = dense_plan(config, AttentionUnit::query_head);
  plan.mlp_removed_at.at(0, 2) = 1;
  plan.mlp_order.at(0, 2) = 0;
  plan.iteration = 1;
  for (const PruningPlan& other : {plan, dense_plan(config, AttentionUnit::kv_group)}) {
    try {
      truncate_plan(config, other, base, 1.0 / 14, rules);
      ADD_FAILURE();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::bad_content) << error.what();
    }
  }
}

}  // namespace
}  // namespace espalier
