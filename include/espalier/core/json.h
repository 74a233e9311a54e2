#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace espalier {

/// Limits for JSON that comes from outside.
struct JsonLimits {
  int depth = 32;
  std::size_t bytes = 256u << 20;
};

/// Parses UTF-8 JSON strictly: duplicate keys, nesting beyond the limit, invalid UTF-8, trailing
/// text and numbers that overflow are refused (ExitCode::bad_content) with `origin` and the byte
/// offset. Object order is kept.
nlohmann::ordered_json parse_json(std::string_view text, std::string_view origin,
                                  JsonLimits limits = {});

/// The one way to write JSON: never throws, whatever the strings hold. Bytes that are no UTF-8
/// become U+FFFD; strings that may hold such bytes (paths, names of hosts, values of the
/// environment) go through utf8_text() of core/text.h before, which loses nothing. `indent` < 0 is
/// the compact form.
std::string json_text(const nlohmann::ordered_json& value, int indent = -1);

}  // namespace espalier
