#include "espalier/config/model_config.h"
#include "espalier/config/foreign_means.h"

#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>

#include "espalier/core/error.h"
#include "espalier/core/hash.h"
#include "espalier/core/json.h"

namespace espalier {
namespace {

using Json = nlohmann::ordered_json;

/// A model of 4 layers, hidden 64, 8 heads on 2 KV heads of 8, with `changes` merged in; a field
/// set to
/// "<absent>" is removed.
std::string config_text(const std::string& model_type, const std::string& changes = "{}") {
  Json json = Json::parse(R"({"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 172, "vocab_size": 512,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "hidden_act": "silu"})");
  json["model_type"] = model_type;
  const Json merged = Json::parse(changes);
  for (const auto& [key, value] : merged.items()) {
    if (value == "<absent>")
      json.erase(key);
    else
      json[key] = value;
  }
  return json.dump();
}

ModelConfig parse(const std::string& model_type, const std::string& changes = "{}") {
  return parse_model_config(config_text(model_type, changes), "config.json");
}

/// The message of the error, with its code checked.
std::string message_of(const std::string& text) {
  try {
    parse_model_config(text, "config.json");
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::bad_content);
    return e.what();
  }
  return "(accepted)";
}

TEST(ModelConfig, ReadsEveryFieldOfALlama) {
  const std::string text = config_text(
      "llama", R"({"tie_word_embeddings": true, "torch_dtype": "bfloat16", "rope_theta": 5e5})");
  const ModelConfig config = parse_model_config(text, "config.json");
  EXPECT_EQ(config.family, ModelFamily::llama);
  EXPECT_EQ(config.hidden, 64);
  EXPECT_EQ(config.layers, 4);
  EXPECT_EQ(config.heads, 8);
  EXPECT_EQ(config.kv_heads, 2);
  EXPECT_EQ(config.group_size(), 4);
  EXPECT_TRUE(config.is_gqa());
  EXPECT_EQ(config.head_dim, 8);
  EXPECT_EQ(config.channels, 172);
  EXPECT_EQ(config.vocabulary, 512);
  EXPECT_EQ(config.max_positions, 256);
  EXPECT_EQ(config.rms_norm_eps, 1e-5);
  EXPECT_EQ(config.rope.type, RopeConfig::Type::standard);
  EXPECT_EQ(config.rope.theta, 5e5);
  EXPECT_TRUE(config.tied_embeddings);
  EXPECT_FALSE(config.qkv_bias);
  EXPECT_FALSE(config.qk_norm);
  EXPECT_EQ(config.sliding_window, std::vector<std::int64_t>(4, 0));
  EXPECT_EQ(config.dtype, DType::bf16);
  EXPECT_EQ(config.source_text, text);
  EXPECT_EQ(config.sha256, sha256_hex(text));
  EXPECT_FALSE(config.exported.has_value());
}

// What the configuration classes of transformers 4.57 and 5.x fill in for absent fields.
struct Defaults {
  const char* model_type;
  std::int64_t kv_heads, head_dim, max_positions, window;
  bool qkv_bias, qk_norm;
};

class AbsentFields : public ::testing::TestWithParam<Defaults> {};

TEST_P(AbsentFields, TakeTheDefaultOfTheClass) {
  const Defaults& want = GetParam();
  const ModelConfig config = parse(want.model_type, R"({"num_attention_heads": 32,
      "hidden_size": 64, "num_key_value_heads": "<absent>", "head_dim": "<absent>",
      "max_position_embeddings": "<absent>", "rms_norm_eps": "<absent>", "hidden_act": "<absent>"})");
  EXPECT_EQ(config.kv_heads, want.kv_heads);
  EXPECT_EQ(config.head_dim, want.head_dim);
  EXPECT_EQ(config.max_positions, want.max_positions);
  EXPECT_EQ(config.sliding_window, std::vector<std::int64_t>(4, want.window));
  EXPECT_EQ(config.qkv_bias, want.qkv_bias);
  EXPECT_EQ(config.qk_norm, want.qk_norm);
  EXPECT_EQ(config.rms_norm_eps, 1e-6);
  EXPECT_EQ(config.rope.theta, 10000.0);
  EXPECT_FALSE(config.tied_embeddings);
  EXPECT_EQ(config.dtype, DType::f32);
  EXPECT_STREQ(name_of(config.family), want.model_type);
}

