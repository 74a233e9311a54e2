#include "espalier/core/error.h"

#include <algorithm>
#include <numeric>

#include <fmt/format.h>

namespace espalier {
namespace {

std::string joined(const std::vector<Problem>& problems) {
  std::string text;
  for (const Problem& problem : problems) {
    if (!text.empty()) text += '\n';
    text += problem.message();
  }
  return text;
}

ExitCode lowest(const std::vector<Problem>& problems) {
  ExitCode code = problems.front().code;
  for (const Problem& problem : problems) code = std::min(code, problem.code);
  return code;
}

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t above = row[j];
      const std::size_t substitute = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substitute});
      diagonal = above;
    }
  }
  return row.back();
}

}  // namespace

std::string Problem::message() const {
  std::string text;
  if (!where.empty()) text += where + ": ";
  text += what;
  if (!why.empty()) text += " (" + why + ")";
  if (!remedy.empty()) {
    if (text.back() != '.' && text.back() != '?') text += '.';
    text += " " + remedy;
  }
  return text;
}

Error::Error(ExitCode code, std::string what, std::string why, std::string remedy,
             std::string where)
    : Error({Problem{code, std::move(what), std::move(why), std::move(remedy), std::move(where)}}) {
}

Error::Error(std::vector<Problem> problems)
    : code_(lowest(problems)), problems_(std::move(problems)), text_(joined(problems_)) {}

void Problems::add(ExitCode code, std::string what, std::string why, std::string remedy,
                   std::string where) {
  list_.push_back({code, std::move(what), std::move(why), std::move(remedy), std::move(where)});
}

void Problems::throw_if_any() const {
  if (!list_.empty()) throw Error(list_);
}

void check_internal(bool condition, std::string_view what, const char* file, int line) {
  if (condition) return;
  throw Error(ExitCode::internal, std::string(what), "internal check failed",
              "This is a bug in espalier: please report it with the command and this line.",
              fmt::format("{}:{}", file, line));
}

std::string nearest_name(std::string_view word, const std::vector<std::string>& candidates) {
  std::string best;
  std::size_t best_distance = std::max<std::size_t>(2, word.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    const std::size_t distance = edit_distance(word, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

}  // namespace espalier
