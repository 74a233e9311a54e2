#include "espalier/core/log.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <mutex>

#include <fmt/chrono.h>

#include "espalier/core/json.h"
#include "espalier/core/standard_streams.h"
#include "espalier/core/text.h"

namespace espalier::log {
namespace {

using Json = nlohmann::ordered_json;

struct State {
  std::mutex mutex;
  Options options;
  int file = -1;
  bool file_failed = false;
  bool first_error_shown = false;
  bool terminal = false;
  std::string progress;  // the last line of the terminal
};
State& state() {
  static State instance;
  return instance;
}
std::atomic<Level> threshold{Level::info};

const char* name_of(Level level) {
  switch (level) {
    case Level::debug:
      return "debug";
    case Level::info:
      return "info";
    case Level::warning:
      return "warning";
    case Level::error:
      return "error";
    case Level::off:
      return "off";
  }
  return "?";
}

std::string dumped(const Json& line) { return json_text(line) + "\n"; }

std::string json_line(const State& s, Level level, std::string_view text, const Json& facts) {
  Json line{{"time", fmt::format("{:%FT%TZ}", fmt::gmtime(std::time(nullptr)))},
            {"level", name_of(level)},
            {"rank", s.options.rank},
            {"text", utf8_text(text)}};
  line.update(facts);
  return dumped(line);
}

std::string line_of(const State& s, Level level, std::string_view text) {
  if (s.options.json) return json_line(s, level, text, Json::object());
  std::string line = fmt::format("{:%T} ", fmt::localtime(std::time(nullptr)));
  if (level != Level::info) line += fmt::format("{}: ", name_of(level));
  if (s.options.rank != 0) line += fmt::format("[rank {}] ", s.options.rank);
  // Several problems in one message stand on a line each.
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    line += (begin > 0 ? " / " : "") + one_line(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return line + "\n";
}

/// One write(2) per line, so that lines of several ranks never mix. Where nobody reads, or nothing
/// fits, the log has nobody to tell.
void put(int descriptor, std::string_view line) { standard_streams::write_all(descriptor, line); }

constexpr const char* kEraseLine = "\r\x1b[K";

/// A line above the terminal's last one.
void put_above_progress(const State& s, int descriptor, std::string_view line) {
  if (s.progress.empty()) return put(descriptor, line);
  put(STDERR_FILENO, kEraseLine);
  put(descriptor, line);
  put(STDERR_FILENO, s.progress);
}

bool is_terminal(const Options& options) {
  const char* kind = std::getenv("TERM");
  return !options.json && options.rank == 0 && options.level <= Level::info &&
         ::isatty(STDERR_FILENO) == 1 && kind != nullptr && std::string_view(kind) != "dumb";
}

/// A log that cannot be written must not end the run: that is said once, and later lines are tried
/// again.
void put_into_file(State& s, std::string_view line) {
  if (s.file < 0) return;
  const int number = standard_streams::write_all(s.file, line);
  if (number == 0 || s.file_failed) return;
  s.file_failed = true;
  put(STDERR_FILENO, line_of(s, Level::warning,
                             fmt::format("the log {} is not complete: {}", s.options.file.string(),
                                         std::strerror(number))));
}

}  // namespace

void configure(const Options& options) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  if (s.file >= 0) ::close(s.file);
  s.file = -1;
  s.file_failed = false;
  s.options = options;
  threshold = options.level;
  s.terminal = is_terminal(options);
  if (options.file.empty()) return;
  s.file = ::open(options.file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (s.file >= 0) return;
  put(STDERR_FILENO, line_of(s, Level::warning,
                             fmt::format("no log is kept in {}: {}", options.file.string(),
                                         std::strerror(errno))));
}

Options current() {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  return s.options;
}

bool enabled(Level level) { return level >= threshold.load(std::memory_order_relaxed); }

void write(Level level, std::string_view text) {
  if (!enabled(level)) return;
  State& s = state();
  const std::lock_guard lock(s.mutex);
  const std::string line = line_of(s, level, text);
  const bool first_error = level == Level::error && !s.first_error_shown;
  if (s.options.rank == 0 || first_error) put_above_progress(s, STDERR_FILENO, line);
  s.first_error_shown = s.first_error_shown || level == Level::error;
  put_into_file(s, line);
}

void write(Level level, std::string_view text, std::string_view shown) {
  if (!has_terminal()) return write(level, text);
  if (!enabled(level)) return;
  State& s = state();
  const std::lock_guard lock(s.mutex);
  if (!shown.empty()) put_above_progress(s, STDERR_FILENO, std::string(shown) + "\n");
  put_into_file(s, line_of(s, level, text));
}

bool has_terminal() {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  return s.terminal;
}

std::size_t terminal_columns() {
  winsize size{};
  if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

void show_progress(std::string_view line) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  if (!s.terminal || line == s.progress) return;
  put(STDERR_FILENO, kEraseLine + std::string(line));
  s.progress = line;
}

void write(Level level, const Block& block, Stream stream) {
  if (!enabled(level)) return;
  State& s = state();
  const std::lock_guard lock(s.mutex);
  const std::string text =
      s.options.json ? json_line(s, level, block.title, block.facts) : block.text;
  const bool to_output = stream == Stream::standard_output && !s.options.json;
  put_above_progress(s, to_output ? STDOUT_FILENO : STDERR_FILENO, text);
  put_into_file(s, text);
}

std::string json_line_without_time(Level level, std::string_view text) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  return dumped({{"level", name_of(level)}, {"rank", s.options.rank}, {"text", utf8_text(text)}});
}

}  // namespace espalier::log
