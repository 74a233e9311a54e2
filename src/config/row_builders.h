#pragma once

#include <algorithm>

#include "names.h"
#include "schema.h"

// How the rows of the schema are written. `access` is a generic lambda that returns a reference to
// the field, for a const and for a mutable T: [](auto& c) -> auto& { return c.prune.iterations; }

namespace espalier::config_detail {

template <class T>
Row<T> free_at_resume(Row<T> row) {
  row.free = true;
  return row;
}

/// Required: `example` is shown for it.
template <class T>
Row<T> required(Row<T> row, std::string example) {
  row.example = std::move(example);
  return row;
}

template <class T, class E, class Access>
Row<T> choice_row(std::string key, Access access, Names<E> names, std::string meaning) {
  Row<T> row;
  row.key = std::move(key);
  row.type = "string";
  row.meaning = std::move(meaning);
  for (const auto& [name, value] : names) row.values.emplace_back(name);
  row.parse = [access, names, values = row.values](Walk& walk, const YamlNode& node,
                                                   const std::string& at, T& out) {
    if (const auto index = read_choice(walk, node, at, values)) access(out) = names[*index].second;
  };
  row.print = [access, names](const T& value) -> std::optional<std::string> {
    for (const auto& [name, meant] : names)
      if (meant == access(value)) return name;
    return std::nullopt;
  };
  return row;
}

template <class T, class Access>
Row<T> integer_row(std::string key, Access access, IntegerRange range, std::string meaning) {
  Row<T> row;
  row.key = std::move(key);
  row.type = "integer";
  row.meaning = std::move(meaning);
  row.parse = [access, range](Walk& walk, const YamlNode& node, const std::string& at, T& out) {
    if (const auto value = read_integer(walk, node, at, range)) access(out) = *value;
  };
  row.print = [access](const T& value) -> std::optional<std::string> {
    return std::to_string(access(value));
  };
  return row;
}

/// An optional integer; `word` stands for its absence.
template <class T, class Access>
Row<T> integer_or_word_row(std::string key, Access access, std::string word, IntegerRange range,
                           std::string meaning) {
  Row<T> row;
  row.key = std::move(key);
  row.type = "integer or " + word;
  row.meaning = std::move(meaning);
  row.parse = [access, word, range](Walk& walk, const YamlNode& node, const std::string& at,
                                    T& out) {
    if (node.is_scalar() && node.text == word)
      access(out) = std::nullopt;
    else if (const auto value = read_integer(walk, node, at, range, word))
      access(out) = *value;
  };
  row.print = [access, word](const T& value) -> std::optional<std::string> {
    return access(value) ? std::to_string(*access(value)) : word;
  };
  return row;
}

/// An optional number; `word` stands for its absence.
template <class T, class Access>
Row<T> number_or_word_row(std::string key, Access access, std::string word,
                          std::function<bool(double)> accepts, std::string rule,
                          std::string meaning) {
  Row<T> row;
  row.key = std::move(key);
  row.type = "number or " + word;
  row.meaning = std::move(meaning);
  row.parse = [access, word, accepts, rule](Walk& walk, const YamlNode& node, const std::string& at,
                                            T& out) {
    if (node.is_scalar() && node.text == word)
      access(out) = std::nullopt;
    else if (const auto value = read_number(walk, node, at, accepts, rule))
      access(out) = *value;
  };
  row.print = [access, word](const T& value) -> std::optional<std::string> {
    return access(value) ? print_number(*access(value)) : word;
  };
  return row;
}

/// A list of integers, kept ascending and each once.
template <class T, class Access>
Row<T> integers_row(std::string key, Access access, IntegerRange range, std::string meaning) {
  Row<T> row;
  row.key = std::move(key);
  row.type = "list of integers";
  row.meaning = std::move(meaning);
  row.parse = [access, range](Walk& walk, const YamlNode& node, const std::string& at, T& out) {
    auto& list = access(out);
    list.clear();
    if (node.kind == YamlNode::Kind::null) return;
    if (node.kind != YamlNode::Kind::list)
      return walk.wrong(node, at, "a list of integers is needed");
    for (std::size_t i = 0; i < node.items.size(); ++i)
      if (const auto value =
              read_integer(walk, node.items[i], at + "[" + std::to_string(i) + "]", range))
        list.push_back(*value);
    std::sort(list.begin(), list.end());
    list.erase(std::unique(list.begin(), list.end()), list.end());
  };
  row.print = [access](const T& value) -> std::optional<std::string> {
    std::string text;
    for (const std::int64_t number : access(value))
      text += (text.empty() ? "" : ", ") + std::to_string(number);
    return "[" + text + "]";
  };
  return row;
}

template <class T, class Access>
Row<T> number_row(std::string key, Access access, std::function<bool(double)> accepts,
                  std::string rule, std::string meaning) {
  Row<T> row;
  row.key = std::move(key);
  row.type = "number";
  row.meaning = std::move(meaning);
  row.parse = [access, accepts, rule](Walk& walk, const YamlNode& node, const std::string& at,
                                      T& out) {
    if (const auto value = read_number(walk, node, at, accepts, rule)) access(out) = *value;
  };
  row.print = [access](const T& value) -> std::optional<std::string> {
    const std::optional<double> number = access(value);
    if (!number) return std::nullopt;
    return print_number(*number);
  };
  return row;
}

template <class T, class Access>
Row<T> boolean_row(std::string key, Access access, std::string meaning) {
  Row<T> row;
  row.key = std::move(key);
  row.type = "boolean";
  row.meaning = std::move(meaning);
  row.parse = [access](Walk& walk, const YamlNode& node, const std::string& at, T& out) {
    if (const auto value = read_boolean(walk, node, at)) access(out) = *value;
  };
  row.print = [access](const T& value) -> std::optional<std::string> {
    return access(value) ? "true" : "false";
  };
  return row;
}

template <class T, class Access>
Row<T> text_row(std::string key, Access access, std::size_t limit, std::string meaning) {
  Row<T> row;
  row.key = std::move(key);
  row.type = "string";
  row.meaning = std::move(meaning);
  row.parse = [access, limit](Walk& walk, const YamlNode& node, const std::string& at, T& out) {
    if (const auto value = read_text(walk, node, at, limit)) access(out) = *value;
  };
  row.print = [access](const T& value) -> std::optional<std::string> {
    return print_text(access(value));
  };
  return row;
}

/// `absolute`: relative paths start at the configuration file's directory; otherwise kept as given.
template <class T, class Access>
Row<T> path_row(std::string key, Access access, bool absolute, std::string meaning) {
  Row<T> row;
  row.key = std::move(key);
  row.type = "path";
  row.meaning = std::move(meaning);
  row.parse = [access, absolute](Walk& walk, const YamlNode& node, const std::string& at, T& out) {
    if (const auto value = read_path(walk, node, at, absolute)) access(out) = *value;
  };
  row.print = [access](const T& value) -> std::optional<std::string> {
    return print_path(access(value));
  };
  return row;
}

/// An optional path, absolute as above; `word` stands for its absence.
template <class T, class Access>
Row<T> path_or_word_row(std::string key, Access access, std::string word, std::string meaning) {
  Row<T> row;
  row.key = std::move(key);
  row.type = "path or " + word;
  row.meaning = std::move(meaning);
  row.parse = [access, word](Walk& walk, const YamlNode& node, const std::string& at, T& out) {
    if (node.is_scalar() && node.text == word)
      access(out) = std::nullopt;
    else if (const auto value = read_path(walk, node, at, true))
      access(out) = *value;
  };
  row.print = [access, word](const T& value) -> std::optional<std::string> {
    return access(value) ? print_path(*access(value)) : word;
  };
  return row;
}

/// A key of which only the listed values work and mean the same: accepted so that complete files
/// load, and listed nowhere.
template <class T>
Row<T> trivial_row(std::string key, std::vector<std::string> values) {
  Row<T> row;
  row.key = std::move(key);
  row.type = "string";
  row.trivial = true;
  row.values = std::move(values);
  row.parse = [values = row.values](Walk& walk, const YamlNode& node, const std::string& at, T&) {
    read_choice(walk, node, at, values);
  };
  row.print = [](const T&) -> std::optional<std::string> { return std::nullopt; };
  return row;
}

/// The rows of a list's elements without their functions: what help and schema show.
template <class E>
Rows<std::monostate> described(const Rows<E>& rows) {
  Rows<std::monostate> out;
  for (const Row<E>& row : rows) {
    if (row.trivial) continue;
    Row<std::monostate> plain;
    plain.key = row.key;
    plain.type = row.type;
    plain.values = row.values;
    plain.meaning = row.meaning;
    plain.example = row.example;
    plain.free = row.free;
    plain.print = [text = row.print(E{})](const std::monostate&) { return text; };
    out.push_back(std::move(plain));
  }
  return out;
}

template <class E>
std::vector<FlatEntry> flat(const Rows<E>& rows, const E& element) {
  std::vector<FlatEntry> entries;
  for (const Row<E>& row : rows)
    if (const auto text = row.trivial ? std::nullopt : row.print(element))
      entries.emplace_back(row.key, *text);
  return entries;
}

/// A list of maps, each with the keys of `rows`.
template <class T, class E, class Access>
Row<T> list_row(std::string key, Access access, Rows<E> rows, std::string meaning) {
  Row<T> row;
  row.key = std::move(key);
  row.type = "list of maps";
  row.meaning = std::move(meaning);
  row.element_rows = described(rows);
  row.parse = [access, rows](Walk& walk, const YamlNode& node, const std::string& at, T& out) {
    access(out).clear();
    if (node.kind == YamlNode::Kind::null) return;
    if (node.kind != YamlNode::Kind::list) return walk.wrong(node, at, "a list of maps is needed");
    for (std::size_t i = 0; i < node.items.size(); ++i) {
      const std::string place = at + "[" + std::to_string(i) + "]";
      E& element = access(out).emplace_back();
      if (node.items[i].kind != YamlNode::Kind::map)
        walk.wrong(node.items[i], place, "a map of keys is needed");
      else
        walk_rows<E>(walk, node.items[i], place + ".", rows, element,
                     [](const Row<E>&) { return true; });
    }
  };
  row.elements = [access, rows](const T& value) {
    std::vector<std::vector<FlatEntry>> out;
    for (const E& element : access(value)) out.push_back(flat(rows, element));
    return out;
  };
  row.print = [elements = row.elements](const T& value) -> std::optional<std::string> {
    std::string text;
    for (const auto& element : elements(value))
      text += (text.empty() ? "" : ", ") + print_map(element);
    return "[" + text + "]";
  };
  return row;
}

/// An optional list of maps; `word` stands for its absence.
template <class T, class E, class Access>
Row<T> list_or_word_row(std::string key, Access access, Rows<E> rows, std::string word,
                        std::string meaning) {
  const auto list = [access](auto& value) -> auto& { return access(value).value(); };
  Row<T> row = list_row<T, E>(std::move(key), list, std::move(rows), std::move(meaning));
  row.parse = [access, word, parse = row.parse](Walk& walk, const YamlNode& node,
                                                const std::string& at, T& out) {
    access(out) = std::nullopt;
    if (node.is_scalar() && node.text == word) return;
    if (node.kind != YamlNode::Kind::list || node.items.empty())
      return walk.wrong(node, at, "a list of one or more maps, or " + word + ", is needed");
    access(out).emplace();
    parse(walk, node, at, out);
  };
  row.elements = [access, elements = row.elements](const T& value) {
    return access(value) ? elements(value) : std::vector<std::vector<FlatEntry>>();
  };
  row.print = [access, word, print = row.print](const T& value) -> std::optional<std::string> {
    return access(value) ? print(value) : word;
  };
  return row;
}

}  // namespace espalier::config_detail
