#include "schema.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdlib>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "espalier/core/paths.h"
#include "espalier/core/text.h"
#include "text_file.h"

namespace espalier::config_detail {
namespace {

/// Longest text of a path: the longest that the system takes, with an escape for every byte.
constexpr std::size_t kPathText = std::size_t{4} * 4096;

template <class T>
std::optional<T> parse_all(std::string_view text) {
  if (text.starts_with('+')) text.remove_prefix(1);
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

/// 010 means eight to some readers and ten to others.
bool has_leading_zero(std::string_view text) {
  if (text.starts_with('+') || text.starts_with('-')) text.remove_prefix(1);
  return text.size() > 1 && text[0] == '0' && text[1] >= '0' && text[1] <= '9';
}

std::string range_rule(IntegerRange range, const std::string& word) {
  const std::string choice = word.empty() ? "" : fmt::format("`{}` or ", word);
  if (range.max == std::numeric_limits<std::int64_t>::max())
    return fmt::format("{}an integer of at least {} is needed", choice, range.min);
  return fmt::format("{}an integer from {} to {} is needed", choice, range.min, range.max);
}

bool is_variable_name(std::string_view name) {
  if (name.empty() || (name[0] >= '0' && name[0] <= '9')) return false;
  for (const char c : name)
    if (c != '_' && !(c >= '0' && c <= '9') && !(c >= 'A' && c <= 'Z') && !(c >= 'a' && c <= 'z'))
      return false;
  return true;
}

struct Expansion {
  std::string text;
  /// Empty when all went well.
  std::string problem;
  bool used_environment = false;
};

void append_variable(const std::string& name, Expansion& out) {
  const char* value = is_variable_name(name) ? std::getenv(name.c_str()) : nullptr;
  out.used_environment = true;
  if (value != nullptr)
    out.text += value;
  else if (out.problem.empty())
    out.problem = fmt::format("the environment variable '{}' is not set", printable(name));
}

Expansion expand(const std::string& text) {
  Expansion out;
  std::size_t at = 0;
  if (text == "~" || text.starts_with("~/")) {
    append_variable("HOME", out);
    at = 1;
  } else if (text.starts_with('~')) {
    out.problem = "only '~/' is expanded, not another user's home";
  }
  std::size_t begin = at;  // of what stands for itself, and alone may hold escapes
  const auto take_literal = [&](std::size_t end, std::size_t next) {
    out.text += bytes_of_text(std::string_view(text).substr(begin, end - begin));
    at = begin = next;
  };
  while (at < text.size()) {
    if (text.compare(at, 3, "$${") == 0) {
      take_literal(at, at + 1);
      at += 2;  // "${" stands for itself from here
      continue;
    }
    if (text.compare(at, 2, "${") != 0) {
      ++at;
      continue;
    }
    const std::size_t end = text.find('}', at);
    if (end == std::string::npos) {
      out.problem = "'${' without '}'";
      return out;
    }
    const std::string name = text.substr(at + 2, end - at - 2);
    take_literal(at, end + 1);
    append_variable(name, out);
  }
  take_literal(at, at);
  return out;
}

/// A scalar that every YAML reader takes for the same text without quotes.
bool is_safe_plain(const std::string& text) {
  constexpr std::string_view kLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_/";
  constexpr std::string_view kOthers = "0123456789.-";
  constexpr std::array<std::string_view, 9> kReserved{"true", "false", "null", "yes", "no",
                                                      "on",   "off",   "y",    "n"};
  if (text.empty() || kLetters.find(text[0]) == std::string_view::npos) return false;
  std::string lower;
  for (const char c : text) {
    if (kLetters.find(c) == std::string_view::npos && kOthers.find(c) == std::string_view::npos)
      return false;
    lower += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  }
  return std::find(kReserved.begin(), kReserved.end(), lower) == kReserved.end();
}

}  // namespace

void Walk::wrong(const YamlNode& node, const std::string& key, std::string rule, std::string remedy,
                 ExitCode code) {
  problems.add(code, fmt::format("{} = {}", key, node.shown()), std::move(rule), std::move(remedy),
               node.where);
}

std::optional<std::int64_t> read_integer(Walk& walk, const YamlNode& node, const std::string& key,
                                         IntegerRange range, const std::string& word) {
  const auto value = node.is_plain() && !has_leading_zero(node.text)
                         ? parse_all<std::int64_t>(node.text)
                         : std::nullopt;
  if (value && *value >= range.min && *value <= range.max) return value;
  walk.wrong(node, key, range_rule(range, word));
  return std::nullopt;
}

std::optional<double> read_number(Walk& walk, const YamlNode& node, const std::string& key,
                                  const std::function<bool(double)>& accepts,
                                  const std::string& rule) {
  const auto value =
      node.is_plain() && !has_leading_zero(node.text) ? parse_all<double>(node.text) : std::nullopt;
  if (value && std::isfinite(*value) && accepts(*value)) return value;
  walk.wrong(node, key, rule);
  return std::nullopt;
}

std::optional<bool> read_boolean(Walk& walk, const YamlNode& node, const std::string& key) {
  if (node.is_plain() && (node.text == "true" || node.text == "false")) return node.text == "true";
  walk.wrong(node, key, "permitted: true, false");
  return std::nullopt;
}

std::optional<std::string> read_text(Walk& walk, const YamlNode& node, const std::string& key,
                                     std::size_t limit) {
  if (!node.is_scalar() || node.text.empty()) {
    walk.wrong(node, key, "a text is needed");
  } else if (node.text.size() > limit) {
    walk.wrong(node, key, fmt::format("at most {} bytes, it has {}", limit, node.text.size()));
  } else if (node.text.find_first_of(std::string("\n\r\t\0", 4)) != std::string::npos) {
    walk.wrong(node, key, "no line breaks, tabs or NULs");
  } else {
    return node.text;
  }
  return std::nullopt;
}

std::optional<std::size_t> read_choice(Walk& walk, const YamlNode& node, const std::string& key,
                                       const std::vector<std::string>& values) {
  for (std::size_t i = 0; i < values.size(); ++i)
    if (node.is_scalar() && node.text == values[i]) return i;
  // Short words are near to everything.
  const bool has_near = node.is_scalar() && node.text.size() >= 5;
  const std::string near = has_near ? nearest_name(node.text, values) : "";
  walk.wrong(node, key, fmt::format("permitted: {}", fmt::join(values, ", ")),
             near.empty() ? "" : fmt::format("Did you mean '{}'?", near));
  return std::nullopt;
}

std::optional<std::filesystem::path> read_path(Walk& walk, const YamlNode& node,
                                               const std::string& key, bool absolute) {
  const auto text = read_text(walk, node, key, kPathText);
  if (!text) return std::nullopt;
  const Expansion expanded = expand(*text);
  if (!expanded.problem.empty() || expanded.text.empty()) {
    walk.wrong(node, key, expanded.problem.empty() ? "the path is empty" : expanded.problem);
    return std::nullopt;
  }
  if (expanded.text.find('\0') != std::string::npos) {
    walk.wrong(node, key, "no path holds a NUL byte");
    return std::nullopt;
  }
  if (expanded.used_environment) walk.origin[key] += ", environment";
  const std::filesystem::path path(expanded.text);
  return tidy_path(absolute ? walk.base / path : path);
}

std::string print_number(double value) {
  std::string text = fmt::format("{}", value);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

std::string print_text(const std::string& text) {
  if (is_safe_plain(text)) return text;
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\')
      out += std::string("\\") + c;
    else if (byte < 0x20 || byte == 0x7F)
      out += fmt::format("\\x{:02x}", byte);
    else
      out += c;
  }
  return out + "\"";
}

std::string print_path(const std::filesystem::path& path) {
  const std::string raw = line_text(path.string());
  std::string text = raw.starts_with('~') ? "./" : "";
  for (std::size_t at = 0; at < raw.size(); ++at) {
    if (raw.compare(at, 2, "${") == 0) text += '$';
    text += raw[at];
  }
  return print_text(text);
}

std::string print_map(const std::vector<FlatEntry>& entries) {
  std::string out;
  for (const auto& [key, value] : entries)
    out += fmt::format("{}{}: {}", out.empty() ? "{" : ", ", key, value);
  return out + "}";
}

void unknown_key(Walk& walk, const YamlNode::Entry& entry, const std::string& full_key,
                 const std::string& section, const std::vector<std::string>& siblings) {
  std::string near = nearest_name(entry.key, siblings);
  if (!near.empty()) {
    near = section + near;
  } else {
    // The right name at the wrong place, or a name that is nearest as a whole.
    std::vector<std::string> last_names;
    for (const std::string& known : known_keys())
      last_names.push_back(known.substr(known.rfind('.') + 1));
    const std::string last = nearest_name(entry.key, last_names);
    for (std::size_t i = 0; i < last_names.size() && near.empty() && !last.empty(); ++i)
      if (last_names[i] == last) near = known_keys()[i];
    if (near.empty()) near = nearest_name(full_key, known_keys());
  }
  walk.problems.add(ExitCode::config, fmt::format("unknown key '{}'", printable(full_key, 100)), {},
                    near.empty() ? fmt::format("Keys here: {}.", fmt::join(siblings, ", "))
                                 : fmt::format("Did you mean '{}'?", near),
                    entry.where);
}

void missing_key(Walk& walk, const YamlNode& map, const std::string& place, const std::string& key,
                 const std::string& example) {
  std::string where = map.where;
  std::string shown = example;
  std::size_t end = key.size();
  for (std::size_t dot = key.rfind('.'); dot != std::string::npos;
       dot = dot == 0 ? dot : key.rfind('.', dot - 1)) {
    const auto it = walk.place.find(place + key.substr(0, dot));
    if (it != walk.place.end() && where == map.where) where = it->second;
    shown = fmt::format("{{{}: {}}}", key.substr(dot + 1, end - dot - 1), shown);
    end = dot;
  }
  walk.problems.add(ExitCode::config, place + key + " is missing", "it is required",
                    fmt::format("For example: {}: {}", key.substr(0, end), shown), where);
}

}  // namespace espalier::config_detail
