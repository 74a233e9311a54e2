#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "espalier/config/run_config.h"
#include "yaml_reader.h"

namespace espalier::config_detail {

/// What one walk over a configuration collects.
struct Walk {
  Problems& problems;
  /// Relative paths start here: the file's directory.
  std::filesystem::path base;
  /// Per key that was given.
  std::map<std::string, std::string> origin;
  /// "file:line:column" per key that was given.
  std::map<std::string, std::string> place;

  /// Records "key = value (rule). remedy" at the node.
  void wrong(const YamlNode& node, const std::string& key, std::string rule,
             std::string remedy = {}, ExitCode code = ExitCode::config);
};

/// A key and a value, both as text.
using FlatEntry = std::pair<std::string, std::string>;

/// One key of a map with fields T: everything that is known about it stands here and only here.
template <class T>
struct Row {
  /// Dotted, from the map that the rows describe.
  std::string key;
  /// As in KeyInfo.
  std::string type;
  /// Of an enumeration.
  std::vector<std::string> values;
  std::string meaning;
  /// Not empty = the key is required; this is shown for it.
  std::string example;
  /// May change at resume.
  bool free = false;
  /// Only its default works: accepted, but listed nowhere.
  bool trivial = false;

  /// Reads the node into the value; records what is wrong.
  std::function<void(Walk&, const YamlNode&, const std::string& key, T&)> parse;
  /// The value as flow YAML; nothing when it was not given and has no default.
  std::function<std::optional<std::string>(const T&)> print;

  // Of a list of maps only.
  std::function<std::vector<std::vector<FlatEntry>>(const T&)> elements;
  /// Descriptions of the element's keys.
  std::vector<Row<std::monostate>> element_rows;
};

template <class T>
using Rows = std::vector<Row<T>>;

// Scalars. Each returns nothing and records the problem when the node does not fit.
struct IntegerRange {
  std::int64_t min = 0;
  std::int64_t max = std::numeric_limits<std::int64_t>::max();
};
std::optional<std::int64_t> read_integer(Walk&, const YamlNode&, const std::string& key,
                                         IntegerRange range, const std::string& word = {});
std::optional<double> read_number(Walk&, const YamlNode&, const std::string& key,
                                  const std::function<bool(double)>& accepts,
                                  const std::string& rule);
std::optional<bool> read_boolean(Walk&, const YamlNode&, const std::string& key);
/// Any scalar that is not empty and at most `limit` bytes long.
std::optional<std::string> read_text(Walk&, const YamlNode&, const std::string& key,
                                     std::size_t limit);
/// Index into `values`.
std::optional<std::size_t> read_choice(Walk&, const YamlNode&, const std::string& key,
                                       const std::vector<std::string>& values);
/// Expands a leading ~ and ${VAR}; "$${" stands for "${", and `\xNN` for the byte NN (core/text.h).
/// With `absolute` the result starts at walk.base. tidy_path() of it: links are respected.
std::optional<std::filesystem::path> read_path(Walk&, const YamlNode&, const std::string& key,
                                               bool absolute);

// Text that reads back as the same value.
std::string print_number(double value);
std::string print_text(const std::string& text);
std::string print_path(const std::filesystem::path& path);
/// "{a: 1, b: 2}".
std::string print_map(const std::vector<FlatEntry>& entries);

/// Every key that exists, as suggestions for a mistyped one: dotted, with [] after lists.
const std::vector<std::string>& known_keys();

/// Records an unknown key with the nearest name: over `siblings` (names at this place) first, then
/// over all keys.
void unknown_key(Walk&, const YamlNode::Entry&, const std::string& full_key,
                 const std::string& section, const std::vector<std::string>& siblings);

/// Records a required key that is not there, at the innermost section that is.
void missing_key(Walk&, const YamlNode& map, const std::string& place, const std::string& key,
                 const std::string& example);

/// The names that may stand under `section` ("" or "prune." ...), each once, in order.
template <class T>
std::vector<std::string> names_under(const Rows<T>& rows, const std::string& section) {
  std::vector<std::string> names;
  for (const Row<T>& row : rows) {
    if (!row.key.starts_with(section)) continue;
    std::string name = row.key.substr(section.size());
    name = name.substr(0, name.find('.'));
    if (names.empty() || names.back() != name) names.push_back(std::move(name));
  }
  return names;
}

/// Walks one map: dispatches each entry to its row, descends into sections, reports the rest.
/// `place` is put before the keys in messages ("calibration.domains[0]." in a list element).
template <class T>
void walk_section(Walk& walk, const YamlNode& map, const std::string& place,
                  const std::string& section, const Rows<T>& rows, T& out) {
  for (const YamlNode::Entry& entry : map.entries) {
    const std::string key = section + entry.key;
    const Row<T>* row = nullptr;
    bool is_section = false;
    for (const Row<T>& candidate : rows) {
      if (candidate.key == key) row = &candidate;
      is_section = is_section || candidate.key.starts_with(key + ".");
    }
    const YamlNode& value = entry.value;
    if (row != nullptr) {
      walk.origin[place + key] = value.origin;
      walk.place[place + key] = value.where;
      row->parse(walk, value, place + key, out);
    } else if (is_section && value.kind == YamlNode::Kind::map) {
      walk.place[place + key] = entry.where;
      walk_section(walk, value, place, key + ".", rows, out);
    } else if (is_section && value.kind != YamlNode::Kind::null) {
      walk.wrong(value, place + key, "a map of keys is needed");
    } else if (!is_section) {
      unknown_key(walk, entry, place + key, place + section, names_under(rows, section));
    }
  }
}

/// The whole map: as above, then the origin of every key that was not given. `is_required` says
/// whether a row with an example must be there in this use.
template <class T>
void walk_rows(Walk& walk, const YamlNode& map, const std::string& place, const Rows<T>& rows,
               T& out, const std::function<bool(const Row<T>&)>& is_required) {
  walk_section(walk, map, place, {}, rows, out);
  for (const Row<T>& row : rows) {
    if (row.trivial || walk.origin.contains(place + row.key)) continue;
    walk.origin[place + row.key] = "default";
    if (!row.example.empty() && is_required(row))
      missing_key(walk, map, place, row.key, row.example);
  }
}

}  // namespace espalier::config_detail