INSTANTIATE_TEST_SUITE_P(Families, AbsentFields,
                         ::testing::Values(Defaults{"llama", 32, 2, 2048, 0, false, false},
                                           Defaults{"mistral", 8, 2, 131072, 4096, false, false},
                                           Defaults{"qwen2", 32, 2, 32768, 0, true, false},
                                           Defaults{"qwen3", 32, 128, 32768, 0, false, true}));

TEST(ModelConfig, NullKvHeadsMeansAsManyAsHeads) {
  for (const char* type : {"llama", "mistral", "qwen2", "qwen3"})
    EXPECT_EQ(parse(type, R"({"num_key_value_heads": null})").kv_heads, 8) << type;
}

TEST(ModelConfig, MistralWindow) {
  const auto window = [](const char* changes) { return parse("mistral", changes).sliding_window; };
  EXPECT_EQ(window("{}"), std::vector<std::int64_t>(4, 4096));
  EXPECT_EQ(window(R"({"sliding_window": null})"), std::vector<std::int64_t>(4, 0));
  EXPECT_EQ(window(R"({"sliding_window": 16})"), std::vector<std::int64_t>(4, 16));
}

TEST(ModelConfig, QwenWindow) {
  const auto window = [](const char* changes) { return parse("qwen2", changes).sliding_window; };
  using List = std::vector<std::int64_t>;
  EXPECT_EQ(window(R"({"sliding_window": 16})"), List(4, 0));
  EXPECT_EQ(window(R"({"use_sliding_window": true, "sliding_window": 16})"), List(4, 0));
  EXPECT_EQ(window(R"({"use_sliding_window": true, "sliding_window": 16, "max_window_layers": 3})"),
            (List{0, 0, 0, 16}));
  EXPECT_EQ(window(R"({"use_sliding_window": true, "max_window_layers": 0})"), List(4, 4096));
  EXPECT_EQ(
      window(R"({"use_sliding_window": true, "sliding_window": null, "max_window_layers": 0})"),
      List(4, 0));
  EXPECT_EQ(window(R"({"use_sliding_window": true, "sliding_window": 7, "max_window_layers": 0,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]})"),
            (List{7, 0, 7, 0}));
}

TEST(ModelConfig, RopeInBothSpellings) {
  const char* fourth = R"({"rope_theta": 500000.0, "max_position_embeddings": 1024, "rope_scaling":
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 512}})";
  const char* older = R"({"rope_theta": 500000.0, "rope_scaling": {"type": "llama3", "factor": 8.0,
     "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}})";
  const char* fifth = R"({"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0,
     "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 512}})";
  const char* with_fraction = R"({"rope_theta": 500000.0, "rope_scaling": {"type": "llama3",
     "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
     "original_max_position_embeddings": 512.0}})";
  for (const char* changes : {fourth, older, fifth, with_fraction}) {
    const RopeConfig rope = parse("llama", changes).rope;
    EXPECT_EQ(rope.type, RopeConfig::Type::llama3) << changes;
    EXPECT_EQ(rope.theta, 500000.0);
    EXPECT_EQ(rope.factor, 8.0);
    EXPECT_EQ(rope.low_freq_factor, 1.0);
    EXPECT_EQ(rope.high_freq_factor, 4.0);
    EXPECT_EQ(rope.original_max_positions, 512);
  }
  EXPECT_EQ(parse("llama", R"({"rope_theta": 20000, "rope_parameters": {"rope_type": "default",
      "rope_theta": 20000.0}, "rope_scaling": null})")
                .rope.theta,
            20000.0);
  EXPECT_EQ(parse("llama", R"({"rope_parameters": {"rope_type": "llama3", "factor": 2,
      "low_freq_factor": 1, "high_freq_factor": 4}})")
                .rope.original_max_positions,
            256);
}

