#include "espalier/calib/option_rows.h"

#include <algorithm>
#include <string>
#include <unordered_set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "espalier/core/error.h"

namespace espalier {
namespace {

constexpr const char* kRemedy = "Write token files with launch/tokenize.py.";

/// The rules over the rows of a file, each reported at its first place.
class Rules {
 public:
  explicit Rules(const std::filesystem::path& path) : path_(path) {}

  /// Notes the first place at which the rule is broken; `rule` is a literal.
  void broken(const char* rule, const std::string& what) {
    if (!reported_.insert(rule).second) return;
    problems_.add(ExitCode::bad_content, what, rule, kRemedy, path_.string());
  }
  void throw_if_any() const { problems_.throw_if_any(); }

 private:
  const std::filesystem::path& path_;
  std::unordered_set<std::string> reported_;
  Problems problems_;
};

void check_shapes(const Hdf5Reader& file, Rules& rules, std::int64_t rows) {
  for (const char* name : {"/item", "/option", "/correct", "/normalizer"}) {
    if (!file.has(name)) {
      if (std::string(name) != "/normalizer")
        rules.broken("each row of a file of options is one option of an item",
                     fmt::format("dataset {} is missing", name));
      continue;
    }
    const std::vector<std::int64_t> shape = file.shape(name);
    if (shape != std::vector<std::int64_t>{rows})
      rules.broken("one number for each row", fmt::format("{} has shape [{}], expected [{}]", name,
                                                          fmt::join(shape, ", "), rows));
  }
  rules.throw_if_any();
}

/// Where each item begins, and the end of the last.
std::vector<std::int64_t> begins(const OptionRows& options, Rules& rules) {
  std::vector<std::int64_t> first;
  std::unordered_set<std::int32_t> seen;
  for (std::size_t row = 0; row < options.item.size(); ++row) {
    if (row > 0 && options.item[row] == options.item[row - 1]) continue;
    first.push_back(static_cast<std::int64_t>(row));
    if (!seen.insert(options.item[row]).second)
      rules.broken("the rows of an item lie behind one another",
                   fmt::format("/item[{}] = {} was there before", row, options.item[row]));
  }
  first.push_back(static_cast<std::int64_t>(options.item.size()));
  return first;
}

void check_item(const OptionRows& options, std::size_t i, Rules& rules) {
  const auto begin = static_cast<std::size_t>(options.first[i]);
  const auto end = static_cast<std::size_t>(options.first[i + 1]);
  std::size_t right = 0;
  for (std::size_t row = begin; row < end; ++row) {
    const std::int64_t expected = static_cast<std::int64_t>(row - begin);
    if (options.option[row] != expected)
      rules.broken(
          "the options of an item count from 0",
          fmt::format("/option[{}] = {}, expected {}", row, options.option[row], expected));
    if (options.correct[row] > 1)
      rules.broken("1 marks a right option, 0 a wrong one",
                   fmt::format("/correct[{}] = {}", row, options.correct[row]));
    if (options.correct[row] == 1) ++right;
    if (!options.normalizer.empty() && options.normalizer[row] < 1)
      rules.broken("the characters of an option's text are at least 1",
                   fmt::format("/normalizer[{}] = {}", row, options.normalizer[row]));
  }
  const std::string item =
      fmt::format("item {} (rows {} to {})", options.item[begin], begin, end - 1);
  if (end - begin < 2)
    rules.broken("an item has two options or more", item + " has one option");
  else if (right == 0)
    rules.broken("one option at least is right", item + " has no right option");
  else if (right == end - begin)
    rules.broken("one option at least is wrong", item + " has no wrong option");
}

}  // namespace

OptionRows read_option_rows(const Hdf5Reader& file, const std::filesystem::path& path,
                            std::int64_t rows) {
  Rules rules(path);
  check_shapes(file, rules, rows);
  OptionRows options;
  options.item = file.read_i32("/item").values;
  options.option = file.read_i32("/option").values;
  options.correct = file.read_u8("/correct").values;
  if (file.has("/normalizer")) options.normalizer = file.read_i32("/normalizer").values;
  options.first = begins(options, rules);
  rules.throw_if_any();
  for (std::size_t i = 0; i + 1 < options.first.size(); ++i) check_item(options, i, rules);
  rules.throw_if_any();
  return options;
}

}  // namespace espalier
