#include <cstdint>
#include <functional>
#include <tuple>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "espalier/core/error.h"
#include "espalier/core/hash.h"
#include "espalier/prune/plan_scores.h"
#include "unit/prune/naive_advance.h"
#include "unit/prune/sample_models.h"

namespace espalier {
namespace {

using testing::Draw;
using testing::drawn_scores;
using testing::shape;
using testing::small_gqa;

std::vector<std::byte> image_of(const PruningPlan& plan, const std::string& group = "") {
  Hdf5Writer file;
  write_plan(file, group, plan);
  return file.finish();
}

PruningPlan drawn_plan(Draw& draw, const ModelConfig& config, AttentionUnit unit) {
  PruneRules rules;
  rules.protected_layer.assign(static_cast<std::size_t>(config.layers), false);
  PruningPlan plan = dense_plan(config, unit);
  for (int i = 1; i <= 3; ++i)
    plan = advance(config, plan, drawn_scores(draw, plan), 0.15 * i, rules, i).plan;
  return plan;
}

TEST(PlanFile, RoundTripKeepsEverythingAndTheDigest) {
  Draw draw(41);
  const ModelConfig config = small_gqa();
  for (AttentionUnit unit :
       {AttentionUnit::query_head, AttentionUnit::equal_per_group, AttentionUnit::kv_group})
    for (const std::string group : {"", "/plan"}) {
      const PruningPlan plan = drawn_plan(draw, config, unit);
      const std::vector<std::byte> image = image_of(plan, group);
      const PruningPlan read = read_plan(Hdf5Reader::from_image(image, "plan.h5"), group, config);
      EXPECT_EQ(read, plan);
      EXPECT_EQ(read.digest(), plan.digest());
      EXPECT_GT(read.removed(), 0);
    }
  const PruningPlan dense = dense_plan(config, AttentionUnit::query_head);
  const std::vector<std::byte> image = image_of(dense);
  EXPECT_EQ(read_plan(Hdf5Reader::from_image(image, "plan.h5"), "", config), dense);
}

TEST(PlanFile, EqualPerGroupWithUnevenGroupsIsRefused) {
  const ModelConfig config = small_gqa();
  PruningPlan plan = dense_plan(config, AttentionUnit::query_head);
  plan.attention_removed_at.at(1, 0) = 1;
  plan.attention_order.at(1, 0) = 0;
  plan.iteration = 1;
  plan.attention_unit = AttentionUnit::equal_per_group;
  const std::vector<std::byte> image = image_of(plan);
  try {
    read_plan(Hdf5Reader::from_image(image, "plan.h5"), "", config);
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::bad_content);
    EXPECT_NE(std::string(error.what()).find("groups of layer 1"), std::string::npos);
  }
}

TEST(PlanFile, ObjectsAreTheContracts) {
  Draw draw(42);
  const PruningPlan plan = drawn_plan(draw, small_gqa(), AttentionUnit::query_head);
  const std::vector<std::byte> image = image_of(plan);
  const Hdf5Reader file = Hdf5Reader::from_image(image, "plan.h5");
  EXPECT_EQ(file.attribute_string("/", "format"), "espalier-plan");
  EXPECT_EQ(file.attribute_i64("/", "version"), 1);
  EXPECT_EQ(file.attribute_string("/", "digest"), plan.digest());
  EXPECT_EQ(file.attribute_string("/", "attention_unit"), "query_head");
  EXPECT_EQ(file.attribute_i64("/", "iteration"), 3);
  EXPECT_EQ(file.attribute_string("/", "model_config_sha256"), "0123456789abcdef");
  EXPECT_EQ(file.shape("/attention/order"), (std::vector<std::int64_t>{3, 6}));
  EXPECT_EQ(file.shape("/mlp/removed_at"), (std::vector<std::int64_t>{3, 7}));
}

TEST(Digest, IsSha256OverDimensionsAndBytes) {
  PruningPlan plan = dense_plan(shape(1, 4, 1, 1, 2, 2, 3), AttentionUnit::query_head);
  plan.mlp_removed_at.at(0, 1) = 258;
  plan.mlp_order.at(0, 1) = 0;
  std::vector<std::uint8_t> bytes;
  const auto number = [&](std::int64_t value, int width) {
    for (int i = 0; i < width; ++i)
      bytes.push_back(static_cast<std::uint8_t>(static_cast<std::uint64_t>(value) >> (8 * i)));
  };
  const auto matrix = [&](std::vector<std::int64_t> values, int width) {
    number(1, 8);
    number(static_cast<std::int64_t>(values.size()), 8);
    for (const std::int64_t value : values) number(value, width);
  };
  matrix({-1}, 4);
  matrix({-1}, 8);
  matrix({-1, 258}, 4);
  matrix({-1, 0}, 8);
  EXPECT_EQ(plan.digest(), sha256_hex(std::as_bytes(std::span(bytes))));
}

TEST(Digest, DependsOnEveryEntry) {
  Draw draw(43);
  const PruningPlan plan = drawn_plan(draw, small_gqa(), AttentionUnit::query_head);
  PruningPlan other = plan;
  other.mlp_order.values[5] += 1;
  EXPECT_NE(other.digest(), plan.digest());
  other = plan;
  other.attention_removed_at.values[0] += 1;
  EXPECT_NE(other.digest(), plan.digest());
}

struct Fault {
  const char* name;
  const char* message;
  std::function<void(PruningPlan&)> apply;
};

/// The first place of `matrix` that holds `value`.
template <class T>
T& slot(UnitMatrix<T>& matrix, T value) {
  return *std::find(matrix.values.begin(), matrix.values.end(), value);
}

// Written with a matching digest, so that only the named rule can refuse it.
TEST(PlanFile, EveryRuleOfTheOrderIsChecked) {
  const Fault faults[] = {
      {"order twice", "for a second unit",
       [](PruningPlan& p) { slot<std::int64_t>(p.mlp_order, 0) = p.removed() - 1; }},
      {"order beyond", "order is ",
       [](PruningPlan& p) { slot<std::int64_t>(p.mlp_order, 0) = p.removed(); }},
      {"order of a kept unit", "removed_at is -1 and order is 0",
       [](PruningPlan& p) { slot<std::int64_t>(p.mlp_order, -1) = 0; }},
      {"order below -1", "order is -2",
       [](PruningPlan& p) { slot<std::int64_t>(p.mlp_order, -1) = -2; }},
      {"removed without order", "and order is -1",
       [](PruningPlan& p) { slot<std::int64_t>(p.mlp_order, 0) = -1; }},
      {"iteration 0", "removed_at is 0", [](PruningPlan& p) { slot(p.mlp_removed_at, 1) = 0; }},
      {"iteration beyond", "removed_at is 4",
       [](PruningPlan& p) { slot(p.mlp_removed_at, 3) = 4; }},
      {"removed_at below -1", "removed_at is -7",
       [](PruningPlan& p) { slot(p.mlp_removed_at, -1) = -7; }},
      {"iterations out of order", "fell in iteration 3, the next in iteration 1",
       [](PruningPlan& p) { slot(p.mlp_removed_at, 1) = 3; }},
      {"iteration of the file", "iteration is -1", [](PruningPlan& p) { p.iteration = -1; }},
      {"iteration too small", "removed_at is 3", [](PruningPlan& p) { p.iteration = 2; }}};
  const ModelConfig config = shape(3, 10, 6, 2, 4, 40, 13);
  Draw draw(44);
  for (const Fault& fault : faults) {
    PruningPlan plan = drawn_plan(draw, config, AttentionUnit::query_head);
    // The first unit of the order is made a channel, whatever was drawn.
    while (std::find(plan.mlp_order.values.begin(), plan.mlp_order.values.end(), 0) ==
           plan.mlp_order.values.end())
      plan = drawn_plan(draw, config, AttentionUnit::query_head);
    fault.apply(plan);
    const std::vector<std::byte> image = image_of(plan);
    try {
      read_plan(Hdf5Reader::from_image(image, "plan.h5"), "", config);
      ADD_FAILURE() << fault.name << ": accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::bad_content) << fault.name << ": " << error.what();
      EXPECT_NE(std::string(error.what()).find(fault.message), std::string::npos)
          << fault.name << ": " << error.what();
    }
  }
}

TEST(PlanFile, OtherModelsFormatsAndDigestsAreRefused) {
  Draw draw(45);
  const ModelConfig config = small_gqa();
  const PruningPlan plan = drawn_plan(draw, config, AttentionUnit::query_head);
  const auto refused = [&](const std::string& part, const ModelConfig& as,
                           const std::function<void(Hdf5Writer&)>& write) {
    Hdf5Writer file;
    write(file);
    const std::vector<std::byte> image = file.finish();
    try {
      read_plan(Hdf5Reader::from_image(image, "plan.h5"), "", as);
      ADD_FAILURE() << part << ": accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::bad_content) << error.what();
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  };
  const auto as_is = [&](Hdf5Writer& file) { write_plan(file, "", plan); };
  refused("[3, 6]", shape(3, 10, 8, 2, 4, 7, 13), as_is);
  refused("[3, 7]", shape(3, 10, 6, 2, 4, 8, 13), as_is);
  refused("[3, 6]", shape(4, 10, 6, 2, 4, 7, 13), as_is);
  const auto with = [&](std::string format, std::int64_t version, std::string digest,
                        std::string unit) {
    return [=](Hdf5Writer& file) {
      const std::vector<std::int64_t> heads{3, 6};
      const std::vector<std::int64_t> channels{3, 7};
      using I32 = std::span<const std::int32_t>;
      using I64 = std::span<const std::int64_t>;
      file.write("/attention/removed_at", I32(plan.attention_removed_at.values), heads);
      file.write("/attention/order", I64(plan.attention_order.values), heads);
      file.write("/mlp/removed_at", I32(plan.mlp_removed_at.values), channels);
      file.write("/mlp/order", I64(plan.mlp_order.values), channels);
      file.attribute("/", "format", format);
      file.attribute("/", "version", version);
      file.attribute("/", "digest", digest);
      file.attribute("/", "attention_unit", unit);
      file.attribute("/", "iteration", plan.iteration);
      file.attribute("/", "model_config_sha256", plan.model_config_sha256);
    };
  };
  const std::string zeros(64, '0');
  refused("espalier-tokens", config, with("espalier-tokens", 1, zeros, "query_head"));
  refused("version is 2", config, with("espalier-plan", 2, zeros, "query_head"));
  refused("digest", config, with("espalier-plan", 1, zeros, "query_head"));
  refused("attention_unit is 'head'", config, with("espalier-plan", 1, zeros, "head"));
  refused("", config, [](Hdf5Writer& file) { file.attribute("/", "version", std::int64_t{1}); });
}

TEST(PlanFile, ScoresMustBeOfUnitsThatWereThere) {
  const ModelConfig config = small_gqa();  // 3 layers of 6 heads and 7 channels
  PruningPlan plan = dense_plan(config, AttentionUnit::query_head);
  plan.iteration = 2;
  plan.mlp_removed_at.at(1, 4) = 1;
  plan.mlp_order.at(1, 4) = 0;
  plan.mlp_removed_at.at(1, 5) = 2;
  plan.mlp_order.at(1, 5) = 1;
  const auto message = [&](std::int32_t layer, std::int32_t unit, bool mlp) -> std::string {
    ScoreTable scores;
    (mlp ? scores.mlp : scores.attention) = {{layer}, {unit}, {0.5}, {}};
    try {
      require_scores_of(plan, scores);
      return {};
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::bad_content);
      return error.what();
    }
  };
  EXPECT_EQ(message(0, 5, false), "");
  EXPECT_EQ(message(2, 6, true), "");
  EXPECT_EQ(message(1, 5, true), "") << "fell in this very iteration";
  EXPECT_NE(message(1, 4, true).find("mlp unit 4 of layer 1"), std::string::npos);
  for (const auto& [layer, unit, mlp] :
       {std::tuple(0, 6, false), std::tuple(3, 0, false), std::tuple(0, 7, true),
        std::tuple(INT32_MAX, 0, true), std::tuple(2, INT32_MAX, true)})
    EXPECT_NE(message(layer, unit, mlp).find(fmt::format("unit {} of layer {}", unit, layer)),
              std::string::npos)
        << layer << " " << unit;
}

}  // namespace
}  // namespace espalier