TEST(ModelConfig, DtypeInBothSpellings) {
  EXPECT_EQ(parse("llama", R"({"dtype": "float16"})").dtype, DType::f16);
  EXPECT_EQ(parse("llama", R"({"torch_dtype": "torch.float64"})").dtype, DType::f64);
  EXPECT_EQ(parse("llama", R"({"dtype": "bfloat16", "torch_dtype": "bfloat16"})").dtype,
            DType::bf16);
  EXPECT_EQ(parse("llama", R"({"dtype": null})").dtype, DType::f32);
  EXPECT_TRUE(parse("llama", R"({"dtype": "float16", "torch_dtype": "float16"})").notes.empty());
}

// transformers saves only its own spelling anew: the other one of a loaded model goes along as it
// was.
TEST(ModelConfig, OfTwoDtypesThatDifferTheOneThatTransformersReadsCounts) {
  const ModelConfig config = parse("llama", R"({"dtype": "float16", "torch_dtype": "bfloat16"})");
  EXPECT_EQ(config.dtype, DType::f16);
  ASSERT_EQ(config.notes.size(), 1U);
  EXPECT_EQ(config.notes[0],
            "config.json says dtype float16 and torch_dtype bfloat16: dtype counts, as in "
            "transformers");
}

TEST(ModelConfig, HarmlessFieldsAreAccepted) {
  EXPECT_NO_THROW(
      parse("llama", R"({"attention_dropout": 0.1, "pretraining_tp": 4, "mlp_bias": false,
      "attention_bias": false, "quantization_config": null, "logits_scaling": 1.0, "pruned_heads": {},
      "partial_rotary_factor": 1.0, "use_cache": true, "anything_else": [1, 2], "num_experts": 0})"));
  EXPECT_NO_THROW(parse("qwen2", R"({"attention_bias": true, "hidden_act": "swish"})"));
}

TEST(ModelConfig, ReadsTheWidthsOfAnExport) {
  const ModelConfig config = parse("llama", R"({"espalier": {"layers": [
      {"groups": [4, 1], "channels": 172}, {"groups": [2], "channels": 3},
      {"groups": [], "channels": 40}, {"groups": [1, 1], "channels": 0}]}})");
  ASSERT_TRUE(config.exported.has_value());
  const std::vector<ExportedLayer>& layers = *config.exported;
  ASSERT_EQ(layers.size(), 4u);
  EXPECT_EQ(layers[0].groups, (std::vector<std::int64_t>{4, 1}));
  EXPECT_EQ(layers[1].channels, 3);
  EXPECT_TRUE(layers[2].groups.empty());
  EXPECT_EQ(layers[3].channels, 0);
}

struct Refused {
  const char* model_type;
  const char* changes;
  const char* message;
};

class RefusedFields : public ::testing::TestWithParam<Refused> {};

