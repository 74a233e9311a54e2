#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

/// Lines for the person or program that watches: on stderr of rank 0 and in a file. As text or as
/// one JSON object per line; then nothing else goes to stderr. A stderr that nobody reads any more,
/// or that takes nothing, is no error: the file goes on.
namespace espalier::log {

enum class Level { debug, info, warning, error, off };

/// How this process logs. Until configured: level info, text on stderr, rank 0.
struct Options {
  Level level = Level::info;
  /// One JSON object per line instead of text.
  bool json = false;
  /// Only rank 0 writes to stderr; a rank's first error always goes there.
  int rank = 0;
  /// Every line also goes here; empty = nowhere.
  std::filesystem::path file;
};
/// A file that cannot be opened or written is told by one warning; the log goes on without it.
void configure(const Options& options);
/// The options in force, to change one of them.
Options current();

void write(Level level, std::string_view text);
/// The same for the file and for readers without a terminal; a terminal shows `shown` as it is, or
/// nothing where that is empty.
void write(Level level, std::string_view text, std::string_view shown);
bool enabled(Level level);

/// Whether rank 0's lines go to a terminal, as text: one that can be drawn on.
bool has_terminal();
/// Characters in a line of that terminal.
std::size_t terminal_columns();
/// Draws the last line of the terminal anew, below all others; an empty one takes it away. Nothing
/// happens where there is no terminal, and nothing goes into the file.
void show_progress(std::string_view line);

/// A block of several lines for readers of text, which gets no time and no rank, and what it says
/// as members of one JSON line (beside time, level, rank and text) for programs.
struct Block {
  /// The JSON line's text.
  std::string title;
  /// Ends with a newline.
  std::string text;
  nlohmann::ordered_json facts = nlohmann::ordered_json::object();
};
enum class Stream { standard_error, standard_output };
/// Writes the block as it is on the stream, or its JSON line on stderr; either also into the file.
/// From whichever rank calls it.
void write(Level level, const Block& block, Stream stream = Stream::standard_error);

/// The JSON line of a text in this process's form, without its time (for a signal handler, which
/// cannot ask for it).
std::string json_line_without_time(Level level, std::string_view text);

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
