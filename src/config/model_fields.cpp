#include "model_fields.h"

#include <array>
#include <cmath>

#include <fmt/format.h>

#include "text_file.h"

namespace espalier::config_detail {
namespace {

std::string shown(const Json& value) { return printable(json_text(value)); }

bool is_number_equal(const Json& value, double expected) {
  return value.is_number() && value.get<double>() == expected;
}

/// What a field may hold without changing anything.
enum class Neutral {
  only_null,
  null_or_one,
  null_or_false,
  null_or_true,
  null_or_empty,
  null_or_zero
};

constexpr const char* kCorrectValue =
    "Correct config.json: take the value that the checkpoint was saved with.";
constexpr const char* kPlainModel =
    "Use a checkpoint without it; take the field out only if the weights were trained without it.";
constexpr const char* kDequantize =
    "Use the checkpoint before quantization, or dequantize it with the tool that made it.";

struct RefusedField {
  const char* name;
  Neutral neutral;
  const char* meaning;
  const char* remedy = kPlainModel;
};

constexpr const char* kAbsent = "a field that changes the arithmetic and is not implemented";
constexpr const char* kMultimodal = "a language model inside a model of several kinds of input";

constexpr std::array<RefusedField, 37> kRefused{{
    {"quantization_config", Neutral::only_null, "quantized weights are not supported", kDequantize},
    {"compression_config", Neutral::only_null, "compressed weights are not supported", kDequantize},
    {"text_config", Neutral::only_null, kMultimodal, kTakeLanguageModel},
    {"vision_config", Neutral::only_null, kMultimodal, kTakeLanguageModel},
    {"audio_config", Neutral::only_null, kMultimodal, kTakeLanguageModel},
    {"transformers_weights", Neutral::only_null,
     "weights are read from model.safetensors or by its index",
     "Rename the file that it names to model.safetensors, and take the field out."},
    {"attn_logit_softcapping", Neutral::only_null, "soft caps are not implemented"},
    {"final_logit_softcapping", Neutral::only_null, "soft caps are not implemented"},
    {"logit_softcapping", Neutral::only_null, "soft caps are not implemented"},
    {"query_pre_attn_scalar", Neutral::only_null, kAbsent},
    {"partial_rotary_factor", Neutral::null_or_one,
     "rotary embedding of a part of a head is not implemented"},
    {"rotary_pct", Neutral::null_or_one, "rotary embedding of a part of a head is not implemented"},
    {"attention_multiplier", Neutral::null_or_one, kAbsent},
    {"embedding_multiplier", Neutral::null_or_one, kAbsent},
    {"residual_multiplier", Neutral::null_or_one, kAbsent},
    {"logits_scaling", Neutral::null_or_one, kAbsent},
    {"logit_scale", Neutral::null_or_one, kAbsent},
    {"scale_emb", Neutral::null_or_one, kAbsent},
    {"scale_depth", Neutral::null_or_one, kAbsent},
    {"per_layer_config", Neutral::null_or_empty,
     "widths per layer are read from the key 'espalier' only"},
    {"block_configs", Neutral::null_or_empty,
     "widths per layer are read from the key 'espalier' only"},
    {"pruned_heads", Neutral::null_or_empty, "heads removed by another program are not supported"},
    {"mlp_bias", Neutral::null_or_false, "biases in the MLP are not implemented"},
    {"alibi", Neutral::null_or_false, kAbsent},
    {"use_mrope", Neutral::null_or_false, kAbsent},
    {"rope_interleave", Neutral::null_or_false, kAbsent},
    {"rope_interleaved", Neutral::null_or_false, kAbsent},
    {"no_rope_layers", Neutral::null_or_empty,
     "layers without rotary embedding are not implemented"},
    {"attention_chunk_size", Neutral::only_null, kAbsent},
    {"attention_sinks", Neutral::null_or_false, kAbsent},
    {"is_encoder_decoder", Neutral::null_or_false, "only decoders are supported"},
    {"add_cross_attention", Neutral::null_or_false, "only decoders are supported"},
    {"is_causal", Neutral::null_or_true, "only causal attention is implemented"},
    {"use_bidirectional_attention", Neutral::null_or_false, "only causal attention is implemented"},
    {"num_experts", Neutral::null_or_zero, "mixtures of experts are not supported"},
    {"num_local_experts", Neutral::null_or_zero, "mixtures of experts are not supported"},
    {"n_routed_experts", Neutral::null_or_zero, "mixtures of experts are not supported"},
}};

bool is_neutral(const Json& value, Neutral neutral) {
  if (value.is_null()) return true;
  switch (neutral) {
    case Neutral::only_null:
      return false;
    case Neutral::null_or_one:
      return is_number_equal(value, 1.0);
    case Neutral::null_or_false:
      return value.is_boolean() && !value.get<bool>();
    case Neutral::null_or_true:
      return value.is_boolean() && value.get<bool>();
    case Neutral::null_or_empty:
      return value.is_structured() && value.empty();
    case Neutral::null_or_zero:
      return is_number_equal(value, 0.0);
  }
  return false;
}

constexpr const char* kGatedSilu = "Use a checkpoint with a gated SiLU MLP.";

void refuse_activation(const ModelFields& fields, const char* name) {
  if (!fields.has(name)) return;
  const std::optional<std::string> act = fields.text(name);
  if (act && *act != "silu" && *act != "swish")
    fields.problem(name, "only silu is implemented", kGatedSilu);
}

/// True in a boolean field of a family whose class would add tensors for it.
void refuse_true(const ModelFields& fields, const char* name, const char* rule) {
  if (fields.has(name) && fields.boolean(name, false)) fields.problem(name, rule, kPlainModel);
}

}  // namespace

const Json* ModelFields::find(std::string_view name) const {
  const auto it = object_.find(std::string(name));
  return it == object_.end() ? nullptr : &*it;
}

bool ModelFields::has(std::string_view name) const {
  const Json* value = find(name);
  return value != nullptr && !value->is_null();
}

std::optional<std::int64_t> ModelFields::integer(std::string_view name, std::int64_t min,
                                                 std::int64_t max) const {
  if (!has(name)) return std::nullopt;
  const Json& value = *find(name);
  const bool fits = value.is_number_unsigned()
                        ? value.get<std::uint64_t>() <= static_cast<std::uint64_t>(max)
                        : value.is_number_integer();
  if (!fits || value.get<std::int64_t>() < min || value.get<std::int64_t>() > max) {
    problem(name, fmt::format("an integer from {} to {} is needed", min, max),
            value.is_number_float() || value.is_string()
                ? "Write it as a JSON integer: no quotes, no fraction."
                : "");
    return std::nullopt;
  }
  return value.get<std::int64_t>();
}

std::int64_t ModelFields::required_integer(std::string_view name, std::int64_t min,
                                           std::int64_t max) const {
  if (!has(name)) {
    problem_text(fmt::format("{}{} is missing", prefix_, name), "it has no safe default",
                 "Add the value that the checkpoint was trained with.");
    return min;
  }
  return integer(name, min, max).value_or(min);
}

std::optional<double> ModelFields::number(std::string_view name, double above,
                                          bool inclusive) const {
  if (!has(name)) return std::nullopt;
  const Json& value = *find(name);
  const double x = value.is_number() ? value.get<double>() : std::nan("");
  if (!std::isfinite(x) || (inclusive ? x < above : x <= above)) {
    problem(name,
            fmt::format("a number {} {} is needed", inclusive ? "of at least" : "above", above),
            value.is_string() ? "Write it as a JSON number, without quotes." : "");
    return std::nullopt;
  }
  return x;
}

bool ModelFields::boolean(std::string_view name, bool fallback) const {
  if (!has(name)) return fallback;
  const Json& value = *find(name);
  if (value.is_boolean()) return value.get<bool>();
  problem(name, "true or false is needed");
  return fallback;
}

std::optional<std::string> ModelFields::text(std::string_view name) const {
  if (!has(name)) return std::nullopt;
  const Json& value = *find(name);
  if (value.is_string()) return value.get<std::string>();
  problem(name, "a string is needed");
  return std::nullopt;
}

ModelFields ModelFields::nested(std::string_view name) const {
  return {*find(name), origin_, problems_, fmt::format("{}{}.", prefix_, name)};
}

void ModelFields::problem(std::string_view name, std::string rule, std::string remedy) const {
  const Json* value = find(name);
  wrong_.emplace(name);
  problem_text(
      fmt::format("{}{} = {}", prefix_, printable(name), value == nullptr ? "" : shown(*value)),
      std::move(rule), std::move(remedy));
}

void ModelFields::problem_text(std::string what, std::string rule, std::string remedy) const {
  if (remedy.empty()) remedy = kCorrectValue;
  problems_.add(ExitCode::bad_content, std::move(what), std::move(rule), std::move(remedy),
                origin_);
}

void refuse_unsupported_fields(const ModelFields& fields, ModelFamily family) {
  for (const RefusedField& row : kRefused) {
    const Json* value = fields.find(row.name);
    if (value != nullptr && !is_neutral(*value, row.neutral))
      fields.problem(row.name, row.meaning, row.remedy);
  }
  refuse_activation(fields, "hidden_act");
  // An absent hidden_act is silu in all four classes; a null one is no activation at all.
  if (fields.find("hidden_act") != nullptr && !fields.has("hidden_act"))
    fields.problem("hidden_act", "only silu is implemented", kGatedSilu);
  refuse_activation(fields, "hidden_activation");
  if (family != ModelFamily::qwen2) {
    refuse_true(fields, "attention_bias", "biases in attention are implemented for qwen2 only");
    refuse_true(fields, "qkv_bias", "biases in attention are implemented for qwen2 only");
  }
  if (family != ModelFamily::qwen3) {
    refuse_true(fields, "use_qk_norm", "q and k norms are implemented for qwen3 only");
    refuse_true(fields, "qk_norm", "q and k norms are implemented for qwen3 only");
  }
}

}  // namespace espalier::config_detail