TEST_P(RefusedFields, AreNamedWithValueRuleAndRemedy) {
  const Refused& row = GetParam();
  const std::string message = message_of(config_text(row.model_type, row.changes));
  const std::string expected = "config.json: " + std::string(row.message);
  EXPECT_TRUE(message.starts_with(expected)) << message;
  if (expected.ends_with(")")) {
    EXPECT_TRUE(message.substr(expected.size()).starts_with(". ")) << message;
  }
  EXPECT_TRUE(message.ends_with(".")) << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

constexpr const char* kBias = "(biases in attention are implemented for qwen2 only)";

const std::vector<Refused> kRefusedRows{
    {"gemma", "{}", "model_type = \"gemma\" (model types that work: llama, mistral, qwen2, qwen3)"},
    {"llama", R"({"model_type": "<absent>"})",
     "model_type is missing (model types that work: llama, mistral, qwen2, qwen3). Name a "
     "Hugging Face model directory (config.json and safetensors files)."},
    {"llama", R"({"model_type": 3})", "model_type = 3 (a string is needed)"},
    {"llama", R"({"hidden_size": "<absent>"})",
     "hidden_size is missing (it has no safe default). Add the value that the checkpoint was "
     "trained with."},
    {"llama", R"({"vocab_size": "<absent>"})",
     "vocab_size is missing (it has no safe default). Add the value that the checkpoint was "
     "trained with."},
    {"llama", R"({"hidden_size": -64})",
     "hidden_size = -64 (an integer from 1 to 1048576 is needed)"},
    {"llama", R"({"hidden_size": 64.0})",
     "hidden_size = 64.0 (an integer from 1 to 1048576 is needed)"},
    {"llama", R"({"hidden_size": 18446744073709551615})",
     "hidden_size = 18446744073709551615 (an integer from 1 to 1048576 is needed)"},
    {"llama", R"({"num_hidden_layers": 1001})",
     "num_hidden_layers = 1001 (an integer from 1 to 1000 is needed)"},
    {"llama", R"({"vocab_size": "512"})",
     "vocab_size = \"512\" (an integer from 1 to 1073741824 is needed)"},
    {"llama", R"({"num_key_value_heads": 3})",
     "num_attention_heads = 8 (it must be a multiple of num_key_value_heads = 3)"},
    {"qwen2", R"({"num_key_value_heads": "<absent>"})",
     "num_attention_heads = 8 (it must be a multiple of num_key_value_heads = 32, the default of "
     "this model "
     "type)"},
    {"llama", R"({"head_dim": 7})", "head_dim = 7 (rotary embedding needs an even number)"},
    {"llama", R"({"head_dim": "<absent>", "hidden_size": 60})",
     "hidden_size = 60 (without head_dim it must be a multiple of num_attention_heads = 8)"},
    {"llama", R"({"head_dim": null, "hidden_size": 72})",
     "head_dim = 9 (hidden_size / num_attention_heads) (rotary embedding needs an even number)"},
    {"llama", R"({"rms_norm_eps": -1e-6})",
     "rms_norm_eps = -1e-06 (a number of at least 0 is needed)"},
    {"llama", R"({"tie_word_embeddings": 1})", "tie_word_embeddings = 1 (true or false is needed)"},
    {"llama", R"({"hidden_act": "gelu"})",
     "hidden_act = \"gelu\" (only silu is implemented). Use a checkpoint with a gated SiLU MLP."},
    {"llama", R"({"attention_bias": true})", nullptr},
    {"mistral", R"({"attention_bias": true})", nullptr},
    {"qwen3", R"({"attention_bias": true})", nullptr},
    {"llama", R"({"mlp_bias": true})", "mlp_bias = true (biases in the MLP are not implemented)"},
    {"qwen3", R"({"mlp_bias": true})", "mlp_bias = true (biases in the MLP are not implemented)"},
    {"llama", R"({"quantization_config": {"bits": 4}})",
     "quantization_config = {\"bits\":4} (quantized weights are not supported)"},
    {"llama", R"({"partial_rotary_factor": 0.5})",
     "partial_rotary_factor = 0.5 (rotary embedding of a part of a head is not implemented)"},
    {"llama", R"({"attn_logit_softcapping": 50.0})",
     "attn_logit_softcapping = 50.0 (soft caps are not implemented)"},
    {"llama", R"({"final_logit_softcapping": 30.0})",
     "final_logit_softcapping = 30.0 (soft caps are not implemented)"},
    {"llama", R"({"query_pre_attn_scalar": 256})",
     "query_pre_attn_scalar = 256 (a field that changes the arithmetic and is not implemented)"},
    {"llama", R"({"logits_scaling": 8})",
     "logits_scaling = 8 (a field that changes the arithmetic and is not implemented)"},
    {"llama", R"({"pruned_heads": {"0": [1]}})",
     "pruned_heads = {\"0\":[1]} (heads removed by another program are not supported)"},
    {"llama", R"({"per_layer_config": {"1": {"intermediate_size": 8}}})",
     "per_layer_config = {\"1\":{\"intermediate_size\":8}} (widths per layer are read from the key "
     "'espalier' only)"},
    {"llama", R"({"is_causal": false})",
     "is_causal = false (only causal attention is implemented)"},
    {"llama", R"({"rope_scaling": {"type": "linear", "factor": 2.0}})",
     "rope_scaling.type = \"linear\" (rope types that work: default, llama3, and linear with "
     "factor 1). Use a checkpoint "
     "without this "
     "scaling of the rotary embedding."},
    {"qwen2", R"({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}})",
     "rope_parameters.rope_type = \"yarn\" (rope types that work: default, llama3, and linear with "
     "factor 1). Use a "
     "checkpoint "
     "without this scaling of the rotary embedding."},
    {"llama", R"({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}})",
     "rope_scaling.rope_type = \"dynamic\" (rope types that work: default, llama3, and linear with "
     "factor 1). Use a "
     "checkpoint "
     "without this scaling of the rotary embedding."},
    {"llama",
     R"({"rope_scaling": {"rope_type": "longrope", "short_factor": [1], "long_factor": [2]}})",
     "rope_scaling.rope_type = \"longrope\" (rope types that work: default, llama3, and linear "
     "with factor 1). Use a "
     "checkpoint "
     "without this scaling of the rotary embedding."},
    {"llama", R"({"rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1]}})",
     "rope_scaling.mrope_section = [2,1,1] (a rotary setting that is not implemented)"},
    {"llama", R"({"rope_scaling": 4})", "rope_scaling = 4 (an object or null is needed)"},
    {"llama",
     R"({"rope_scaling": {"rope_type": "llama3", "low_freq_factor": 1, "high_freq_factor": 4}})",
     "a rope of type llama3 has no 'factor' (factor, low_freq_factor and high_freq_factor are "
     "needed)"},
    {"llama", R"({"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4,
        "high_freq_factor": 4}})",
     "rope_scaling.high_freq_factor = 4 (it must be above low_freq_factor = 4)"},
    {"llama", R"({"rope_theta": 10000, "rope_parameters": {"rope_theta": 5000.0}})",
     "rope_theta = 10000 (the rotary settings say 5000). Keep the one that is true."},
    {"llama", R"({"rope_scaling": null, "rope_parameters": {"rope_type": "llama3", "factor": 2,
        "low_freq_factor": 1, "high_freq_factor": 4}})",
     "rope_scaling = null (rope_parameters says otherwise). Keep the one that is true."},
    {"qwen3", R"({"rope_parameters": {"full_attention": {"rope_theta": 1e6},
        "sliding_attention": {"rope_theta": 1e4}}})",
     "rope_parameters.full_attention = {\"rope_theta\":1000000.0} (rotary settings per layer type "
     "are not implemented). Write one flat rope_parameters that all layers share."},
    {"llama", R"({"rope_parameters": {"full_attention": {"rope_type": "default"}}})",
     "rope_parameters.full_attention = {\"rope_type\":\"default\"} (rotary settings per layer type "
     "are not implemented)"},
    {"llama", R"({"rope_theta": null})", "rope_theta = null (a number above 0 is needed)"},
    {"llama", R"({"rope_scaling": {"type": "linear"}})",
     "rope_scaling.type = \"linear\" (rope types that work: default, llama3, and linear with "
     "factor "
     "1)"},
    {"llama", R"({"rope_scaling": false})", "rope_scaling = false (an object or null is needed)"},
    {"llama", R"({"rms_norm_eps": null})",
     "rms_norm_eps = null (a number of at least 0 is needed)"},
    {"llama", R"({"rms_norm_eps": "1e-05"})",
     "rms_norm_eps = \"1e-05\" (a number of at least 0 is needed). Write it as a JSON number, "
     "without "
     "quotes."},
    {"llama", R"({"hidden_act": null})", "hidden_act = null (only silu is implemented)"},
    {"mistral", R"({"text_config": {"hidden_size": 64}})",
     "text_config = {\"hidden_size\":64} (a language model inside a model of several kinds of "
     "input). "
     "Load the model with transformers and save its language model alone with save_pretrained."},
    {"llama", R"({"transformers_weights": "other.safetensors"})",
     "transformers_weights = \"other.safetensors\" (weights are read from model.safetensors or by "
     "its "
     "index)"},
    {"llama", R"({"dtype": "int8"})",
     "dtype = \"int8\" (dtypes that work: float16, bfloat16, float32, float64)"},
    {"mistral", R"({"sliding_window": 0})",
     "sliding_window = 0 (an integer from 1 to 2147483648 is needed)"},
    {"qwen2", R"({"layer_types": ["full_attention"]})",
     "layer_types = [\"full_attention\"] (a list with an entry for each of num_hidden_layers = 4 "
     "is needed)"},
    {"qwen2",
     R"({"layer_types": ["full_attention", "full_attention", "full_attention", "linear"]})",
     "layer_types[3] = \"linear\" (layer types that work: full_attention, sliding_attention)"},
    {"qwen2",
     R"({"layer_types": ["full_attention", "full_attention", "full_attention", "sliding_attention"]})",
     "layer_types names sliding_attention without a window (use_sliding_window is false). Set "
     "use_sliding_window and sliding_window, or full_attention everywhere."},
    {"llama", R"({"espalier": {"layers": []}})",
     "espalier.layers has 0 entries (one for each of num_hidden_layers = 4)"},
    {"llama",
     R"({"num_hidden_layers": 1, "espalier": {"layers": [{"groups": [5], "channels": 1}]}})",
     "espalier.layers[0].groups holds 5 (a group keeps 1 to 4 query heads)"},
    {"llama",
     R"({"num_hidden_layers": 1, "espalier": {"layers": [{"groups": [1, 1, 1], "channels": 1}]}})",
     "espalier.layers[0].groups has 3 entries (at most num_key_value_heads = 2)"},
    {"llama",
     R"({"num_hidden_layers": 1, "espalier": {"layers": [{"groups": [0], "channels": 1}]}})",
     "espalier.layers[0].groups holds 0 (a group keeps 1 to 4 query heads)"},
    {"llama",
     R"({"num_hidden_layers": 1, "espalier": {"layers": [{"groups": [1], "channels": 173}]}})",
     "espalier.layers[0].channels = 173 (an integer from 0 to intermediate_size = 172 is needed)"},
    {"llama",
     R"({"num_hidden_layers": 1, "espalier": {"output_bias": 1, "layers": [{"groups": [1], "channels": 1}]}})",
     "espalier.output_bias = 1 (true or false is needed)"},
    {"llama", R"({"num_hidden_layers": 1, "espalier": {"layers": [{"groups": [1]}]}})",
     "espalier.layers[0] is not {groups: [...], channels: n} (the widths of an exact export)"},
};

