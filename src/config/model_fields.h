#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "espalier/config/model_config.h"
#include "espalier/core/error.h"
#include "espalier/core/json.h"

namespace espalier::config_detail {

using Json = nlohmann::ordered_json;

/// Checked access to the fields of one JSON object of config.json. Nothing throws for a wrong
/// value: the problem is recorded as "origin: field = value (rule). remedy" and a harmless value is
/// returned, so that one pass finds everything.
class ModelFields {
 public:
  ModelFields(const Json& object, std::string origin, Problems& problems, std::string prefix = {})
      : object_(object),
        origin_(std::move(origin)),
        problems_(problems),
        prefix_(std::move(prefix)) {}

  /// The value, null included; nullptr when the field is absent.
  const Json* find(std::string_view name) const;
  /// Present and not null.
  bool has(std::string_view name) const;
  /// Present, not null, and no problem was recorded for it: a rule over several fields may quote
  /// it.
  bool is_clean(std::string_view name) const { return has(name) && !wrong_.contains(name); }
  const Json& object() const { return object_; }

  /// Integers in [min, max]. Absent and null both give nothing.
  std::optional<std::int64_t> integer(std::string_view name, std::int64_t min,
                                      std::int64_t max) const;
  /// As above; absent or null is a problem too.
  std::int64_t required_integer(std::string_view name, std::int64_t min, std::int64_t max) const;
  /// Finite numbers above `above` (or equal when `inclusive`).
  std::optional<double> number(std::string_view name, double above, bool inclusive = false) const;
  bool boolean(std::string_view name, bool fallback) const;
  std::optional<std::string> text(std::string_view name) const;
  /// The nested object's fields. Precondition: the field is an object.
  ModelFields nested(std::string_view name) const;

  /// Records "field = value (rule). remedy"; without a remedy, that config.json is to be corrected.
  void problem(std::string_view name, std::string rule, std::string remedy = {}) const;
  /// Records a problem that no single value shows.
  void problem_text(std::string what, std::string rule, std::string remedy = {}) const;

 private:
  const Json& object_;
  std::string origin_;
  Problems& problems_;
  std::string prefix_;
  mutable std::set<std::string, std::less<>> wrong_;
};

/// For a multimodal model: what to do to read its language model.
inline constexpr const char* kTakeLanguageModel =
    "Load the model with transformers and save its language model alone with save_pretrained.";

/// Refuses by name every field that changes the arithmetic of a decoder and is not implemented.
void refuse_unsupported_fields(const ModelFields& fields, ModelFamily family);

/// Rotary settings in the spellings of transformers 4 (rope_theta, rope_scaling) and 5
/// (rope_parameters). Both may stand side by side when they agree.
RopeConfig read_rope(const ModelFields& fields, std::int64_t max_positions);

}  // namespace espalier::config_detail
