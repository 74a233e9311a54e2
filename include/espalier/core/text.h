#pragma once

#include <concepts>
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

}  // namespace espalier