std::vector<Refused> refused_rows() {
  std::vector<Refused> rows = kRefusedRows;
  static const std::string bias = std::string("attention_bias = true ") + kBias;
  for (Refused& row : rows)
    if (row.message == nullptr) row.message = bias.c_str();
  return rows;
}

INSTANTIATE_TEST_SUITE_P(Table, RefusedFields, ::testing::ValuesIn(refused_rows()));

TEST(ModelConfig, ListsEveryProblemAtOnce) {
  EXPECT_EQ(
      message_of(config_text("llama", R"({"hidden_size": 0, "mlp_bias": true,
      "rope_scaling": {"rope_type": "yarn"}, "torch_dtype": "int4"})")),
      "config.json: hidden_size = 0 (an integer from 1 to 1048576 is needed). Correct "
      "config.json: take the value that the checkpoint was saved with.\n"
      "config.json: rope_scaling.rope_type = \"yarn\" (rope types that work: default, "
      "llama3, and linear with factor 1). Use a "
      "checkpoint without this scaling of the rotary embedding.\n"
      "config.json: torch_dtype = \"int4\" (dtypes that work: float16, bfloat16, float32, "
      "float64). Correct config.json: take the value that the checkpoint was saved with.\n"
      "config.json: mlp_bias = true (biases in the MLP are not implemented). Use a checkpoint "
      "without it; take the field out only if the weights were trained without it.");
}

