#include "espalier/core/error.h"

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <new>
#include <numeric>
#include <system_error>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "espalier/core/pulse.h"

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

std::vector<ExceptionTranslator>& translators() {
  static std::vector<ExceptionTranslator> list;
  return list;
}

/// A file system call or another system call that failed inside the standard library.
Problem problem_of(const std::system_error& error) {
  const ExitCode code = code_of_errno(error.code().value());
  const auto* file = dynamic_cast<const std::filesystem::filesystem_error*>(&error);
  const std::string place = file == nullptr ? std::string() : file->path1().string();
  const std::string what =
      code == ExitCode::write_failed ? "a system call failed" : "a file cannot be used";
  const char* remedy = code == ExitCode::permission
                           ? "Check the owner and mode of the file and of its directory."
                       : code == ExitCode::write_failed
                           ? "Check the file system: its space, its quota and its messages."
                           : "Check the path.";
  return {code, what, error.code().message(), remedy, place};
}

Problem problem_of(const nlohmann::json::exception& error) {
  return {ExitCode::bad_content,
          "a JSON file has other content than it should",
          error.what(),
          "Restore the file; 'espalier verify' names what is damaged.",
          {}};
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

void Problems::add(const Problems& others) {
  list_.insert(list_.end(), others.list_.begin(), others.list_.end());
}

void Problems::throw_if_any() const {
  if (!list_.empty()) throw Error(list_);
}

ExitCode code_of_errno(int number) {
  switch (number) {
    case ENOENT:
    case ENOTDIR:
    case ELOOP:
    case ENAMETOOLONG:
    case EISDIR:
      return ExitCode::missing_input;
    case EACCES:
    case EPERM:
    case EROFS:
      return ExitCode::permission;
    case EEXIST:
    case ENOTEMPTY:
      return ExitCode::cannot_create;
    case EMFILE:
    case ENFILE:
    case ENOMEM:
    case EAGAIN:
      return ExitCode::unsuitable;
    default:
      return ExitCode::write_failed;
  }
}

void register_translator(ExceptionTranslator translator) {
  if (std::find(translators().begin(), translators().end(), translator) == translators().end())
    translators().push_back(translator);
}

Problems problems_of(const std::exception& exception) {
  if (const auto* error = dynamic_cast<const Error*>(&exception))
    return Problems(error->problems());
  for (const ExceptionTranslator translator : translators())
    if (std::optional<Problem> problem = translator(exception))
      return Problems({std::move(*problem)});
  if (dynamic_cast<const std::bad_alloc*>(&exception) != nullptr)
    return Problems({memory_ran_out("the C++ library could not allocate")});
  if (const auto* error = dynamic_cast<const std::system_error*>(&exception))
    return Problems({problem_of(*error)});
  if (const auto* error = dynamic_cast<const nlohmann::json::exception*>(&exception))
    return Problems({problem_of(*error)});
  return Problems({{ExitCode::internal,
                    exception.what(),
                    "unexpected",
                    "Please report this with the command.",
                    {}}});
}

Problems problems_of(const std::function<void()>& work) {
  try {
    work();
    return {};
  } catch (const std::exception& exception) {
    return problems_of(exception);
  } catch (...) {
    return Problems({{ExitCode::internal,
                      "an exception of an unknown type",
                      "unexpected",
                      "Please report this with the command.",
                      {}}});
  }
}

Error as_error(const std::exception& exception, const std::string& who) {
  std::vector<Problem> problems = problems_of(exception).list();
  for (Problem& problem : problems)
    if (!who.empty() && problem.where != who)
      problem.where = problem.where.empty() ? who : who + ", " + problem.where;
  return Error(std::move(problems));
}

Problem memory_ran_out(const std::string& said) {
  const std::string phase = pulse::read().phase;
  return {ExitCode::unsuitable, "memory ran out", said,
          "Lower calibration.micro_batch_tokens, set execution.recompute: all, or use more tensor "
          "ranks.",
          phase.empty() ? "" : "phase " + phase};
}

void fail_check(std::string_view what, const char* file, int line) {
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
