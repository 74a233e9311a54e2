#include <gtest/gtest.h>

#include "espalier/core/error.h"
#include "espalier/prune/plan.h"
#include "unit/prune/sample_models.h"

namespace espalier {
namespace {

using testing::shape;

/// 3 layers, 6 query heads in 3 groups of 2, 5 channels; layer 1 lost its attention, layer 2 its
/// MLP.
ModelWidths sample_widths(const ModelConfig& config) {
  ModelWidths widths = dense_widths(config);
  widths.layers[0].query_heads = {0, 1, 4, 5};
  widths.layers[0].channels = {1, 3};
  widths.layers[1].query_heads = {};
  widths.layers[2].channels = {};
  for (LayerWidths& layer : widths.layers)
    layer.kv_heads = kept_kv_heads(config, layer.query_heads);
  return widths;
}

ModelConfig sample_model() { return shape(3, 8, 6, 3, 4, 5, 11); }

TEST(PlanOfWidths, LeavesExactlyTheseWidths) {
  const ModelConfig config = sample_model();
  const ModelWidths widths = sample_widths(config);
  for (const AttentionUnit unit : {AttentionUnit::query_head, AttentionUnit::kv_group}) {
    const PruningPlan plan = plan_of_widths(config, widths, unit);
    EXPECT_EQ(widths_of(config, plan), widths);
    EXPECT_EQ(plan.attention_unit, unit);
    EXPECT_EQ(plan.iteration, 1);
    EXPECT_EQ(plan.removed(), (unit == AttentionUnit::query_head ? 2 + 6 : 1 + 3) + 3 + 5);
    // read_plan checks that the order is a permutation of what was removed.
    Hdf5Writer file;
    write_plan(file, "", plan);
    EXPECT_EQ(read_plan(Hdf5Reader::from_image(file.finish(), "plan"), "", config), plan);
  }
}

TEST(PlanOfWidths, OfDenseWidthsItIsTheDensePlan) {
  const ModelConfig config = sample_model();
  EXPECT_EQ(plan_of_widths(config, dense_widths(config), AttentionUnit::kv_group),
            dense_plan(config, AttentionUnit::kv_group));
}

TEST(PlanOfWidths, HalfAGroupIsNoUnitOfKvGroups) {
  const ModelConfig config = sample_model();
  ModelWidths widths = sample_widths(config);
  widths.layers[0].query_heads = {0, 4, 5};
  EXPECT_EQ(widths_of(config, plan_of_widths(config, widths, AttentionUnit::query_head)), widths);
  try {
    plan_of_widths(config, widths, AttentionUnit::kv_group);
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::config);
    const std::string text = error.what();
    EXPECT_NE(text.find("layer 0"), std::string::npos) << text;
    EXPECT_NE(text.find("query_head"), std::string::npos) << text;
  }
}

TEST(PlanOfWidths, EqualPerGroupWantsGroupsThatLostAsMuch) {
  const ModelConfig config = sample_model();
  ModelWidths widths = dense_widths(config);
  widths.layers[0].query_heads = {0, 3, 5};
  widths.layers[1].query_heads = widths.layers[1].kv_heads = {};
  const PruningPlan plan = plan_of_widths(config, widths, AttentionUnit::equal_per_group);
  EXPECT_EQ(widths_of(config, plan), widths);
  EXPECT_EQ(plan.removed(), 3 + 6);
  const std::vector<std::vector<std::int32_t>> uneven{{0, 1, 2, 4}, {0, 1, 2, 3}, {0}};
  for (const std::vector<std::int32_t>& heads : uneven) {
    widths.layers[0].query_heads = heads;
    widths.layers[0].kv_heads = kept_kv_heads(config, heads);
    try {
      plan_of_widths(config, widths, AttentionUnit::equal_per_group);
      ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::config);
      const std::string text = error.what();
      EXPECT_NE(text.find("layer 0"), std::string::npos) << text;
      EXPECT_NE(text.find("query_head"), std::string::npos) << text;
    }
  }
}

TEST(BreakOfContinuation, NamesTheUnitThatDiffers) {
  const ModelConfig config = sample_model();
  const PruningPlan before =
      plan_of_widths(config, sample_widths(config), AttentionUnit::query_head);
  PruningPlan later = before;
  later.mlp_removed_at.at(1, 4) = 2;
  later.mlp_order.at(1, 4) = later.removed() - 1;
  later.iteration = 2;
  EXPECT_EQ(break_of_continuation(before, before), "");
  EXPECT_EQ(break_of_continuation(before, later), "");
  EXPECT_EQ(break_of_continuation(dense_plan(config, AttentionUnit::query_head), later), "");
  EXPECT_EQ(break_of_continuation(later, before),
            "channel 4 of layer 1 is kept by the plan and gone from the model");
  PruningPlan other = before;  // head 2 was never removed, another one was
  other.attention_removed_at.at(0, 2) = -1;
  other.attention_removed_at.at(0, 4) = 1;
  EXPECT_NE(break_of_continuation(before, other), "");
  other = before;
  std::swap(other.mlp_order.at(2, 0), other.mlp_order.at(2, 1));
  EXPECT_EQ(break_of_continuation(before, other),
            "channel 0 of layer 2 fell at another place of the order");
  other = before;
  other.mlp_removed_at.at(1, 0) = 1;
  EXPECT_EQ(break_of_continuation(before, other),
            "channel 0 of layer 1 is in the model, and the plan removed it in iteration 1");
}

}  // namespace
}  // namespace espalier
