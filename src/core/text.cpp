#include "espalier/core/text.h"

#include <algorithm>

#include <fmt/format.h>

namespace espalier {
namespace {

/// Length of the sequence that the lead byte opens; 0 for a byte that cannot lead.
std::size_t sequence_length(unsigned char lead) {
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead <= 0xDF) return 2;
  if (lead >= 0xE0 && lead <= 0xEF) return 3;
  if (lead >= 0xF0 && lead <= 0xF4) return 4;
  return 0;
}

/// The second byte has tighter bounds after some leads: no overlong forms, no surrogates, <=
/// U+10FFFF.
bool valid_second(unsigned char lead, unsigned char second) {
  const unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  return second >= low && second <= high;
}

std::string escaped_byte(char c) { return fmt::format("\\x{:02x}", static_cast<unsigned char>(c)); }

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

/// The byte that `\xNN` at `at` stands for; -1 when there is no such form.
int escape_at(std::string_view text, std::size_t at) {
  if (text.size() - at < 4 || text[at] != '\\' || text[at + 1] != 'x') return -1;
  const int high = hex_digit(text[at + 2]), low = hex_digit(text[at + 3]);
  return high < 0 || low < 0 ? -1 : 16 * high + low;
}

bool has_escape(std::string_view text) {
  for (std::size_t at = text.find('\\'); at != std::string_view::npos; at = text.find('\\', at + 1))
    if (escape_at(text, at) >= 0) return true;
  return false;
}

std::string escaped(std::string_view bytes, bool controls) {
  const bool plain =
      first_invalid_utf8(bytes) == std::string_view::npos && !has_escape(bytes) &&
      (!controls || std::none_of(bytes.begin(), bytes.end(), [](char c) { return is_control(c); }));
  if (plain) return std::string(bytes);
  std::string text;
  for (std::size_t at = 0; at < bytes.size();) {
    const std::size_t length = character_bytes(bytes.substr(at));
    const char c = bytes[at];
    if (length == 0 || c == '\\' || (controls && is_control(c)))
      text += escaped_byte(c);
    else
      text += bytes.substr(at, length);
    at += std::max<std::size_t>(length, 1);
  }
  return text;
}

}  // namespace

std::string percent(double ratio, int decimals) {
  std::string text = fmt::format("{:.{}f}", 100 * ratio, decimals);
  if (text.front() == '-' && text.find_first_of("123456789") == std::string::npos) text.erase(0, 1);
  return text + "%";
}

std::string duration(double seconds) {
  if (seconds < 120) return fmt::format("{:.1f} s", seconds);
  if (seconds < 7200) return fmt::format("{:.0f} min", seconds / 60);
  return fmt::format("{:.1f} h", seconds / 3600);
}

std::string one_line(std::string_view text) {
  std::string result;
  for (const char c : text) result += is_control(c) ? escaped_byte(c) : std::string(1, c);
  return result;
}

bool is_control(char c) {
  const auto byte = static_cast<unsigned char>(c);
  return byte < 0x20 || byte == 0x7F;
}

std::size_t character_bytes(std::string_view text) {
  if (text.empty()) return 0;
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const std::size_t length = sequence_length(byte(0));
  if (length == 0 || text.size() < length) return 0;
  if (length > 1 && !valid_second(byte(0), byte(1))) return 0;
  for (std::size_t i = 2; i < length; ++i)
    if ((byte(i) & 0xC0) != 0x80) return 0;
  return length;
}

std::size_t first_invalid_utf8(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = character_bytes(text.substr(at));
    if (length == 0) return at;
    at += length;
  }
  return std::string_view::npos;
}

std::string utf8_text(std::string_view bytes) { return escaped(bytes, false); }
std::string line_text(std::string_view bytes) { return escaped(bytes, true); }

std::string bytes_of_text(std::string_view text) {
  std::string bytes;
  for (std::size_t at = 0; at < text.size();) {
    const int byte = escape_at(text, at);
    bytes += byte >= 0 ? static_cast<char>(byte) : text[at];
    at += byte >= 0 ? 4 : 1;
  }
  return bytes;
}

std::string shell_word(std::string_view word) {
  constexpr std::string_view kSafe =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-+,:@%=";
  if (!word.empty() && word.find_first_not_of(kSafe) == std::string_view::npos)
    return std::string(word);
  std::string quoted = "'";
  for (const char c : word) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

}  // namespace espalier
