#include <set>
#include <string>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "espalier/core/error.h"
#include "espalier/core/json.h"
#include "espalier/core/text.h"
#include "export_parts.h"

namespace espalier {
namespace export_detail {

using Json = nlohmann::ordered_json;

namespace {

const char* class_stem(ModelFamily family) {
  switch (family) {
    case ModelFamily::llama:
      return "Llama";
    case ModelFamily::mistral:
      return "Mistral";
    case ModelFamily::qwen2:
      return "Qwen2";
    case ModelFamily::qwen3:
      return "Qwen3";
  }
  return "";
}

/// False when no dtype is stated, or two that differ.
bool states_one_dtype(const Json& root) {
  std::set<std::string> stated;
  for (const char* key : {"torch_dtype", "dtype"}) {
    if (!root.contains(key) || !root[key].is_string()) continue;
    const auto name = root[key].get<std::string>();
    stated.insert(name.starts_with("torch.") ? name.substr(6) : name);
  }
  return stated.size() == 1;
}

/// transformers 4 reads rope_theta, rope_scaling and torch_dtype and ignores rope_parameters
/// without a word; transformers 5 writes rope_parameters and dtype. Both spellings stand side by
/// side.
void write_both_spellings(const ModelConfig& dense, DType stored, Json& root) {
  const RopeConfig& rope = dense.rope;
  Json scaling = nullptr;
  Json parameters = {{"rope_theta", rope.theta}, {"rope_type", "default"}};
  if (rope.type == RopeConfig::Type::llama3) {
    scaling = {{"factor", rope.factor},
               {"high_freq_factor", rope.high_freq_factor},
               {"low_freq_factor", rope.low_freq_factor},
               {"original_max_position_embeddings", rope.original_max_positions},
               {"rope_type", "llama3"}};
    parameters = scaling;
    parameters["rope_theta"] = rope.theta;
  }
  root["rope_theta"] = rope.theta;
  root["rope_scaling"] = scaling;
  root["rope_parameters"] = parameters;
  const std::string dtype{torch_name(states_one_dtype(root) ? dense.dtype : stored)};
  root["torch_dtype"] = dtype;
  root["dtype"] = dtype;
}

/// The source's config.json without what an earlier export of ours, or foreign code, put there.
Json base_config(const ModelConfig& dense, DType stored, std::string_view plan_digest) {
  Json root = parse_json(dense.source_text, kConfigFile);
  root.erase("auto_map");
  root.erase("espalier");
  root.erase("espalier_plan_digest");
  write_both_spellings(dense, stored, root);
  if (!plan_digest.empty()) root["espalier_plan_digest"] = std::string(plan_digest);
  return root;
}

[[noreturn]] void refuse_uniform(std::size_t layer, const std::string& what,
                                 const std::string& why) {
  throw Error(ExitCode::config,
              fmt::format("a uniform export cannot hold layer {}: {}", layer, what), why,
              "Use format: exact, which holds any widths; or prune with ranking: local, "
              "attention_unit: equal_per_group or kv_group and no protected layers.");
}

std::string widths_text(const ModelConfig& dense, const LayerWidths& layer) {
  return fmt::format("{}, {} and {} (groups {})", counted(layer.query_heads.size(), "query head"),
                     counted(layer.kv_heads.size(), "KV head"),
                     counted(layer.channels.size(), "channel"), list_text(layer.groups(dense)));
}

}  // namespace

std::string list_text(const std::vector<std::int64_t>& values) {
  return fmt::format("[{}]", fmt::join(values, ", "));
}

// MistralForCausalLM without a window computes what LlamaForCausalLM computes, and its
// configuration does not insist on hidden_size % num_attention_heads == 0.
ModelFamily uniform_family(const ModelConfig& dense, const ModelWidths& kept) {
  const auto heads = static_cast<std::int64_t>(kept.layers.front().query_heads.size());
  const bool divides = heads > 0 && dense.hidden % heads == 0;
  return dense.family == ModelFamily::llama && !divides ? ModelFamily::mistral : dense.family;
}

}  // namespace export_detail

using export_detail::Json;

void require_uniform(const ModelConfig& dense, const ModelWidths& kept) {
  using export_detail::refuse_uniform;
  using export_detail::widths_text;
  ESPALIER_CHECK(!kept.layers.empty(), "an export of no layers");
  const LayerWidths& first = kept.layers.front();
  for (std::size_t i = 0; i < kept.layers.size(); ++i) {
    const LayerWidths& layer = kept.layers[i];
    if (layer.query_heads.empty())
      refuse_uniform(i, "it has no query heads left", "stock attention needs at least one");
    if (layer.channels.empty())
      refuse_uniform(i, "it has no channels left", "a stock MLP needs at least one");
    if (!layer.even_groups(dense))
      refuse_uniform(i, "its KV heads have groups " + export_detail::list_text(layer.groups(dense)),
                     "stock attention reads every KV head by the same number of query heads; other "
                     "groups would load and compute nonsense");
    if (layer.query_heads.size() != first.query_heads.size() ||
        layer.kv_heads.size() != first.kv_heads.size() ||
        layer.channels.size() != first.channels.size())
      refuse_uniform(i,
                     fmt::format("it keeps {}, layer 0 keeps {}", widths_text(dense, layer),
                                 widths_text(dense, first)),
                     "a plain config.json has one width for all layers");
  }
}

void require_output_biases(ModelFamily family) {
  if (family == ModelFamily::llama) return;
  throw Error(ExitCode::config,
              fmt::format("a uniform export as {} cannot hold the biases of o_proj and down_proj",
                          name_of(family)),
              "of the stock classes only Llama's has both",
              "Use format: exact, which holds them; or leave the compensation out "
              "(--no-compensation, prune.compensation: none).");
}

std::string exact_config_json(const ModelConfig& dense, const ModelWidths& kept, DType stored,
                              std::string_view plan_digest, bool output_bias) {
  Json root = export_detail::base_config(dense, stored, plan_digest);
  const auto class_name = [&](const char* what) {
    return fmt::format("Espalier{}{}", export_detail::class_stem(dense.family), what);
  };
  root["architectures"] = Json::array({class_name("ForCausalLM")});
  Json auto_map = Json::object();
  for (const char* what : {"Model", "ForCausalLM", "ForSequenceClassification"})
    auto_map[fmt::format("AutoModel{}", what == std::string_view("Model") ? "" : what)] =
        "modeling_espalier." + class_name(what);
  root["auto_map"] = auto_map;
  Json layers = Json::array();
  for (const LayerWidths& layer : kept.layers)
    layers.push_back({{"groups", layer.groups(dense)}, {"channels", layer.channels.size()}});
  root["espalier"] = Json::object();
  if (output_bias) root["espalier"]["output_bias"] = true;
  root["espalier"]["layers"] = layers;
  return json_text(root, 2) + "\n";
}

std::string uniform_config_json(const ModelConfig& dense, const ModelWidths& kept, DType stored,
                                std::string_view plan_digest, bool output_bias) {
  require_uniform(dense, kept);
  if (output_bias) require_output_biases(export_detail::uniform_family(dense, kept));
  Json root = export_detail::base_config(dense, stored, plan_digest);
  const LayerWidths& layer = kept.layers.front();
  const ModelFamily family = export_detail::uniform_family(dense, kept);
  root["model_type"] = name_of(family);
  root["architectures"] =
      Json::array({fmt::format("{}ForCausalLM", export_detail::class_stem(family))});
  root["head_dim"] = dense.head_dim;
  root["num_attention_heads"] = layer.query_heads.size();
  root["num_key_value_heads"] = layer.kv_heads.size();
  root["intermediate_size"] = layer.channels.size();
  if (output_bias)
    for (const char* key : {"attention_bias", "mlp_bias"}) root[key] = true;
  if (family != dense.family) {
    for (const char* key : {"attention_bias", "mlp_bias", "pretraining_tp"}) root.erase(key);
    root["sliding_window"] = nullptr;  // absent would mean the class's default of 4096
  }
  return json_text(root, 2) + "\n";
}

}  // namespace espalier
