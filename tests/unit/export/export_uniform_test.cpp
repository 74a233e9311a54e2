#include <gtest/gtest.h>

#include "unit/export/sample_checkpoint.h"

namespace espalier {
namespace {

using namespace testing;

ModelWidths even_widths(const ModelConfig& config) {
  return widths_from(config, {{0, 2}, {1, 5}, {2, 4}, {3, 4}},
                     {{0, 1, 2}, {7, 8, 9}, {0, 4, 8}, {1, 5, 9}});
}

TEST(ExportUniform, WritesAPlainCheckpoint) {
  for (const char* family : {"llama", "mistral", "qwen2", "qwen3"})
    for (const bool tied : {false, true}) {
      SCOPED_TRACE(family);
      const TemporaryDirectory place;
      const SampleCheckpoint source(place.path() / "source", sample_config(family, tied),
                                    DType::bf16);
      write_text(source.directory / "tokenizer.json", "{}");
      const ModelWidths kept = even_widths(source.config);
      const fs::path out = place.path() / "out";
      const ExportReport report = export_uniform(
          source.open(), source.config, dense_widths(source.config), kept, options_for(out));
      EXPECT_EQ(files_below(out),
                (std::vector<std::string>{"README.md", "config.json", "model.safetensors",
                                          "provenance.json", "tokenizer.json"}));
      expect_same_tensors(read_tensors(out), expected_tensors(source.config, source.tensors, kept));
      // A stock reader sees a dense model of these widths.
      const ModelConfig again = read_model_config(out);
      EXPECT_FALSE(again.exported.has_value());
      EXPECT_EQ(again.heads, 2);
      EXPECT_EQ(again.kv_heads, 2);
      EXPECT_EQ(again.head_dim, 4);
      EXPECT_EQ(again.channels, 3);
      for (const TensorSpec& spec : tensor_catalog(again))
        EXPECT_EQ(read_tensors(out).at(spec.name).shape, spec.shape) << spec.name;
      EXPECT_EQ(report.model_type, name_of(again.family));
    }
}

TEST(ExportUniform, FromAnExactExportItIsTheSameAsFromTheSource) {
  const TemporaryDirectory place;
  const SampleCheckpoint source(place.path() / "source", sample_config("qwen2", true), DType::f32);
  const ModelConfig& dense = source.config;
  const ModelWidths kept = even_widths(dense);
  export_exact(source.open(), dense, dense_widths(dense), kept,
               options_for(place.path() / "exact"));
  const ModelConfig exported = read_model_config(place.path() / "exact");
  export_uniform(CheckpointReader::open(place.path() / "exact"), exported, kept, kept,
                 options_for(place.path() / "uniform"));
  expect_same_tensors(read_tensors(place.path() / "uniform"),
                      expected_tensors(dense, source.tensors, kept));
  EXPECT_FALSE(fs::exists(place.path() / "uniform/modeling_espalier.py"));
  EXPECT_FALSE(read_model_config(place.path() / "uniform").exported.has_value());
}

TEST(ExportUniform, IsRefusedBeforeAnythingIsWritten) {
  const TemporaryDirectory place;
  const SampleCheckpoint source(place.path() / "source", sample_config("llama", true), DType::f32);
  const Error error = error_of([&] {
    export_uniform(source.open(), source.config, dense_widths(source.config),
                   uneven_widths(source.config), options_for(place.path() / "deep/out"));
  });
  EXPECT_EQ(error.code(), ExitCode::config);
  EXPECT_FALSE(fs::exists(place.path() / "deep"));
}

TEST(ExportUniform, SaysWhatAUserOfTheCheckpointShouldKnow) {
  const TemporaryDirectory place;
  const std::string text = R"({"model_type": "llama", "hidden_size": 14, "num_hidden_layers": 1,
    "num_attention_heads": 7, "num_key_value_heads": 7, "intermediate_size": 4, "vocab_size": 5,
    "tie_word_embeddings": true, "torch_dtype": "float32"})";
  const SampleCheckpoint source(place.path() / "source", text, DType::f32);
  const ExportReport report = export_uniform(
      source.open(), source.config, dense_widths(source.config),
      widths_from(source.config, {{0, 1, 2, 3}}, {{0}}), options_for(place.path() / "a"));
  EXPECT_EQ(report.model_type, "mistral");
  ASSERT_EQ(report.notes.size(), 1U);
  EXPECT_NE(report.notes[0].find("hidden size 14 is no multiple of its 4 query heads"),
            std::string::npos);
  EXPECT_NE(read_text(place.path() / "a/README.md").find(report.notes[0]), std::string::npos);
}

}  // namespace
}  // namespace espalier
