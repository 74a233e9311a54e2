#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include <fmt/format.h>

namespace espalier {

/// "1 layer", "2 layers", "0 layers". The plural is `noun` with an s unless it is given.
template <std::integral N>
std::string counted(N number, std::string_view noun, std::string_view plural = {}) {
  if (number == 1) return fmt::format("1 {}", noun);
  return plural.empty() ? fmt::format("{} {}s", number, noun)
                        : fmt::format("{} {}", number, plural);
}

/// "12.5%" of a ratio of 0.125. What rounds to nothing has no sign.
std::string percent(double ratio, int decimals = 1);

/// "15.7 s", "12 min", "3.2 h".
std::string duration(double seconds);

/// Text from outside for a line on a terminal: control characters as \xNN, so that no file can move
/// the cursor or begin a line.
std::string one_line(std::string_view text);

/// Below 0x20, and 0x7f.
bool is_control(char c);

/// Bytes of the valid UTF-8 character (RFC 3629) at the front of `text`; 0 when there is none.
std::size_t character_bytes(std::string_view text);
/// Offset of the first byte that is not valid UTF-8, or npos.
std::size_t first_invalid_utf8(std::string_view text);

/// Names of files and hosts and values of the environment are bytes; JSON and YAML want UTF-8.
/// `bytes` as UTF-8 from which bytes_of_text() gives the same bytes back: valid UTF-8 stands for
/// itself, unless it holds something of the form `\xNN` (N a hexadecimal digit); in all other texts
/// every byte that is no UTF-8 is written as `\xNN`, and every backslash as `\x5c`.
std::string utf8_text(std::string_view bytes);
/// As utf8_text(), with control characters as `\xNN` too: always one line.
std::string line_text(std::string_view bytes);
/// Every `\xNN` replaced by the byte NN.
std::string bytes_of_text(std::string_view text);

/// `word` as a POSIX shell reads it: in single quotes where it needs any.
std::string shell_word(std::string_view word);

}  // namespace espalier
