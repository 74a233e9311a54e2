#include <gtest/gtest.h>

#include "unit/export/sample_checkpoint.h"

namespace espalier {
namespace {

using namespace testing;
using Json = nlohmann::ordered_json;

ModelConfig config_of(const std::string& text) { return parse_model_config(text, "sample"); }

/// The parsed text, without object order: a literal comparison of everything that stands in it.
nlohmann::json unordered(const std::string& text) { return nlohmann::json::parse(text); }

TEST(ExactConfigJson, IsTheUnprunedConfigWithThreeKeysChangedAndBothSpellings) {
  const ModelConfig dense = config_of(sample_config("qwen3", true, R"(, "my_key": [1, 2.5])"));
  const std::string text = exact_config_json(dense, uneven_widths(dense), DType::bf16, "abc");
  EXPECT_EQ(unordered(text), nlohmann::json::parse(R"({
    "architectures": ["EspalierQwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 12,
    "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 4,
    "intermediate_size": 10, "vocab_size": 17, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-05, "hidden_act": "silu", "tie_word_embeddings": true, "my_key": [1, 2.5],
    "rope_theta": 20000.0, "rope_scaling": null,
    "rope_parameters": {"rope_theta": 20000.0, "rope_type": "default"},
    "torch_dtype": "bfloat16", "dtype": "bfloat16", "espalier_plan_digest": "abc",
    "auto_map": {"AutoModel": "modeling_espalier.EspalierQwen3Model",
      "AutoModelForCausalLM": "modeling_espalier.EspalierQwen3ForCausalLM",
      "AutoModelForSequenceClassification":
        "modeling_espalier.EspalierQwen3ForSequenceClassification"},
    "espalier": {"layers": [{"groups": [2, 1], "channels": 3}, {"groups": [], "channels": 6},
                            {"groups": [1], "channels": 0}, {"groups": [1, 2], "channels": 1}]}
  })"));
}

TEST(ExactConfigJson, KeepsTheOrderOfTheSourcesKeys) {
  const ModelConfig dense = config_of(sample_config("llama", true));
  const Json written = Json::parse(exact_config_json(dense, dense_widths(dense), DType::f32, ""));
  std::vector<std::string> keys;
  for (const auto& [key, value] : written.items()) keys.push_back(key);
  EXPECT_EQ(keys[0], "architectures");
  EXPECT_EQ(keys[1], "model_type");
  EXPECT_EQ(keys[2], "hidden_size");
  EXPECT_FALSE(written.contains("espalier_plan_digest"));
}

TEST(ExactConfigJson, FromTheSpellingOfTransformers5) {
  const ModelConfig dense = config_of(R"({"model_type": "llama", "hidden_size": 12,
    "num_hidden_layers": 1, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 4,
    "intermediate_size": 10, "vocab_size": 17, "max_position_embeddings": 131072,
    "rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0,
      "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
    "dtype": "float16"})");
  const auto written = unordered(exact_config_json(dense, dense_widths(dense), DType::f32, ""));
  EXPECT_EQ(written["rope_theta"], 500000.0);
  EXPECT_EQ(written["rope_scaling"], nlohmann::json::parse(R"({"rope_type": "llama3", "factor": 8.0,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192})"));
  EXPECT_EQ(written["rope_parameters"],
            nlohmann::json::parse(R"({"rope_type": "llama3", "factor": 8.0, "rope_theta": 500000.0,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192})"));
  EXPECT_EQ(written["torch_dtype"], "float16");
  EXPECT_EQ(written["dtype"], "float16");
}

TEST(ExactConfigJson, WithoutADtypeThatOfTheWeightsIsNamed) {
  const ModelConfig dense = config_of(R"({"model_type": "llama", "hidden_size": 12,
    "num_hidden_layers": 1, "num_attention_heads": 6, "num_key_value_heads": 3,
    "intermediate_size": 10, "vocab_size": 17})");
  const auto written = unordered(exact_config_json(dense, dense_widths(dense), DType::bf16, ""));
  EXPECT_EQ(written["torch_dtype"], "bfloat16");
  EXPECT_EQ(written["dtype"], "bfloat16");
}

TEST(ExactConfigJson, OfTwoDtypesThatDifferNeitherIsKept) {
  const ModelConfig dense = config_of(R"({"model_type": "llama", "hidden_size": 12,
    "num_hidden_layers": 1, "num_attention_heads": 6, "num_key_value_heads": 3,
    "intermediate_size": 10, "vocab_size": 17, "dtype": "float16", "torch_dtype": "float32"})");
  const auto written = unordered(exact_config_json(dense, dense_widths(dense), DType::bf16, ""));
  EXPECT_EQ(written["torch_dtype"], "bfloat16");
  EXPECT_EQ(written["dtype"], "bfloat16");
}

TEST(ExactConfigJson, WhatIsWrittenReadsBackAsTheSameModel) {
  for (const char* family : {"llama", "mistral", "qwen2", "qwen3"}) {
    const ModelConfig dense = config_of(sample_config(family, false));
    const ModelConfig again =
        config_of(exact_config_json(dense, uneven_widths(dense), DType::bf16, "d"));
    EXPECT_EQ(again.family, dense.family);
    EXPECT_EQ(again.heads, dense.heads);
    EXPECT_EQ(again.kv_heads, dense.kv_heads);
    EXPECT_EQ(again.channels, dense.channels);
    EXPECT_EQ(again.rope.theta, dense.rope.theta);
    EXPECT_EQ(again.sliding_window, dense.sliding_window);
    EXPECT_EQ(again.dtype, dense.dtype);
    EXPECT_TRUE(again.exported.has_value());
  }
}

