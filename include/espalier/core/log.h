#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include <fmt/format.h>

namespace espalier::log {

enum class Level { debug, info, warning, error, off };

/// How this process logs. Until configured: level info, text on stderr, rank 0.
struct Options {
  Level level = Level::info;
  bool json = false;  ///< one JSON object per line instead of text
  int rank = 0;       ///< only rank 0 writes to stderr; a rank's first error always goes there
  std::filesystem::path file;  ///< every line also goes here; empty = nowhere
};
void configure(const Options& options);
/// The options in force, to change one of them.
Options current();

void write(Level level, std::string_view text);
bool enabled(Level level);
/// Hands everything to the operating system.
void flush();

template <class... A>
void debug(fmt::format_string<A...> format, A&&... a) {
  if (enabled(Level::debug)) write(Level::debug, fmt::format(format, std::forward<A>(a)...));
}
template <class... A>
void info(fmt::format_string<A...> format, A&&... a) {
  if (enabled(Level::info)) write(Level::info, fmt::format(format, std::forward<A>(a)...));
}
template <class... A>
void warning(fmt::format_string<A...> format, A&&... a) {
  write(Level::warning, fmt::format(format, std::forward<A>(a)...));
}
template <class... A>
void error(fmt::format_string<A...> format, A&&... a) {
  write(Level::error, fmt::format(format, std::forward<A>(a)...));
}

}  // namespace espalier::log