TEST(ModelConfig, RefusesWhatIsNoObject) {
  EXPECT_EQ(message_of("[]"),
            "config.json: no JSON object (config.json holds one object). Name a Hugging Face model "
            "directory (config.json and safetensors files).");
  EXPECT_NE(message_of("{\"a\": 1, \"a\": 2}").find("duplicate key 'a'"), std::string::npos);
  EXPECT_NE(message_of(std::string(100000, '[')).find("nesting"), std::string::npos);
}

TEST(ModelConfig, NamesWhatStandsInThePlaceOfTheFile) {
  for (const auto& [text, words] : std::vector<std::pair<std::string, const char*>>{
           {"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n", "git lfs pull"},
           {"<!DOCTYPE html><html></html>", "HTML"},
           {"", "empty"},
           {"{\"a\": 1", "Correct it, or download it again."}})
    EXPECT_NE(message_of(text).find(words), std::string::npos) << message_of(text);
}

TEST(ModelConfig, ReadsRotarySettingsThatSayNothing) {
  for (const char* changes :
       {R"({"rope_scaling": null})", R"({"rope_scaling": {}})", R"({"rope_scaling": []})",
        R"({"rope_scaling": {"type": "default"}})", R"({"rope_scaling": {"rope_type": "default"}})",
        R"({"rope_scaling": {"type": "linear", "factor": 1.0}})",
        R"({"rope_scaling": {"rope_type": "linear", "factor": 1}})",
        R"({"rope_parameters": {"rope_type": "linear", "factor": 1.0, "rope_theta": 10000.0}})"}) {
    const RopeConfig rope = parse("llama", changes).rope;
    EXPECT_EQ(rope.type, RopeConfig::Type::standard) << changes;
    EXPECT_EQ(rope.theta, 10000.0) << changes;
  }
}

