#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "espalier/config/run_config.h"
#include "run_schema.h"

namespace espalier {
namespace {

using config_detail::FlatEntry;
using config_detail::Row;
using config_detail::Rows;
using config_detail::run_schema;

constexpr std::size_t kColumns = 100;

std::vector<std::string> split(const std::string& key) {
  std::vector<std::string> parts(1);
  for (const char c : key) {
    if (c == '.')
      parts.emplace_back();
    else
      parts.back() += c;
  }
  return parts;
}

/// Writes dotted keys as nested block maps, opening the sections as they come.
class BlockWriter {
 public:
  /// Opens what is needed for `key` and returns the indentation of the key itself.
  std::string open(const std::string& key) {
    const std::vector<std::string> parts = split(key);
    std::size_t same = 0;
    while (same < section_.size() && same + 1 < parts.size() && section_[same] == parts[same])
      ++same;
    for (std::size_t i = same; i + 1 < parts.size(); ++i)
      text += fmt::format("{}{}:\n", indent(i), parts[i]);
    section_.assign(parts.begin(), parts.end() - 1);
    return indent(section_.size());
  }
  static std::string indent(std::size_t depth) { return std::string(2 * depth, ' '); }
  static std::string last(const std::string& key) { return split(key).back(); }

  std::string text;

 private:
  std::vector<std::string> section_;
};

template <class T>
std::string default_of(const Row<T>& row) {
  if (!row.example.empty()) return "(required)";
  return row.print(T{}).value_or("(none)");
}

template <class T>
KeyInfo info_of(const Row<T>& row, const std::string& prefix, bool free) {
  return {.key = prefix + row.key,
          .type = row.type,
          .default_value = default_of(row),
          .values = row.values,
          .meaning = row.meaning,
          .free_at_resume = free};
}

/// Comment lines of at most kColumns columns.
std::string comment(const std::string& text, const std::string& indent) {
  std::string out;
  std::string line = indent + "#";
  std::size_t at = 0;
  while (at < text.size()) {
    const std::size_t space = std::min(text.find(' ', at), text.size());
    const std::string word = text.substr(at, space - at);
    if (line.size() + 1 + word.size() > kColumns) {
      out += line + "\n";
      line = indent + "#";
    }
    line += " " + word;
    at = space + 1;
  }
  return out + line + "\n";
}

template <class T>
std::string describe(const Row<T>& row, bool free) {
  std::string text = row.meaning;
  if (!row.values.empty())
    text += fmt::format(" Values: {}.", fmt::join(row.values, ", "));
  else if (row.type != "list of maps")
    text += fmt::format(" Type: {}.", row.type);
  if (!row.example.empty()) text += row.key == "prune.target" ? " Required for run." : " Required.";
  if (free) text += " May change at resume.";
  return text;
}

/// One element of a list with every key of it; commented out where the list is empty by default.
std::string element_text(const Row<RunConfig>& row, const std::string& indent) {
  const bool live = !row.example.empty();
  const std::string mark = live ? "" : "# ";
  std::string text;
  if (!live) text += indent + "# An element:\n";
  bool first = true;
  for (const auto& key : row.element_rows) {
    const std::string lead = indent + mark + (first ? "- " : "  ");
    const std::string value = key.example.empty() ? default_of(key) : key.example;
    if (live) {
      text += comment(describe(key, false), indent + "  ");
      text += fmt::format("{}{}: {}\n", lead, key.key, value);
    } else {
      text += fmt::format("{}{}: {}\n", lead, key.key, value);
    }
    first = false;
  }
  return text;
}

std::string describe_elements(const Row<RunConfig>& row, const std::string& indent) {
  std::string text;
  for (const auto& key : row.element_rows)
    text += comment(key.key + ": " + describe(key, false), indent);
  return text;
}

void add_difference(std::vector<ConfigDifference>& out, const std::string& key,
                    const std::string& before, const std::string& after) {
  if (before != after) out.push_back({key, before, after});
}

/// Element by element where the lists have the same keys, else the lists as a whole.
void compare_lists(const Row<RunConfig>& row, const RunConfig& before, const RunConfig& after,
                   std::vector<ConfigDifference>& out) {
  const auto old_list = row.elements(before);
  const auto new_list = row.elements(after);
  if (old_list.size() != new_list.size())
    return add_difference(out, row.key, row.print(before).value_or(""),
                          row.print(after).value_or(""));
  for (std::size_t i = 0; i < old_list.size(); ++i)
    for (std::size_t j = 0; j < old_list[i].size(); ++j)
      add_difference(out, fmt::format("{}[{}].{}", row.key, i, old_list[i][j].first),
                     old_list[i][j].second, new_list[i][j].second);
}

}  // namespace

std::string to_yaml(const RunConfig& config) {
  BlockWriter writer;
  for (const Row<RunConfig>& row : run_schema()) {
    const std::optional<std::string> value = row.trivial ? std::nullopt : row.print(config);
    if (!value) continue;
    const std::string indent = writer.open(row.key);
    const auto elements =
        row.elements ? row.elements(config) : std::vector<std::vector<FlatEntry>>{};
    if (elements.empty()) {
      writer.text += fmt::format("{}{}: {}\n", indent, BlockWriter::last(row.key), *value);
      continue;
    }
    writer.text += fmt::format("{}{}:\n", indent, BlockWriter::last(row.key));
    for (const auto& element : elements)
      writer.text += fmt::format("{}  - {}\n", indent, config_detail::print_map(element));
  }
  return writer.text;
}

const std::vector<KeyInfo>& config_keys() {
  static const std::vector<KeyInfo> keys = [] {
    std::vector<KeyInfo> all;
    for (const Row<RunConfig>& row : run_schema()) {
      if (row.trivial) continue;
      all.push_back(info_of(row, "", row.free));
      for (const auto& element : row.element_rows)
        all.push_back(info_of(element, row.key + "[].", row.free));
    }
    return all;
  }();
  return keys;
}

std::string reference_yaml() {
  BlockWriter writer;
  writer.text =
      "# Every key of an espalier configuration with its default: the text that\n"
      "#   espalier config --reference\n"
      "# prints. Only the keys marked as required must be given. Relative paths start at the\n"
      "# directory of the configuration file, export paths at the run directory; ~ and ${VAR} are\n"
      "# expanded.\n\n";
  for (const Row<RunConfig>& row : run_schema()) {
    if (row.trivial) continue;
    const std::string indent = writer.open(row.key);
    writer.text += comment(describe(row, row.free), indent);
    const std::string name = BlockWriter::last(row.key);
    if (row.element_rows.empty()) {
      const std::string value = row.example.empty() ? default_of(row) : row.example;
      writer.text += fmt::format("{}{}: {}\n", indent, name, value);
    } else if (row.example.empty()) {
      writer.text += describe_elements(row, indent);
      writer.text += fmt::format("{}{}: {}\n", indent, name, default_of(row)) +
                     element_text(row, indent + "  ");
    } else {
      writer.text += fmt::format("{}{}:\n", indent, name) + element_text(row, indent + "  ");
    }
  }
  return writer.text;
}

std::vector<ConfigDifference> frozen_differences(const RunConfig& before, const RunConfig& after) {
  std::vector<ConfigDifference> out;
  for (const Row<RunConfig>& row : run_schema()) {
    if (row.free || row.trivial) continue;
    if (row.elements)
      compare_lists(row, before, after, out);
    else
      add_difference(out, row.key, row.print(before).value_or("(none)"),
                     row.print(after).value_or("(none)"));
  }
  return out;
}

}  // namespace espalier
