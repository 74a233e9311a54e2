#include <cmath>
#include <limits>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "unit/export/sample_checkpoint.h"

namespace espalier {
namespace {

using namespace testing;

std::vector<double> values_of(const StoredTensor& tensor) {
  std::vector<double> values(tensor.bytes.size() / size_of(tensor.dtype));
  decode(tensor.dtype, std::as_bytes(std::span(tensor.bytes)), values);
  return values;
}

void fill(StoredTensor& tensor, Draw& draw) {
  std::vector<double> values(static_cast<std::size_t>(elements_of(tensor.shape)));
  for (double& value : values) value = draw.uniform() - 0.5;
  encode(tensor.dtype, values, std::as_writable_bytes(std::span(tensor.bytes)));
}

/// A sample whose weights are numbers, not any bits.
SampleCheckpoint numbers(const fs::path& where, const std::string& config, DType dtype) {
  SampleCheckpoint sample(where, config, dtype);
  Draw draw(5);
  for (auto& [name, tensor] : sample.tensors) fill(tensor, draw);
  fs::remove(where / "model.safetensors");
  write_tensors(where, sample.tensors);
  return sample;
}

FeatureMeans drawn_means(const ModelConfig& config, std::uint64_t seed) {
  Draw draw(seed);
  FeatureMeans means = no_feature_means(config);
  for (const UnitKind kind : {UnitKind::attention, UnitKind::mlp})
    for (double& value : means.of(kind).values) value = draw.uniform() - 0.3;
  return means;
}

/// sum over what fell of mean x column, element by element in the dense model's numbers.
std::vector<double> by_loops(const SampleCheckpoint& dense, const FeatureMeans& means,
                             const ModelWidths& held, const ModelWidths& kept, std::size_t layer,
                             bool mlp) {
  const auto& before = mlp ? held.layers[layer].channels : held.layers[layer].query_heads;
  const auto& after = mlp ? kept.layers[layer].channels : kept.layers[layer].query_heads;
  const std::set<std::int32_t> stays(after.begin(), after.end());
  const std::int64_t width = mlp ? 1 : dense.config.head_dim;
  const StoredTensor& weight = dense.tensors.at(
      fmt::format("model.layers.{}.{}.weight", layer, mlp ? "mlp.down_proj" : "self_attn.o_proj"));
  const std::vector<double> w = values_of(weight);
  std::vector<double> bias(static_cast<std::size_t>(weight.shape[0]), 0.0);
  for (std::size_t i = 0; i < bias.size(); ++i)
    for (const std::int32_t unit : before)
      if (!stays.contains(unit))
        for (std::int64_t f = unit * width; f < (unit + 1) * width; ++f)
          bias[i] +=
              w[i * static_cast<std::size_t>(weight.shape[1]) + static_cast<std::size_t>(f)] *
              means.of(mlp ? UnitKind::mlp : UnitKind::attention)
                  .at(static_cast<std::int64_t>(layer), f);
  return bias;
}

/// Half a step of the dtype at `value`, and the rounding of some 30 additions in float64.
double tolerance(DType dtype, double value) {
  const double eps = dtype == DType::bf16  ? std::ldexp(1.0, -7)
                     : dtype == DType::f16 ? std::ldexp(1.0, -10)
                     : dtype == DType::f32 ? std::ldexp(1.0, -23)
                                           : 0.0;
  return 0.5 * eps * std::abs(value) + 64 * std::numeric_limits<double>::epsilon();
}

void expect_biases(const fs::path& out, const SampleCheckpoint& dense, const FeatureMeans& means,
                   const ModelWidths& held, const ModelWidths& kept, DType dtype) {
  const StoredTensors written = read_tensors(out);
  for (std::size_t layer = 0; layer < kept.layers.size(); ++layer)
    for (const bool mlp : {false, true}) {
      const std::string name =
          fmt::format("model.layers.{}.{}.bias", layer, mlp ? "mlp.down_proj" : "self_attn.o_proj");
      SCOPED_TRACE(name);
      ASSERT_TRUE(written.contains(name));
      EXPECT_EQ(written.at(name).dtype, dtype);
      EXPECT_EQ(written.at(name).shape, (std::vector<std::int64_t>{dense.config.hidden}));
      const std::vector<double> actual = values_of(written.at(name));
      const std::vector<double> wanted = by_loops(dense, means, held, kept, layer, mlp);
      for (std::size_t i = 0; i < wanted.size(); ++i)
        EXPECT_NEAR(actual[i], wanted[i], tolerance(dtype, wanted[i])) << i;
    }
}

TEST(OutputBias, IsTheMeanOutputOfWhatFellForEveryFamilyAndDtype) {
  for (const char* family : {"llama", "mistral", "qwen2", "qwen3"})
    for (const DType dtype : {DType::bf16, DType::f16, DType::f32, DType::f64}) {
      SCOPED_TRACE(fmt::format("{} {}", family, safetensors_name(dtype)));
      const TemporaryDirectory place;
      const SampleCheckpoint source =
          numbers(place.path() / "source", sample_config(family, false), dtype);
      const ModelWidths held = dense_widths(source.config), kept = uneven_widths(source.config);
      ExportOptions options = options_for(place.path() / "out");
      options.means = drawn_means(source.config, 8);
      const ExportReport report = export_exact(source.open(), source.config, held, kept, options);
      expect_biases(options.out, source, *options.means, held, kept, dtype);
      EXPECT_TRUE(report.output_bias);
      EXPECT_EQ(report.parameters.total, count_parameters(source.config, kept).total + 4 * 2 * 12);
      EXPECT_EQ(report.tensors, static_cast<std::int64_t>(read_tensors(options.out).size()));
      // The other tensors are what they are without it.
      StoredTensors others = read_tensors(options.out);
      std::erase_if(others, [](const auto& entry) {
        return entry.first.ends_with("o_proj.bias") || entry.first.ends_with("down_proj.bias");
      });
      expect_same_tensors(others, expected_tensors(source.config, source.tensors, kept));
      const ModelConfig again = read_model_config(options.out);
      EXPECT_TRUE(again.output_bias);
      EXPECT_EQ(count_parameters(again, kept).total, count_parameters(source.config, kept).total);
      EXPECT_NE(read_text(options.out / "README.md").find("on average"), std::string::npos);
    }
}

TEST(OutputBias, PartsOfAnySizeMakeTheSameBytes) {
  const TemporaryDirectory place;
  const SampleCheckpoint source =
      numbers(place.path() / "source", sample_config("llama", true), DType::bf16);
  const ModelWidths held = dense_widths(source.config), kept = uneven_widths(source.config);
  std::optional<StoredTensors> first;
  for (const std::size_t part_bytes : {1, 50, 100, 1000, 1 << 20})
    for (const std::uint64_t shard_bytes : {std::uint64_t{200}, std::uint64_t{1} << 30}) {
      ExportOptions options = options_for(place.path() / "out");
      options.means = drawn_means(source.config, 8);
      options.part_bytes = part_bytes;
      options.max_shard_bytes = shard_bytes;
      export_exact(source.open(), source.config, held, kept, options);
      if (!first) first = read_tensors(options.out);
      expect_same_tensors(read_tensors(options.out), *first);
      fs::remove_all(options.out);
    }
}

TEST(OutputBias, ASecondExportAddsToWhatTheFirstLeft) {
  const TemporaryDirectory place;
  const SampleCheckpoint source =
      numbers(place.path() / "source", sample_config("qwen2", false), DType::f64);
  const ModelConfig& dense = source.config;
  const ModelWidths all = dense_widths(dense);
  const ModelWidths once = uneven_widths(dense);
  const ModelWidths twice =
      widths_from(dense, {{1}, {}, {}, {4, 5}}, {{0, 9}, {2, 4, 5, 6, 7}, {}, {}});
  ExportOptions options = options_for(place.path() / "once");
  options.means = drawn_means(dense, 8);
  export_exact(source.open(), dense, all, once, options);
  const ModelConfig exported = read_model_config(options.out);
  // Without means the biases stay as they are, whatever falls.
  export_exact(CheckpointReader::open(place.path() / "once"), exported, once, twice,
               options_for(place.path() / "kept"));
  expect_biases(place.path() / "kept", source, *options.means, all, once, DType::f64);
  EXPECT_TRUE(read_model_config(place.path() / "kept").output_bias);
  // With the same means in two steps they are those of one step.
  options.out = place.path() / "twice";
  export_exact(CheckpointReader::open(place.path() / "once"), exported, once, twice, options);
  expect_biases(options.out, source, *options.means, all, twice, DType::f64);
}

TEST(OutputBias, OfOneThatLostNothingIsZero) {
  const TemporaryDirectory place;
  const SampleCheckpoint source =
      numbers(place.path() / "source", sample_config("mistral", false), DType::f32);
  const ModelWidths all = dense_widths(source.config);
  ExportOptions options = options_for(place.path() / "out");
  options.means = no_feature_means(source.config);
  export_exact(source.open(), source.config, all, all, options);
  for (const auto& [name, tensor] : read_tensors(options.out)) {
    if (!name.ends_with("o_proj.bias") && !name.ends_with("down_proj.bias")) continue;
    for (const double value : values_of(tensor)) EXPECT_EQ(value, 0.0) << name;
  }
}

TEST(OutputBias, MeansThatAreMissingOrTooLargeAreRefusedAndNothingIsLeft) {
  const TemporaryDirectory place;
  const SampleCheckpoint source =
      numbers(place.path() / "source", sample_config("llama", true), DType::f16);
  const ModelWidths all = dense_widths(source.config), kept = uneven_widths(source.config);
  ExportOptions options = options_for(place.path() / "out");
  for (const bool missing : {true, false}) {
    options.means = drawn_means(source.config, 8);
    options.means->mlp.at(0, 1) = missing ? std::nan("") : 1e9;
    const Error error =
        error_of([&] { export_exact(source.open(), source.config, all, kept, options); });
    EXPECT_EQ(error.code(), ExitCode::bad_content);
    EXPECT_NE(
        std::string(error.what())
            .find(missing
                      ? "no mean is known of channel 1 of layer 0"
                      : "model.layers.0.mlp.down_proj.bias would hold values that are not finite"),
        std::string::npos)
        << error.what();
    EXPECT_EQ(std::distance(fs::directory_iterator(place.path()), {}), 1);
  }
}

ModelWidths even_widths(const ModelConfig& config) {
  return widths_from(config, {{0, 2}, {1, 5}, {2, 4}, {3, 4}},
                     {{0, 1, 2}, {7, 8, 9}, {0, 4, 8}, {1, 5, 9}});
}

TEST(OutputBias, AUniformLlamaHasZerosForTheOthers) {
  const TemporaryDirectory place;
  const SampleCheckpoint source =
      numbers(place.path() / "source", sample_config("llama", false), DType::bf16);
  const ModelWidths all = dense_widths(source.config), kept = even_widths(source.config);
  ExportOptions options = options_for(place.path() / "out");
  options.means = drawn_means(source.config, 8);
  const ExportReport report = export_uniform(source.open(), source.config, all, kept, options);
  expect_biases(options.out, source, *options.means, all, kept, DType::bf16);
  const nlohmann::ordered_json config = read_json(options.out / "config.json");
  EXPECT_EQ(config["attention_bias"], true);
  EXPECT_EQ(config["mlp_bias"], true);
  EXPECT_FALSE(config.contains("espalier"));
  const StoredTensors written = read_tensors(options.out);
  for (int layer = 0; layer < 4; ++layer)
    for (const auto& [name, size] :
         std::vector<std::pair<const char*, std::int64_t>>{{"self_attn.q_proj", 8},
                                                           {"self_attn.k_proj", 8},
                                                           {"self_attn.v_proj", 8},
                                                           {"mlp.gate_proj", 3},
                                                           {"mlp.up_proj", 3}}) {
      const auto found = written.find(fmt::format("model.layers.{}.{}.bias", layer, name));
      ASSERT_NE(found, written.end()) << name;
      EXPECT_EQ(found->second.shape, (std::vector<std::int64_t>{size}));
      for (const double value : values_of(found->second)) EXPECT_EQ(value, 0.0);
    }
  EXPECT_EQ(written.size(), tensor_catalog(source.config).size() + 4 * 7);
  EXPECT_EQ(report.parameters.total,
            count_parameters(source.config, kept).total + 4 * (2 * 12 + 3 * 8 + 2 * 3));
}

TEST(OutputBias, AUniformFormThatCannotHoldThemIsRefusedBeforeAnythingIsWritten) {
  for (const char* family : {"mistral", "qwen2", "qwen3"}) {
    const TemporaryDirectory place;
    const SampleCheckpoint source =
        numbers(place.path() / "source", sample_config(family, false), DType::f32);
    ExportOptions options = options_for(place.path() / "deep/out");
    options.means = drawn_means(source.config, 8);
    const Error error = error_of([&] {
      export_uniform(source.open(), source.config, dense_widths(source.config),
                     even_widths(source.config), options);
    });
    EXPECT_EQ(error.code(), ExitCode::config);
    EXPECT_NE(std::string(error.what()).find("--no-compensation"), std::string::npos);
    EXPECT_FALSE(fs::exists(place.path() / "deep"));
  }
  // A llama whose heads do not divide its hidden size becomes a mistral.
  const TemporaryDirectory place;
  const SampleCheckpoint source =
      numbers(place.path() / "source", sample_config("llama", false), DType::f32);
  ExportOptions options = options_for(place.path() / "out");
  options.means = drawn_means(source.config, 8);
  const ModelWidths kept = widths_from(
      source.config, {{0, 1, 2, 3, 4}, {0, 1, 2, 3, 4}, {0, 1, 2, 3, 4}, {0, 1, 2, 3, 4}},
      {{0}, {1}, {2}, {3}});
  EXPECT_EQ(error_of([&] {
              export_uniform(source.open(), source.config, dense_widths(source.config), kept,
                             options);
            }).code(),
            ExitCode::config);
}

}  // namespace
}  // namespace espalier
