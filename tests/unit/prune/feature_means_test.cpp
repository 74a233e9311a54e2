#include "espalier/prune/feature_means.h"

#include <cmath>
#include <functional>

#include <gtest/gtest.h>

#include "espalier/core/error.h"
#include "unit/prune/sample_models.h"

namespace espalier {
namespace {

using testing::small_gqa;

/// 1000 layer + feature, and negative for channels: every number says where it belongs.
FeatureMeans numbered(const ModelConfig& config) {
  FeatureMeans means = no_feature_means(config);
  for (const UnitKind kind : {UnitKind::attention, UnitKind::mlp})
    for (std::int64_t l = 0; l < config.layers; ++l)
      for (std::int64_t f = 0; f < means.of(kind).units; ++f) {
        const auto number = static_cast<double>(1000 * l + f + 1);
        means.of(kind).at(l, f) = kind == UnitKind::mlp ? -number : number;
      }
  return means;
}

PruningPlan after(PruningPlan plan, UnitKind kind, std::int64_t layer, std::int64_t unit) {
  const std::int64_t place = plan.removed();
  (kind == UnitKind::mlp ? plan.mlp_removed_at : plan.attention_removed_at).at(layer, unit) =
      static_cast<std::int32_t>(plan.iteration);
  (kind == UnitKind::mlp ? plan.mlp_order : plan.attention_order).at(layer, unit) = place;
  return plan;
}

std::int64_t known(const FeatureMeans& means) {
  std::int64_t count = 0;
  for (const UnitKind kind : {UnitKind::attention, UnitKind::mlp})
    for (const double value : means.of(kind).values) count += std::isnan(value) ? 0 : 1;
  return count;
}

TEST(FeatureMeans, EachUnitKeepsThoseOfTheIterationInWhichItFell) {
  const ModelConfig config = small_gqa();  // 6 heads of 4 on 2 KV heads, 7 channels
  FeatureMeans kept = no_feature_means(config);
  EXPECT_EQ(known(kept), 0);
  PruningPlan plan = dense_plan(config, AttentionUnit::query_head);
  plan.iteration = 1;
  plan = after(after(plan, UnitKind::attention, 2, 3), UnitKind::mlp, 0, 6);
  keep_means_of_fallen(kept, numbered(config), config, plan);
  EXPECT_EQ(known(kept), 4 + 1);
  for (int e = 0; e < 4; ++e) EXPECT_EQ(kept.attention.at(2, 12 + e), 2000 + 12 + e + 1);
  EXPECT_EQ(kept.mlp.at(0, 6), -7);
  // A later pass measures other numbers and knows nothing of what fell before.
  FeatureMeans later = numbered(config);
  for (double& value : later.mlp.values) value *= 2;
  later.mlp.at(0, 6) = std::nan("");
  plan.iteration = 2;
  plan = after(plan, UnitKind::mlp, 1, 0);
  keep_means_of_fallen(kept, later, config, plan);
  EXPECT_EQ(known(kept), 4 + 2);
  EXPECT_EQ(kept.mlp.at(0, 6), -7);
  EXPECT_EQ(kept.mlp.at(1, 0), -2 * 1001);
}

TEST(FeatureMeans, AKvGroupFallsWithTheFeaturesOfItsQueryHeads) {
  const ModelConfig config = small_gqa();
  FeatureMeans kept = no_feature_means(config);
  PruningPlan plan = dense_plan(config, AttentionUnit::kv_group);
  plan.iteration = 1;
  plan = after(plan, UnitKind::attention, 1, 1);
  keep_means_of_fallen(kept, numbered(config), config, plan);
  EXPECT_EQ(known(kept), 3 * 4);
  for (int f = 12; f < 24; ++f) EXPECT_EQ(kept.attention.at(1, f), 1000 + f + 1);
}

TEST(FeatureMeans, AUnitThatFellWithoutAMeanIsAnInternalError) {
  const ModelConfig config = small_gqa();
  FeatureMeans kept = no_feature_means(config);
  PruningPlan plan = dense_plan(config, AttentionUnit::query_head);
  plan.iteration = 1;
  plan = after(plan, UnitKind::mlp, 1, 2);
  try {
    keep_means_of_fallen(kept, no_feature_means(config), config, plan);
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::internal);
    EXPECT_NE(std::string(error.what()).find("layer 1: mlp unit 2"), std::string::npos);
  }
}

TEST(FeatureMeans, WhatIsCompensatedForMustBeKnown) {
  const ModelConfig config = small_gqa();
  const ModelWidths dense = dense_widths(config);
  ModelWidths less = dense;
  less.layers[1].channels.erase(less.layers[1].channels.begin() + 4);
  less.layers[2].query_heads.erase(less.layers[2].query_heads.begin() + 5);
  FeatureMeans means = numbered(config);
  EXPECT_NO_THROW(require_means(means, config, dense, less, "model"));
  means.mlp.at(1, 3) = std::nan("");  // kept
  EXPECT_NO_THROW(require_means(means, config, dense, less, "model"));
  EXPECT_NO_THROW(require_means(no_feature_means(config), config, less, less, "model"));
  for (const UnitKind kind : {UnitKind::attention, UnitKind::mlp}) {
    FeatureMeans hole = numbered(config);
    (kind == UnitKind::mlp ? hole.mlp.at(1, 4) : hole.attention.at(2, 23)) = std::nan("");
    try {
      require_means(hole, config, dense, less, "model");
      ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::bad_content);
      const char* whose =
          kind == UnitKind::mlp ? "channel 4 of layer 1" : "query head 5 of layer 2";
      EXPECT_NE(std::string(error.what()).find(whose), std::string::npos) << error.what();
    }
  }
}

