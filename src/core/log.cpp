#include "espalier/core/log.h"

#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <ctime>
#include <mutex>

#include <fmt/chrono.h>
#include <nlohmann/json.hpp>

namespace espalier::log {
namespace {

struct State {
  std::mutex mutex;
  Options options;
  std::FILE* file = nullptr;
  bool first_error_shown = false;
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

std::string line_of(const State& s, Level level, std::string_view text) {
  const std::time_t now = std::time(nullptr);
  if (s.options.json) {
    const nlohmann::ordered_json line{{"time", fmt::format("{:%FT%TZ}", fmt::gmtime(now))},
                                      {"level", name_of(level)},
                                      {"rank", s.options.rank},
                                      {"text", text}};
    return line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  }
  std::string line = fmt::format("{:%T} ", fmt::localtime(now));
  if (level != Level::info) line += fmt::format("{}: ", name_of(level));
  if (s.options.rank != 0) line += fmt::format("[rank {}] ", s.options.rank);
  return line.append(text) + "\n";
}

/// One write(2) per line, so that lines of several ranks never mix.
void put(int descriptor, const std::string& line) {
  [[maybe_unused]] const ssize_t written = ::write(descriptor, line.data(), line.size());
}

}  // namespace

void configure(const Options& options) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  if (s.file != nullptr) std::fclose(s.file);
  s.options = options;
  s.file = options.file.empty() ? nullptr : std::fopen(options.file.c_str(), "ae");
  threshold = options.level;
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
  if (s.options.rank == 0 || first_error) put(STDERR_FILENO, line);
  s.first_error_shown = s.first_error_shown || level == Level::error;
  if (s.file != nullptr) {
    std::fwrite(line.data(), 1, line.size(), s.file);
    std::fflush(s.file);
  }
}

void flush() {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  if (s.file != nullptr) std::fflush(s.file);
}

}  // namespace espalier::log
