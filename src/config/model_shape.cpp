#include "espalier/config/model_shape.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <map>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "espalier/core/error.h"
#include "espalier/core/json.h"
#include "espalier/core/text.h"

namespace espalier {
namespace {

struct Shape {
  const char* name;
  const char* family;
  std::int64_t hidden, channels, layers, heads, kv_heads, head_dim, vocabulary;
};

/// As the published config.json files say.
constexpr std::array kShapes{
    Shape{"llama-2-7b", "llama", 4096, 11008, 32, 32, 32, 128, 32000},
    Shape{"llama-2-13b", "llama", 5120, 13824, 40, 40, 40, 128, 32000},
    Shape{"llama-3.1-8b", "llama", 4096, 14336, 32, 32, 8, 128, 128256},
    Shape{"llama-3.1-70b", "llama", 8192, 28672, 80, 64, 8, 128, 128256},
    Shape{"mistral-7b", "mistral", 4096, 14336, 32, 32, 8, 128, 32768},
    Shape{"qwen2.5-7b", "qwen2", 3584, 18944, 28, 28, 4, 128, 152064},
    Shape{"qwen2.5-14b", "qwen2", 5120, 13824, 48, 40, 8, 128, 152064},
    Shape{"qwen2.5-32b", "qwen2", 5120, 27648, 64, 40, 8, 128, 152064},
    Shape{"qwen2.5-72b", "qwen2", 8192, 29568, 80, 64, 8, 128, 152064},
    Shape{"qwen3-8b", "qwen3", 4096, 12288, 36, 32, 8, 128, 151936},
    Shape{"qwen3-14b", "qwen3", 5120, 17408, 40, 40, 8, 128, 151936},
    Shape{"qwen3-32b", "qwen3", 5120, 25600, 64, 64, 8, 128, 151936},
};

ModelConfig config_of(const Shape& shape) {
  nlohmann::ordered_json json{{"model_type", shape.family},
                              {"hidden_act", "silu"},
                              {"hidden_size", shape.hidden},
                              {"intermediate_size", shape.channels},
                              {"num_hidden_layers", shape.layers},
                              {"num_attention_heads", shape.heads},
                              {"num_key_value_heads", shape.kv_heads},
                              {"head_dim", shape.head_dim},
                              {"vocab_size", shape.vocabulary},
                              {"max_position_embeddings", 131072},
                              {"rms_norm_eps", 1e-6},
                              {"rope_theta", 1e6},
                              {"tie_word_embeddings", false},
                              {"torch_dtype", *shape.name == 0 ? "float32" : "bfloat16"}};
  if (std::string_view(shape.family) == "mistral") json["sliding_window"] = nullptr;
  if (std::string_view(shape.family).starts_with("qwen")) json["use_sliding_window"] = false;
  return parse_model_config(json_text(json), fmt::format("--shape {}", shape.name));
}

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

[[noreturn]] void refuse(const std::string& shape, const std::vector<std::string>& wrong) {
  throw Error(ExitCode::usage, fmt::format("--shape {}", one_line(shape)),
              fmt::format("{}", fmt::join(wrong, "; ")),
              fmt::format("Give hidden=1024,channels=2816,layers=8,heads=16,kv_heads=4,"
                          "vocabulary=8192 (and head_dim=...), or one of {}.",
                          fmt::join(known_shapes(), ", ")));
}

/// The numbers of "a=1,b=2"; what is wrong goes to `wrong`.
std::map<std::string, std::int64_t> numbers_of(const std::string& text,
                                               std::vector<std::string>& wrong) {
  static constexpr std::array kKeys{"hidden",   "channels",   "layers",  "heads",
                                    "kv_heads", "vocabulary", "head_dim"};
  std::map<std::string, std::int64_t> numbers;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    const std::string part = text.substr(begin, end - begin);
    begin = end + 1;
    const std::size_t equals = std::min(part.find('='), part.size());
    const std::string key = part.substr(0, equals);
    const char* const last = part.data() + part.size();
    std::int64_t value = 0;
    const auto [stop, failure] =
        std::from_chars(part.data() + std::min(equals + 1, part.size()), last, value);
    if (std::find(kKeys.begin(), kKeys.end(), key) == kKeys.end())
      wrong.push_back(fmt::format("'{}' is not a size", one_line(key)));
    else if (failure != std::errc() || stop != last || value < 1)
      wrong.push_back(fmt::format("'{}' is not a whole number from 1", one_line(part)));
    else if (!numbers.emplace(key, value).second)
      wrong.push_back(fmt::format("{} twice", key));
  }
  return numbers;
}

ModelConfig config_of_numbers(const std::string& text) {
  std::vector<std::string> wrong, missing;
  std::map<std::string, std::int64_t> n = numbers_of(text, wrong);
  for (const char* key : {"hidden", "channels", "layers", "heads", "kv_heads", "vocabulary"})
    if (!n.contains(key)) missing.push_back(fmt::format("{} is missing", key));
  if (!wrong.empty()) refuse(text, wrong);  // what is misspelt is missing, too
  if (!missing.empty()) refuse(text, missing);
  if (!n.contains("head_dim")) {
    if (n["hidden"] % n["heads"] != 0)
      refuse(text,
             {fmt::format("hidden = {} is no multiple of heads = {}, and there is no head_dim",
                          n["hidden"], n["heads"])});
    n["head_dim"] = n["hidden"] / n["heads"];
  }
  try {
    return config_of({"", "llama", n["hidden"], n["channels"], n["layers"], n["heads"],
                      n["kv_heads"], n["head_dim"], n["vocabulary"]});
  } catch (const Error& error) {  // in the words of config.json
    for (const Problem& problem : error.problems())
      wrong.push_back(problem.why.empty() ? problem.what
                                          : fmt::format("{} ({})", problem.what, problem.why));
    refuse(text, wrong);
  }
}

}  // namespace

std::vector<std::string> known_shapes() {
  std::vector<std::string> names;
  names.reserve(kShapes.size());
  for (const Shape& shape : kShapes) names.emplace_back(shape.name);
  return names;
}

ModelConfig config_of_shape(const std::string& text, std::optional<std::int64_t> layers) {
  const auto known = std::find_if(kShapes.begin(), kShapes.end(),
                                  [&](const Shape& shape) { return lower(text) == shape.name; });
  if (known == kShapes.end() && text.find('=') == std::string::npos) {
    const std::string near = nearest_name(lower(text), known_shapes());
    refuse(text, {near.empty() ? "no such model is known"
                               : fmt::format("no such model is known; did you mean '{}'?", near)});
  }
  ModelConfig config = known == kShapes.end() ? config_of_numbers(text) : config_of(*known);
  return layers ? with_layers(std::move(config), *layers) : config;
}

ModelConfig with_layers(ModelConfig config, std::int64_t layers) {
  if (config.exported)
    throw Error(ExitCode::usage, "--layers on an exported model",
                "each of its layers has widths of its own", "Leave --layers out.");
  config.layers = layers;
  config.sliding_window.assign(static_cast<std::size_t>(layers), config.sliding_window.front());
  return config;
}

}  // namespace espalier