/// Four layers with groups [2, 2] and 5 channels each, other units in each layer.
ModelWidths even_widths(const ModelConfig& config) {
  return widths_from(config, {{0, 1, 2, 3}, {0, 1, 4, 5}, {2, 3, 4, 5}, {0, 1, 2, 3}},
                     {{0, 1, 2, 3, 4}, {5, 6, 7, 8, 9}, {0, 2, 4, 6, 8}, {1, 3, 5, 7, 9}});
}

TEST(UniformConfigJson, IsAPlainConfigWithExplicitWidths) {
  for (const char* family : {"mistral", "qwen2", "qwen3"}) {
    const ModelConfig dense = config_of(sample_config(family, true));
    const auto written =
        unordered(uniform_config_json(dense, even_widths(dense), DType::bf16, "abc"));
    auto expected = unordered(sample_config(family, true));
    expected["num_attention_heads"] = 4;
    expected["num_key_value_heads"] = 2;
    expected["intermediate_size"] = 5;
    expected["rope_scaling"] = nullptr;
    expected["rope_parameters"] = {{"rope_theta", 20000.0}, {"rope_type", "default"}};
    expected["dtype"] = "bfloat16";
    expected["espalier_plan_digest"] = "abc";
    EXPECT_EQ(written, expected) << family;
  }
}

TEST(UniformConfigJson, ALlamaWhoseHeadsDivideItsHiddenSizeStaysALlama) {
  const ModelConfig dense = config_of(sample_config("llama", true));  // 4 heads divide 12
  const auto written = unordered(uniform_config_json(dense, even_widths(dense), DType::bf16, ""));
  EXPECT_EQ(written["model_type"], "llama");
  EXPECT_EQ(written["architectures"], nlohmann::json::parse(R"(["LlamaForCausalLM"])"));
  EXPECT_FALSE(written.contains("sliding_window"));
}

TEST(UniformConfigJson, AnyOtherLlamaIsWrittenAsAMistralWithoutAWindow) {
  const std::string text = R"({"model_type": "llama", "hidden_size": 14, "num_hidden_layers": 2,
    "num_attention_heads": 7, "num_key_value_heads": 7, "intermediate_size": 10, "vocab_size": 17,
    "attention_bias": false, "mlp_bias": false, "pretraining_tp": 1, "torch_dtype": "float32"})";
  const ModelConfig dense = config_of(text);
  const ModelWidths kept = widths_from(dense, {{0, 2, 3, 4}, {1, 2, 5, 6}}, {{1, 2, 3}, {0, 5, 9}});
  const auto written = unordered(uniform_config_json(dense, kept, DType::f32, ""));
  EXPECT_EQ(written, nlohmann::json::parse(R"({"model_type": "mistral",
    "architectures": ["MistralForCausalLM"], "hidden_size": 14, "num_hidden_layers": 2,
    "head_dim": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 3, "vocab_size": 17,
    "sliding_window": null, "torch_dtype": "float32", "dtype": "float32", "rope_theta": 10000.0,
    "rope_scaling": null, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}})"));
  // It also reads back: full attention everywhere.
  EXPECT_EQ(config_of(written.dump()).sliding_window, (std::vector<std::int64_t>{0, 0}));
}

TEST(UniformConfigJson, NothingOfAnExactExportSurvives) {
  const ModelConfig dense = config_of(sample_config("qwen2", true));
  const ModelConfig exported =
      config_of(exact_config_json(dense, even_widths(dense), DType::bf16, "old"));
  const auto written =
      unordered(uniform_config_json(exported, even_widths(dense), DType::bf16, "new"));
  EXPECT_FALSE(written.contains("espalier"));
  EXPECT_FALSE(written.contains("auto_map"));
  EXPECT_EQ(written["espalier_plan_digest"], "new");
  EXPECT_EQ(written["architectures"], nlohmann::json::parse(R"(["Qwen2ForCausalLM"])"));
}

TEST(RequireUniform, NamesTheLayerTheReasonAndTheFormThatWorks) {
  const ModelConfig dense = config_of(sample_config("llama", true));
  const ModelWidths good = even_widths(dense);
  require_uniform(dense, good);
  require_uniform(dense, dense_widths(dense));
  struct Row {
    std::size_t layer;
    std::vector<std::int32_t> heads;
    std::vector<std::int32_t> channels;
    std::string expected;
  };
  const std::vector<Row> table{
      {2, {}, {0, 1, 2, 3, 4}, "cannot hold layer 2: it has no query heads left"},
      {0, {}, {0, 1, 2, 3, 4}, "cannot hold layer 0: it has no query heads left"},
      {3, {0, 1, 2, 3}, {}, "cannot hold layer 3: it has no channels left"},
      // 4 query heads on 2 KV heads by count, but not evenly: would load and compute nonsense.
      {1, {0, 1, 2, 4}, {0, 1, 2, 3, 4}, "cannot hold layer 1: its KV heads have groups [2, 1, 1]"},
      {1, {0, 2, 3}, {0, 1, 2, 3, 4}, "cannot hold layer 1: its KV heads have groups [1, 2]"},
      {3, {0, 1}, {0, 1, 2, 3, 4}, "layer 3: it keeps 2 query heads, 1 KV head and 5 channels"},
      {3,
       {0, 1, 2, 3},
       {0, 1, 2, 3},
       "layer 3: it keeps 4 query heads, 2 KV heads and 4 channels"}};
  for (const Row& row : table) {
    ModelWidths widths = good;
    widths.layers[row.layer] = {row.heads, kept_kv_heads(dense, row.heads), row.channels};
    const Error error = error_of([&] { require_uniform(dense, widths); });
    EXPECT_EQ(error.code(), ExitCode::config);
    EXPECT_NE(std::string(error.what()).find(row.expected), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("format: exact"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace espalier
