#include <gtest/gtest.h>

#include "unit/export/sample_checkpoint.h"

namespace espalier {
namespace {

using namespace testing;

/// A plan that removes the given units, in iteration 1, in the order given.
PruningPlan plan_without(const ModelConfig& config, AttentionUnit unit,
                         const std::vector<std::pair<int, int>>& heads,
                         const std::vector<std::pair<int, int>>& channels) {
  PruningPlan plan = dense_plan(config, unit);
  plan.iteration = 1;
  std::int64_t place = 0;
  for (const auto& [layer, head] : heads) {
    plan.attention_removed_at.at(layer, head) = 1;
    plan.attention_order.at(layer, head) = place++;
  }
  for (const auto& [layer, channel] : channels) {
    plan.mlp_removed_at.at(layer, channel) = 1;
    plan.mlp_order.at(layer, channel) = place++;
  }
  return plan;
}

PruningPlan sample_plan(const ModelConfig& config, AttentionUnit unit) {
  return plan_without(config, unit, {{0, 1}, {2, 0}, {2, 2}, {3, 1}, {1, 0}, {1, 1}, {1, 2}},
                      {{0, 0}, {0, 5}, {1, 9}, {2, 3}});
}

struct Exported {
  explicit Exported(AttentionUnit unit = AttentionUnit::query_head)
      : source(place.path() / "source", sample_config("qwen2", true), DType::bf16),
        plan(sample_plan(source.config, unit)),
        out(place.path() / "out") {
    ExportOptions options = options_for(out);
    options.plan_image = plan_image_of(plan);
    options.plan_digest = plan.digest();
    export_exact(source.open(), source.config, dense_widths(source.config),
                 widths_of(source.config, plan), options);
  }
  TemporaryDirectory place;
  SampleCheckpoint source;
  PruningPlan plan;
  fs::path out;
};

TEST(ReadExportedWidths, GivesThePlanAndTheWidthsBack) {
  for (const AttentionUnit unit : {AttentionUnit::query_head, AttentionUnit::kv_group}) {
    const Exported sample(unit);
    const ModelConfig config = read_model_config(sample.out);
    const ExportedWidths read = read_exported_widths(sample.out, config);
    EXPECT_EQ(read.widths, widths_of(sample.source.config, sample.plan));
    ASSERT_TRUE(read.plan.has_value());
    EXPECT_EQ(*read.plan, sample.plan);
    EXPECT_EQ(widths_of_source(sample.out, config), read.widths);
    EXPECT_EQ(read_json(sample.out / "config.json")["espalier_plan_digest"], sample.plan.digest());
    EXPECT_EQ(widths_of_source(sample.source.directory, sample.source.config),
              dense_widths(sample.source.config));
  }
}

TEST(ReadExportedWidths, AnotherPlanThanConfigJsonSaysIsRefused) {
  const Exported sample;
  PruningPlan other =
      plan_without(sample.source.config, AttentionUnit::query_head,
                   {{0, 1}, {2, 0}, {2, 2}, {3, 1}}, {{0, 0}, {0, 5}, {1, 9}, {2, 3}});
  const std::vector<std::byte> image = plan_image_of(other);
  write_text(sample.out / "espalier_plan.h5",
             std::string(reinterpret_cast<const char*>(image.data()), image.size()));
  const ModelConfig config = read_model_config(sample.out);
  const Error error = error_of([&] { read_exported_widths(sample.out, config); });
  EXPECT_EQ(error.code(), ExitCode::bad_content);
  EXPECT_NE(std::string(error.what())
                .find("layer 1: config.json says groups [1, 2] and 9 channels, "
                      "espalier_plan.h5 says groups [2, 2, 2] and 9 channels"),
            std::string::npos)
      << error.what();
}

TEST(ReadExportedWidths, ADamagedPlanIsRefused) {
  const Exported sample;
  write_text(sample.out / "espalier_plan.h5", "no HDF5 at all");
  const ModelConfig config = read_model_config(sample.out);
  EXPECT_EQ(error_of([&] { read_exported_widths(sample.out, config); }).code(),
            ExitCode::bad_content);
}

TEST(ReadExportedWidths, WithoutAPlanUnitsAreNumberedByTheirPlaces) {
  const Exported sample;
  fs::remove(sample.out / "espalier_plan.h5");
  const ModelConfig config = read_model_config(sample.out);
  const ExportedWidths read = read_exported_widths(sample.out, config);
  EXPECT_FALSE(read.plan.has_value());
  ASSERT_EQ(read.notes.size(), 1U);
  EXPECT_NE(read.notes[0].find("espalier_plan.h5"), std::string::npos) << read.notes[0];
  const ModelWidths truth = widths_of(sample.source.config, sample.plan);
  for (std::size_t i = 0; i < truth.layers.size(); ++i) {
    EXPECT_EQ(read.widths.layers[i].groups(config), truth.layers[i].groups(config)) << i;
    EXPECT_EQ(read.widths.layers[i].channels.size(), truth.layers[i].channels.size()) << i;
    EXPECT_EQ(read.widths.layers[i].kv_heads,
              kept_kv_heads(config, read.widths.layers[i].query_heads));
  }
  EXPECT_EQ(read.widths.layers[0].query_heads, (std::vector<std::int32_t>{0, 2, 3, 4, 5}));
  // The tensors have the shapes that these widths ask for: it exports again as it is.
  export_exact(CheckpointReader::open(sample.out), config, read.widths, read.widths,
               options_for(sample.place.path() / "again"));
  expect_same_tensors(read_tensors(sample.place.path() / "again"), read_tensors(sample.out));
}

// transformers leaves them out when it saves an export again.
TEST(ReadExportedWidths, TensorsWithoutElementsMayBeThereOrNot) {
  const TemporaryDirectory place;
  const SampleCheckpoint source(place.path() / "source", sample_config("qwen3", true), DType::bf16);
  const ModelWidths kept = uneven_widths(source.config);
  export_exact(source.open(), source.config, dense_widths(source.config), kept,
               options_for(place.path() / "with"));
  const StoredTensors with = read_tensors(place.path() / "with");
  StoredTensors without = with;
  std::erase_if(without, [](const auto& entry) { return has_no_elements(entry.second.shape); });
  EXPECT_EQ(with.size(), without.size() + 7);
  fs::copy(place.path() / "with", place.path() / "without");
  fs::remove(place.path() / "without/model.safetensors");
  write_tensors(place.path() / "without", without);
  for (const char* name : {"with", "without"}) {
    const fs::path out = place.path() / (std::string(name) + "-again");
    export_exact(CheckpointReader::open(place.path() / name),
                 read_model_config(place.path() / name), kept, kept, options_for(out));
    expect_same_tensors(read_tensors(out), with);
  }
}

}  // namespace
}  // namespace espalier
