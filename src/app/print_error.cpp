#include "print_error.h"

#include <algorithm>

#include <fmt/format.h>

#include "espalier/core/log.h"
#include "espalier/core/text.h"

namespace espalier {
namespace {

bool is_resumable(ExitCode code) {
  return code == ExitCode::write_failed || code == ExitCode::stopped || code == ExitCode::peer_lost;
}

/// "  why     ...", further lines of the text below the first.
std::string field(const char* label, const std::string& text) {
  std::string lines;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    lines += fmt::format("  {:<7} {}\n", begin == 0 ? label : "",
                         one_line(std::string_view(text).substr(begin, end - begin)));
    begin = end + 1;
  }
  return lines;
}

/// Where a problem itself says no more: what anybody can do about one of its kind.
std::string remedy_of(const Problem& p) {
  if (!p.remedy.empty()) return p.remedy;
  switch (p.code) {
    case ExitCode::usage:
      return "See espalier --help and espalier COMMAND --help.";
    case ExitCode::config:
      return "Correct the value; 'espalier config --explain KEY' says what a key means.";
    case ExitCode::bad_content:
      return "Restore the file or write it again, or name another one.";
    case ExitCode::missing_input:
      return "Check the path.";
    case ExitCode::write_failed:
      return "Check the file system, then give the same command again.";
    case ExitCode::internal:
      return "Please report this with the command.";
    default:
      return "docs/file-formats.md says what the exit code means.";
  }
}

std::string fields_of(const Problem& p) {
  return field("why", p.why) + field("where", p.where) + field("do", remedy_of(p));
}

/// The problems without a configuration's closing line, which counts them.
struct Listed {
  std::vector<Problem> problems;
  std::string headline;
};

Listed listed(const Error& error) {
  Listed result{error.problems(), {}};
  const Problem last = result.problems.back();
  if (last.what.ends_with("Nothing was started.") && last.where.empty()) {
    result.problems.pop_back();
    result.headline = last.what;
  } else if (result.problems.size() > 1) {
    result.headline = counted(result.problems.size(), "problem");
  } else {
    result.headline = last.what;
  }
  return result;
}

nlohmann::ordered_json facts_of(const Error& error, const std::vector<Problem>& problems) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const Problem& p : problems)
    list.push_back({{"code", static_cast<int>(p.code)},
                    {"what", utf8_text(p.what)},
                    {"why", utf8_text(p.why)},
                    {"where", utf8_text(p.where)},
                    {"do", utf8_text(remedy_of(p))}});
  return {{"exit_code", static_cast<int>(error.code())},
          {"resumable", is_resumable(error.code())},
          {"problems", list}};
}

}  // namespace

std::string code_text(ExitCode code) {
  return fmt::format("exit {}{}", static_cast<int>(code), is_resumable(code) ? ", resumable" : "");
}

std::string error_text(const Error& error) {
  const Listed list = listed(error);
  std::string text =
      fmt::format("espalier: {} ({})\n", one_line(list.headline), code_text(error.code()));
  if (list.problems.size() == 1 && list.problems.front().what == list.headline)
    return text + fields_of(list.problems.front());
  for (std::size_t i = 0; i < list.problems.size(); ++i) {
    if (i > 0) text += "\n";
    text += field("what", list.problems[i].what) + fields_of(list.problems[i]);
  }
  return text;
}

void print_error(const Error& error) {
  const Listed list = listed(error);
  log::write(log::Level::error,
             log::Block{list.headline, error_text(error), facts_of(error, list.problems)});
}

}  // namespace espalier
