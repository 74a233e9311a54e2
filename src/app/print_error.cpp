#include "print_error.h"

#include <fmt/format.h>

namespace espalier {
namespace {

std::string line(const char* label, const std::string& text) {
  return text.empty() ? "" : fmt::format("  {:<7} {}\n", label, text);
}

}  // namespace

std::string code_text(ExitCode code) {
  const int number = static_cast<int>(code);
  switch (code) {
    case ExitCode::write_failed:
    case ExitCode::stopped:
    case ExitCode::peer_lost:
      return fmt::format("exit {}, resumable", number);
    default:
      return fmt::format("exit {}", number);
  }
}

std::string error_text(const Error& error) {
  const std::vector<Problem>& problems = error.problems();
  if (problems.size() == 1) {
    const Problem& p = problems.front();
    return fmt::format("espalier: {} ({})\n", p.what, code_text(p.code)) + line("why", p.why) +
           line("where", p.where) + line("do", p.remedy);
  }
  // A configuration's list ends with a line of its own that counts the errors.
  const Problem& last = problems.back();
  const bool is_closed = last.what.ends_with("Nothing was started.") && last.where.empty();
  const std::string closing = is_closed ? last.what : fmt::format("{} problems", problems.size());
  std::string text;
  for (const Problem& problem : problems)
    if (!is_closed || &problem != &last) text += problem.message() + "\n";
  return text + fmt::format("espalier: {} ({})\n", closing, code_text(error.code()));
}

}  // namespace espalier
