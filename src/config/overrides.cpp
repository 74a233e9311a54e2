#include "overrides.h"

#include <charconv>
#include <optional>

#include <fmt/format.h>

#include "espalier/core/text.h"
#include "text_file.h"

namespace espalier::config_detail {
namespace {

constexpr const char* kForm = "Write --set key=value, for example --set prune.target=0.3.";

/// "a.b[0].c" and "a.b.0.c" -> {a, b, 0, c}; empty when a name is empty.
std::vector<std::string> split_key(const std::string& key) {
  std::string dotted;
  for (const char c : key) {
    if (c == '[')
      dotted += '.';
    else if (c != ']')
      dotted += c;
  }
  std::vector<std::string> parts(1);
  for (const char c : dotted) {
    if (c == '.')
      parts.emplace_back();
    else
      parts.back() += c;
  }
  for (const std::string& part : parts)
    if (part.empty()) return {};
  return parts;
}

std::optional<std::size_t> parse_index(const std::string& text) {
  std::size_t index = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), index);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return index;
}

/// The child that `part` names, made when it is a missing key; nullptr with the reason in `why`.
YamlNode* child(YamlNode& node, const std::string& part, const std::string& label,
                std::string& why) {
  if (node.kind == YamlNode::Kind::list) {
    const auto index = parse_index(part);
    if (index && *index < node.items.size()) return &node.items[*index];
    why = fmt::format("the list has {}, numbered from 0", counted(node.items.size(), "element"));
    return nullptr;
  }
  if (node.kind == YamlNode::Kind::scalar) {
    why = fmt::format("'{}' is no key of {}", printable(part), node.shown());
    return nullptr;
  }
  node.kind = YamlNode::Kind::map;
  if (YamlNode* present = node.find(part)) return present;
  YamlNode empty;
  empty.where = label;
  empty.origin = "--set";
  node.entries.push_back({part, label, std::move(empty)});
  return &node.entries.back().value;
}

void apply(YamlNode& root, const std::string& text, Problems& problems) {
  const std::size_t equals = text.find('=');
  const std::vector<std::string> parts =
      equals == std::string::npos ? std::vector<std::string>{} : split_key(text.substr(0, equals));
  const std::string label = "--set " + printable(text.substr(0, equals), 100);
  if (parts.empty() || parts.size() > kYamlDepth)
    return problems.add(ExitCode::config, fmt::format("'{}' is no override", printable(text, 100)),
                        {}, kForm, label);
  YamlNode value = parse_yaml_value(text.substr(equals + 1), label);
  value.where = label;
  value.origin = "--set";
  YamlNode* node = &root;
  for (const std::string& part : parts) {
    std::string why;
    node = child(*node, part, label, why);
    if (node == nullptr)
      return problems.add(ExitCode::config, "the key cannot be set", why, {}, label);
  }
  *node = std::move(value);
}

}  // namespace

void apply_overrides(YamlNode& root, const std::vector<std::string>& overrides,
                     Problems& problems) {
  for (const std::string& text : overrides) {
    try {
      apply(root, text, problems);
    } catch (const Error& e) {
      for (const Problem& problem : e.problems()) problems.add(problem);
    }
  }
}

}  // namespace espalier::config_detail
