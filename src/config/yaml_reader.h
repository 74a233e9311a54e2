#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace espalier::config_detail {

/// One value of a configuration file with the place it came from. A tree of these holds no aliases,
/// no duplicate keys and at most kYamlNodes nodes, so any walk over it is safe.
struct YamlNode {
  enum class Kind { null, scalar, list, map };
  struct Entry;

  Kind kind = Kind::null;
  /// Of a scalar.
  std::string text;
  /// A quoted scalar is text, never a number or a boolean.
  bool quoted = false;
  /// For messages: "config.yaml:3:14" or "--set prune.target=2".
  std::string where;
  /// For the origin of values: "config.yaml:3" or "--set".
  std::string origin;
  std::vector<YamlNode> items;
  std::vector<Entry> entries;

  bool is_scalar() const { return kind == Kind::scalar; }
  /// A scalar that is not quoted.
  bool is_plain() const { return is_scalar() && !quoted; }
  YamlNode* find(std::string_view key);
  /// How the value is shown in messages, cut to a line's length.
  std::string shown() const;
};

struct YamlNode::Entry {
  std::string key;
  std::string where;
  YamlNode value;
};

constexpr std::size_t kYamlBytes = std::size_t{1} << 20;
constexpr std::size_t kYamlNodes = 10000;
constexpr std::size_t kYamlDepth = 16;

/// Parses one YAML document. Anchors, aliases, tags, duplicate keys, keys that are not plain text,
/// more than one document, depth or size beyond the limits, control characters and invalid UTF-8
/// are refused with Error(config) at `file:line:column`; nothing of the tree is built beyond the
/// limits. An empty text is null.
YamlNode parse_yaml(std::string_view text, const std::string& file);

/// The same for a value given on the command line; `label` ("--set a.b=c") stands in every message.
YamlNode parse_yaml_value(std::string_view text, const std::string& label);

}  // namespace espalier::config_detail