TEST(ModelConfig, AnAutomaticDtypeSaysNothing) {
  EXPECT_EQ(parse("llama", R"({"torch_dtype": "auto"})").dtype, DType::f32);
  EXPECT_EQ(parse("llama", R"({"torch_dtype": "auto", "dtype": "bfloat16"})").dtype, DType::bf16);
}

TEST(ForeignMeans, AreNamedUnlessTheyAreOurs) {
  const std::filesystem::path directory =
      std::filesystem::path(::testing::TempDir()) / "espalier_foreign_means";
  std::filesystem::create_directories(directory);
  EXPECT_TRUE(foreign_means(parse("llama", "{}"), directory).empty());
  const ModelConfig with_code =
      parse("llama", R"({"auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}})");
  ASSERT_EQ(foreign_means(with_code, directory).size(), 1U);
  EXPECT_NE(foreign_means(with_code, directory)[0].find("auto_map"), std::string::npos);
  const ModelConfig ours = parse("llama", R"({"num_hidden_layers": 1,
      "auto_map": {"AutoModelForCausalLM": "modeling_espalier.EspalierLlamaForCausalLM"},
      "espalier": {"layers": [{"groups": [4, 4], "channels": 3}]}})");
  EXPECT_TRUE(foreign_means(ours, directory).empty());
  std::ofstream(directory / "adapter_config.json") << "{}";
  ASSERT_EQ(foreign_means(parse("llama", "{}"), directory).size(), 1U);
  EXPECT_NE(foreign_means(parse("llama", "{}"), directory)[0].find("adapter_config.json"),
            std::string::npos);
  std::filesystem::remove_all(directory);
}

TEST(ModelConfig, ReadsADirectory) {
  const std::filesystem::path directory =
      std::filesystem::path(::testing::TempDir()) / "espalier_model_config";
  std::filesystem::create_directories(directory);
  std::ofstream(directory / "config.json") << config_text("qwen3");
  EXPECT_EQ(read_model_config(directory).family, ModelFamily::qwen3);
  std::filesystem::remove_all(directory);
  try {
    read_model_config(directory);
    FAIL() << "an absent file was read";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::missing_input);
    EXPECT_NE(
        std::string(e.what()).find("config.json' (No such file or directory). Name a Hugging"),
        std::string::npos)
        << e.what();
  }
}

}  // namespace
}  // namespace espalier
