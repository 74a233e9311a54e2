#include <array>
#include <cmath>

#include <fmt/format.h>

#include "model_fields.h"

namespace espalier::config_detail {
namespace {

constexpr std::int64_t kMaxPositions = std::int64_t{1} << 31;
constexpr double kDefaultTheta = 10000.0;

// Keys of a rope dictionary that are read, or that belong to a type that is refused by its name.
constexpr std::array<std::string_view, 12> kKnownRopeKeys{"rope_type",
                                                          "type",
                                                          "rope_theta",
                                                          "factor",
                                                          "low_freq_factor",
                                                          "high_freq_factor",
                                                          "original_max_position_embeddings",
                                                          "partial_rotary_factor",
                                                          "attention_factor",
                                                          "beta_fast",
                                                          "beta_slow",
                                                          "truncate"};

bool is_known(std::string_view key) {
  for (const std::string_view known : kKnownRopeKeys)
    if (key == known) return true;
  return false;
}

/// Linear scaling divides every frequency by the factor, so a factor of 1 is no scaling.
bool divides_by_one(const ModelFields& rope) {
  return rope.has("factor") && rope.number("factor", 0.0) == 1.0;
}

std::optional<RopeConfig::Type> rope_type(const ModelFields& rope) {
  const std::optional<std::string> fifth = rope.text("rope_type");
  const std::optional<std::string> fourth = rope.text("type");
  if (fifth && fourth && *fifth != *fourth)
    rope.problem("type", fmt::format("rope_type says \"{}\"", *fifth),
                 "Keep the one that is true.");
  const char* key = fifth ? "rope_type" : "type";
  const std::string name = fifth.value_or(fourth.value_or("default"));
  if (name == "default") return RopeConfig::Type::standard;
  if (name == "llama3") return RopeConfig::Type::llama3;
  if (name == "linear" && divides_by_one(rope)) return RopeConfig::Type::standard;
  rope.problem(key, "rope types that work: default, llama3, and linear with factor 1",
               "Use a checkpoint without this scaling of the rotary embedding.");
  return std::nullopt;
}

double required_factor(const ModelFields& rope, const char* name, double above, bool inclusive) {
  if (!rope.has(name)) {
    rope.problem_text(fmt::format("a rope of type llama3 has no '{}'", name),
                      "factor, low_freq_factor and high_freq_factor are needed");
    return 1.0;
  }
  return rope.number(name, above, inclusive).value_or(1.0);
}

struct RopeContext {
  /// When the dictionary names none.
  double theta = kDefaultTheta;
  /// original_max_position_embeddings beside it.
  std::optional<std::int64_t> outer_original;
  std::int64_t max_positions = 0;
};

/// original_max_position_embeddings only divides wave lengths: transformers takes 8192.0 for 8192.
std::optional<std::int64_t> original_positions(const ModelFields& fields) {
  constexpr const char* kName = "original_max_position_embeddings";
  const Json* value = fields.find(kName);
  if (value != nullptr && value->is_number_float()) {
    const double number = value->get<double>();
    if (number >= 1.0 && number <= static_cast<double>(kMaxPositions) &&
        std::floor(number) == number)
      return static_cast<std::int64_t>(number);
  }
  return fields.integer(kName, 1, kMaxPositions);
}

void read_llama3(const ModelFields& rope, const RopeContext& context, RopeConfig& out) {
  out.factor = required_factor(rope, "factor", 1.0, true);
  out.low_freq_factor = required_factor(rope, "low_freq_factor", 0.0, false);
  out.high_freq_factor = required_factor(rope, "high_freq_factor", 0.0, false);
  if (rope.has("low_freq_factor") && rope.has("high_freq_factor") &&
      out.high_freq_factor <= out.low_freq_factor)
    rope.problem("high_freq_factor",
                 fmt::format("it must be above low_freq_factor = {}", out.low_freq_factor));
  const auto inner = original_positions(rope);
  if (inner && context.outer_original && *inner != *context.outer_original)
    rope.problem("original_max_position_embeddings",
                 fmt::format("the field of the same name outside says {}", *context.outer_original),
                 "Keep the one that is true.");
  out.original_max_positions =
      inner.value_or(context.outer_original.value_or(context.max_positions));
}

RopeConfig read_dictionary(const ModelFields& rope, const RopeContext& context) {
  RopeConfig out;
  out.theta = rope.number("rope_theta", 0.0).value_or(context.theta);
  const auto type = rope_type(rope);
  if (!type) return out;
  out.type = *type;
  for (const auto& [key, value] : rope.object().items())
    if (!value.is_null() && !is_known(key))
      rope.problem(key, "a rotary setting that is not implemented");
  if (rope.has("partial_rotary_factor") &&
      rope.number("partial_rotary_factor", 0.0).value_or(1.0) != 1.0)
    rope.problem("partial_rotary_factor",
                 "rotary embedding of a part of a head is not implemented");
  if (out.type == RopeConfig::Type::llama3) read_llama3(rope, context, out);
  return out;
}

bool same_scaling(const RopeConfig& a, const RopeConfig& b) {
  if (a.type != b.type) return false;
  return a.type == RopeConfig::Type::standard ||
         (a.factor == b.factor && a.low_freq_factor == b.low_freq_factor &&
          a.high_freq_factor == b.high_freq_factor &&
          a.original_max_positions == b.original_max_positions);
}

/// transformers reads a dictionary per layer type for other model types only: with one of these it
/// fails, or computes without what the dictionaries say.
RopeConfig read_parameters(const ModelFields& fields, const char* name,
                           const RopeContext& context) {
  const ModelFields rope = fields.nested(name);
  for (const auto& [key, value] : rope.object().items())
    if (value.is_object()) {
      rope.problem(key, "rotary settings per layer type are not implemented",
                   fmt::format("Write one flat {} that all layers share.", name));
      return {};
    }
  return read_dictionary(rope, context);
}

/// The field as an object that says something. An empty list says nothing, as in transformers;
/// anything else but null is a problem.
bool is_dictionary(const ModelFields& fields, const char* name) {
  if (!fields.has(name)) return false;
  const Json& value = *fields.find(name);
  if (value.is_structured() && value.empty()) return false;
  if (value.is_object()) return true;
  fields.problem(name, "an object or null is needed");
  return false;
}

/// An explicit null is no base of the frequencies, unless the rotary settings name one.
void refuse_null_theta(const ModelFields& fields, bool fourth, bool fifth) {
  const auto names_theta = [&](bool given, const char* name) {
    return given && fields.nested(name).has("rope_theta");
  };
  if (fields.find("rope_theta") == nullptr || fields.has("rope_theta")) return;
  if (!names_theta(fourth, "rope_scaling") && !names_theta(fifth, "rope_parameters"))
    fields.problem("rope_theta", "a number above 0 is needed");
}

}  // namespace

RopeConfig read_rope(const ModelFields& fields, std::int64_t max_positions) {
  RopeContext context;
  const std::optional<double> outer_theta = fields.number("rope_theta", 0.0);
  context.theta = outer_theta.value_or(kDefaultTheta);
  context.outer_original = original_positions(fields);
  context.max_positions = max_positions;
  const bool fourth = is_dictionary(fields, "rope_scaling");
  const bool fifth = is_dictionary(fields, "rope_parameters");

  refuse_null_theta(fields, fourth, fifth);

  RopeConfig plain;
  plain.theta = context.theta;
  const RopeConfig old_form = fourth ? read_parameters(fields, "rope_scaling", context) : plain;
  const RopeConfig rope = fifth ? read_parameters(fields, "rope_parameters", context) : old_form;
  if (outer_theta && rope.theta != *outer_theta)
    fields.problem("rope_theta", fmt::format("the rotary settings say {}", rope.theta),
                   "Keep the one that is true.");
  // An explicit null is what transformers 4 would act on, so it has to agree as well.
  if (fifth && fields.find("rope_scaling") != nullptr && !same_scaling(rope, old_form))
    fields.problem("rope_scaling", "rope_parameters says otherwise", "Keep the one that is true.");
  return rope;
}

}  // namespace espalier::config_detail
