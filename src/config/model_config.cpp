#include "espalier/config/model_config.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/core/hash.h"
#include "espalier/core/json.h"
#include "espalier/core/placeholder.h"
#include "espalier/core/remedy.h"
#include "espalier/core/text.h"
#include "model_fields.h"
#include "text_file.h"

namespace espalier {
namespace {

using config_detail::Json;
using config_detail::ModelFields;

// Far above every real model, and low enough that no product of two of them with the layer count,
// nor a tensor's bytes, can overflow 63 bits: 2^20 * 2^24 * 1000 * 8 < 2^57.
constexpr std::int64_t kMaxLayers = 1000;
constexpr std::int64_t kMaxHidden = std::int64_t{1} << 20;
constexpr std::int64_t kMaxHeads = std::int64_t{1} << 14;
constexpr std::int64_t kMaxHeadDim = std::int64_t{1} << 13;
constexpr std::int64_t kMaxChannels = std::int64_t{1} << 24;
constexpr std::int64_t kMaxVocabulary = std::int64_t{1} << 30;  // token ids are int32
constexpr std::int64_t kMaxPositions = std::int64_t{1} << 31;
constexpr std::size_t kMaxFileBytes = std::size_t{16} << 20;
constexpr std::size_t kPlaceholderBytes = 1024;

/// What transformers' configuration class of a family fills in for an absent field.
struct ClassDefaults {
  const char* model_type;
  /// 0 = as many as heads.
  std::int64_t kv_heads;
  /// 0 = hidden / heads.
  std::int64_t head_dim;
  std::int64_t max_positions;
  /// use_sliding_window, max_window_layers, layer_types.
  bool window_by_layer;
};

const ClassDefaults& defaults_of(ModelFamily family) {
  static constexpr ClassDefaults kRows[] = {
      {"llama", 0, 0, 2048, false},
      {"mistral", 8, 0, 131072, false},
      {"qwen2", 32, 0, 32768, true},
      {"qwen3", 32, 128, 32768, true},
  };
  return kRows[static_cast<std::size_t>(family)];
}

constexpr ModelFamily kFamilies[] = {ModelFamily::llama, ModelFamily::mistral, ModelFamily::qwen2,
                                     ModelFamily::qwen3};
constexpr std::int64_t kDefaultWindow = 4096;         // Mistral, Qwen2, Qwen3
constexpr std::int64_t kDefaultMaxWindowLayers = 28;  // Qwen2, Qwen3
constexpr double kDefaultEps = 1e-6;                  // all four

std::optional<ModelFamily> read_family(const ModelFields& fields) {
  constexpr const char* kWorking = "model types that work: llama, mistral, qwen2, qwen3";
  if (!fields.has("model_type")) {
    fields.problem_text("model_type is missing", kWorking,
                        "Name a Hugging Face model directory (config.json and safetensors files).");
    return std::nullopt;
  }
  const std::optional<std::string> name = fields.text("model_type");
  if (!name) return std::nullopt;
  for (const ModelFamily family : kFamilies)
    if (*name == defaults_of(family).model_type) return family;
  fields.problem("model_type", kWorking,
                 fields.has("text_config")
                     ? fmt::format("It has a text_config. {}", config_detail::kTakeLanguageModel)
                     : "Use a model of one of these types.");
  return std::nullopt;
}

void read_heads(const ModelFields& fields, ModelConfig& config) {
  const ClassDefaults& defaults = defaults_of(config.family);
  config.heads = fields.required_integer("num_attention_heads", 1, kMaxHeads);
  // An explicit null means "as many as heads" in every class; absence means the class's own number.
  const bool absent = fields.find("num_key_value_heads") == nullptr;
  const std::int64_t fallback = absent && defaults.kv_heads != 0 ? defaults.kv_heads : config.heads;
  config.kv_heads = fields.integer("num_key_value_heads", 1, kMaxHeads).value_or(fallback);
  if (config.heads % config.kv_heads != 0 && fields.is_clean("num_attention_heads"))
    fields.problem("num_attention_heads",
                   fmt::format("it must be a multiple of num_key_value_heads = {}{}",
                               config.kv_heads, absent ? ", the default of this model type" : ""));
}

void read_head_dim(const ModelFields& fields, ModelConfig& config) {
  const std::int64_t fallback = defaults_of(config.family).head_dim;
  const auto stated = fields.integer("head_dim", 1, kMaxHeadDim);
  const bool sizes_known = fields.is_clean("hidden_size") && fields.is_clean("num_attention_heads");
  const bool derived = !stated && fallback == 0;
  if (derived && sizes_known && config.hidden % config.heads != 0)
    fields.problem("hidden_size",
                   fmt::format("without head_dim it must be a multiple of num_attention_heads = {}",
                               config.heads));
  config.head_dim = stated.value_or(fallback != 0 ? fallback : config.hidden / config.heads);
  if (config.head_dim % 2 != 0 && (stated || (sizes_known && config.hidden % config.heads == 0)))
    fields.problem_text(fmt::format("head_dim = {}{}", config.head_dim,
                                    stated ? "" : " (hidden_size / num_attention_heads)"),
                        "rotary embedding needs an even number");
}

/// The list of layer kinds, empty when it is absent or unusable.
std::vector<bool> read_layer_types(const ModelFields& fields, std::int64_t layers) {
  if (!fields.has("layer_types")) return {};
  const Json& list = *fields.find("layer_types");
  if (!list.is_array() || list.size() != static_cast<std::size_t>(layers)) {
    fields.problem(
        "layer_types",
        fmt::format("a list with an entry for each of num_hidden_layers = {} is needed", layers));
    return {};
  }
  std::vector<bool> sliding;
  for (const Json& entry : list) {
    const bool is_sliding = entry == "sliding_attention";
    if (!is_sliding && entry != "full_attention") {
      fields.problem_text(fmt::format("layer_types[{}] = {}", sliding.size(),
                                      config_detail::printable(json_text(entry))),
                          "layer types that work: full_attention, sliding_attention");
      return {};
    }
    sliding.push_back(is_sliding);
  }
  return sliding;
}

/// Mistral: one window for all layers. Absent = 4096, null = none.
void read_mistral_window(const ModelFields& fields, const std::vector<bool>& sliding,
                         ModelConfig& config) {
  const bool absent = fields.find("sliding_window") == nullptr;
  const std::int64_t window =
      absent ? kDefaultWindow : fields.integer("sliding_window", 1, kMaxPositions).value_or(0);
  std::fill(config.sliding_window.begin(), config.sliding_window.end(), window);
  for (const bool layer : sliding)
    if (layer != (window != 0)) {
      fields.problem("layer_types",
                     fmt::format("a mistral has one window for all layers, and sliding_window = {}",
                                 window == 0 ? "null" : std::to_string(window)));
      return;
    }
}

/// Qwen2 and Qwen3: sliding_window counts under use_sliding_window, in the layers that layer_types
/// names or else from max_window_layers on.
void read_qwen_window(const ModelFields& fields, std::vector<bool> sliding, ModelConfig& config) {
  const bool use = fields.boolean("use_sliding_window", false);
  const bool absent = fields.find("sliding_window") == nullptr;
  const auto stated = fields.integer("sliding_window", 0, kMaxPositions);
  const std::int64_t window = use ? (absent ? kDefaultWindow : stated.value_or(0)) : 0;
  const std::int64_t first =
      fields.integer("max_window_layers", 0, kMaxPositions).value_or(kDefaultMaxWindowLayers);
  if (use && stated && *stated == 0)
    fields.problem("sliding_window", "a window of at least 1 is needed");
  if (sliding.empty() && window != 0)
    for (std::int64_t i = 0; i < config.layers; ++i) sliding.push_back(i >= first);
  const bool any = std::find(sliding.begin(), sliding.end(), true) != sliding.end();
  if (any && window == 0)
    fields.problem_text("layer_types names sliding_attention without a window",
                        use ? "sliding_window is null" : "use_sliding_window is false",
                        "Set use_sliding_window and sliding_window, or full_attention everywhere.");
  for (std::size_t i = 0; i < sliding.size(); ++i)
    if (sliding[i]) config.sliding_window[i] = window;
}

void read_windows(const ModelFields& fields, ModelConfig& config) {
  config.sliding_window.assign(static_cast<std::size_t>(config.layers), 0);
  if (!fields.is_clean("num_hidden_layers")) return;  // reported already; nothing to compare with
  const std::vector<bool> sliding = read_layer_types(fields, config.layers);
  if (defaults_of(config.family).window_by_layer) return read_qwen_window(fields, sliding, config);
  if (config.family == ModelFamily::mistral) return read_mistral_window(fields, sliding, config);
  if (std::find(sliding.begin(), sliding.end(), true) != sliding.end())
    fields.problem("layer_types", "a llama attends in full in every layer");
}

std::optional<DType> read_one_dtype(const ModelFields& fields, const char* name) {
  std::optional<std::string> text = fields.text(name);
  if (!text) return std::nullopt;
  if (*text == "auto") return std::nullopt;  // whatever the tensors are stored in
  constexpr std::string_view kPrefix = "torch.";
  if (text->starts_with(kPrefix)) text->erase(0, kPrefix.size());
  const std::optional<DType> dtype = dtype_from_torch(*text);
  if (dtype && is_floating(*dtype)) return dtype;
  fields.problem(name, "dtypes that work: float16, bfloat16, float32, float64");
  return std::nullopt;
}

/// transformers reads `dtype` first and writes only the spelling of its own version when it saves a
/// model again, so that the other one may be out of date.
DType read_dtype(const ModelFields& fields, std::vector<std::string>& notes) {
  const std::optional<DType> fourth = read_one_dtype(fields, "torch_dtype");
  const std::optional<DType> fifth = read_one_dtype(fields, "dtype");
  if (fourth && fifth && *fourth != *fifth)
    notes.push_back(fmt::format(
        "config.json says dtype {} and torch_dtype {}: dtype counts, as in transformers",
        torch_name(*fifth), torch_name(*fourth)));
  return fifth.value_or(fourth.value_or(DType::f32));
}

/// One entry of espalier.layers; records problems under "espalier.layers[i]".
ExportedLayer read_exported_layer(const ModelFields& fields, const Json& entry, std::size_t index,
                                  const ModelConfig& config) {
  ExportedLayer layer;
  const std::string place = fmt::format("espalier.layers[{}]", index);
  const auto is_count = [](const Json& value, std::int64_t low, std::int64_t high) {
    return value.is_number_integer() && value.get<std::int64_t>() >= low &&
           value.get<std::int64_t>() <= high;
  };
  const bool complete = entry.is_object() && entry.contains("groups") &&
                        entry.contains("channels") && entry["groups"].is_array();
  if (!complete) {
    fields.problem_text(place + " is not {groups: [...], channels: n}",
                        "the widths of an exact export");
    return layer;
  }
  const Json& groups = entry["groups"];
  if (groups.size() > static_cast<std::size_t>(config.kv_heads))
    fields.problem_text(
        fmt::format("{}.groups has {}", place, counted(groups.size(), "entry", "entries")),
        fmt::format("at most num_key_value_heads = {}", config.kv_heads));
  for (const Json& group : groups) {
    if (is_count(group, 1, config.group_size())) {
      layer.groups.push_back(group.get<std::int64_t>());
      continue;
    }
    fields.problem_text(
        fmt::format("{}.groups holds {}", place, config_detail::printable(json_text(group))),
        fmt::format("a group keeps 1 to {}", counted(config.group_size(), "query head")));
    break;
  }
  if (is_count(entry["channels"], 0, config.channels))
    layer.channels = entry["channels"].get<std::int64_t>();
  else
    fields.problem_text(
        fmt::format("{}.channels = {}", place,
                    config_detail::printable(json_text(entry["channels"]))),
        fmt::format("an integer from 0 to intermediate_size = {} is needed", config.channels));
  return layer;
}

bool read_output_bias(const ModelFields& fields, const Json& own) {
  if (!own.contains("output_bias")) return false;
  const Json& value = own["output_bias"];
  if (value.is_boolean()) return value.get<bool>();
  fields.problem_text(
      fmt::format("espalier.output_bias = {}", config_detail::printable(json_text(value))),
      "true or false is needed");
  return false;
}

std::optional<std::vector<ExportedLayer>> read_exported(const ModelFields& fields,
                                                        ModelConfig& config) {
  if (!fields.has("espalier")) return std::nullopt;
  const Json& own = *fields.find("espalier");
  const bool has_list = own.is_object() && own.contains("layers") && own["layers"].is_array();
  if (!has_list || own["layers"].size() != static_cast<std::size_t>(config.layers)) {
    fields.problem_text(
        fmt::format("espalier.layers has {}",
                    counted(has_list ? own["layers"].size() : std::size_t{0}, "entry", "entries")),
        fmt::format("one for each of num_hidden_layers = {}", config.layers));
    return std::nullopt;
  }
  config.output_bias = read_output_bias(fields, own);
  std::vector<ExportedLayer> layers;
  for (const Json& entry : own["layers"])
    layers.push_back(read_exported_layer(fields, entry, layers.size(), config));
  return layers;
}

void read_all(const ModelFields& fields, ModelConfig& config) {
  config.hidden = fields.required_integer("hidden_size", 1, kMaxHidden);
  config.layers = fields.required_integer("num_hidden_layers", 1, kMaxLayers);
  config.channels = fields.required_integer("intermediate_size", 1, kMaxChannels);
  config.vocabulary = fields.required_integer("vocab_size", 1, kMaxVocabulary);
  read_heads(fields, config);
  read_head_dim(fields, config);
  config.max_positions = fields.integer("max_position_embeddings", 1, kMaxPositions)
                             .value_or(defaults_of(config.family).max_positions);
  // Absent means the class's default; null means nothing that could be added to a variance.
  if (fields.find("rms_norm_eps") != nullptr && !fields.has("rms_norm_eps"))
    fields.problem("rms_norm_eps", "a number of at least 0 is needed");
  config.rms_norm_eps = fields.number("rms_norm_eps", 0.0, true).value_or(kDefaultEps);
  config.rope = config_detail::read_rope(fields, config.max_positions);
  config.tied_embeddings = fields.boolean("tie_word_embeddings", false);
  config.qkv_bias = config.family == ModelFamily::qwen2;
  config.qk_norm = config.family == ModelFamily::qwen3;
  read_windows(fields, config);
  config.dtype = read_dtype(fields, config.notes);
  config_detail::refuse_unsupported_fields(fields, config.family);
}

}  // namespace

const char* name_of(ModelFamily family) { return defaults_of(family).model_type; }

ModelConfig parse_model_config(std::string text, const std::string& origin) {
  refuse_placeholder(std::string_view(text).substr(0, kPlaceholderBytes), text.size(), origin);
  const Json root = with_remedy("Correct it, or download it again.", [&] {
    return parse_json(text, origin, {.depth = 32, .bytes = kMaxFileBytes});
  });
  if (!root.is_object())
    throw Error(ExitCode::bad_content, "no JSON object", "config.json holds one object",
                "Name a Hugging Face model directory (config.json and safetensors files).", origin);
  Problems problems;
  const ModelFields fields(root, origin, problems);
  ModelConfig config;
  const std::optional<ModelFamily> family = read_family(fields);
  problems.throw_if_any();  // the meaning of every other field depends on the family
  config.family = *family;
  read_all(fields, config);
  problems.throw_if_any();  // the widths of an export are compared with sizes that are right
  config.exported = read_exported(fields, config);
  problems.throw_if_any();
  config.sha256 = sha256_hex(std::string_view(text));
  config.source_text = std::move(text);
  return config;
}

ModelConfig read_model_config(const std::filesystem::path& directory) {
  const std::filesystem::path file = directory / "config.json";
  std::string text = config_detail::read_text_file(
      file, kMaxFileBytes, ExitCode::bad_content,
      "Name a Hugging Face model directory (config.json and safetensors files).");
  return parse_model_config(std::move(text), file.string());
}

}  // namespace espalier