TEST(FeatureMeans, RoundTripBesideAPlan) {
  const ModelConfig config = small_gqa();
  for (const std::string group : {"", "/plan"}) {
    FeatureMeans means = numbered(config);
    means.mlp.at(2, 2) = std::nan("");
    Hdf5Writer file;
    write_plan(file, group, dense_plan(config, AttentionUnit::query_head));
    write_feature_means(file, group, means);
    const std::vector<std::byte> image = file.finish();
    const Hdf5Reader reader = Hdf5Reader::from_image(image, "plan.h5");
    const std::optional<FeatureMeans> read = read_feature_means(reader, group, config);
    ASSERT_TRUE(read.has_value());
    EXPECT_EQ(read->digest(), means.digest());
    EXPECT_EQ(read->attention, means.attention);
    EXPECT_TRUE(std::isnan(read->mlp.at(2, 2)));
    EXPECT_EQ(reader.attribute_string(group.empty() ? "/" : group, "means_digest"), means.digest());
    EXPECT_NO_THROW(read_plan(reader, group, config));
  }
  Hdf5Writer file;
  write_plan(file, "", dense_plan(config, AttentionUnit::query_head));
  const std::vector<std::byte> image = file.finish();
  EXPECT_FALSE(read_feature_means(Hdf5Reader::from_image(image, "plan.h5"), "", config));
}

TEST(FeatureMeans, WhatDoesNotFitIsRefused) {
  const ModelConfig config = small_gqa();
  struct Wrong {
    const char* message;
    std::function<void(FeatureMeans&)> spoil;
    bool digest_of_original;
  };
  const std::vector<Wrong> cases{
      {"the shape is [3, 8]",
       [](FeatureMeans& means) {
         means.mlp.units = 8;
         means.mlp.values.resize(24);
       },
       false},
      {"a mean is infinite", [](FeatureMeans& means) { means.attention.at(0, 0) = -1 / 0.0; },
       false},
      {"the content's digest is", [](FeatureMeans& means) { means.mlp.at(1, 1) += 1e-12; }, true}};
  for (const Wrong& wrong : cases) {
    FeatureMeans means = numbered(config);
    const std::string before = means.digest();
    wrong.spoil(means);
    Hdf5Writer file;
    file.write("/means/attention", std::span<const double>(means.attention.values),
               {means.attention.layers, means.attention.units});
    file.write("/means/mlp", std::span<const double>(means.mlp.values),
               {means.mlp.layers, means.mlp.units});
    file.attribute("/", "means_digest", wrong.digest_of_original ? before : means.digest());
    const std::vector<std::byte> image = file.finish();
    try {
      read_feature_means(Hdf5Reader::from_image(image, "plan.h5"), "", config);
      ADD_FAILURE() << wrong.message;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::bad_content);
      EXPECT_NE(std::string(error.what()).find(wrong.message), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace espalier
