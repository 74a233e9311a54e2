#include "text_file.h"

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <system_error>

#include <fmt/format.h>

namespace espalier::config_detail {
namespace {

[[noreturn]] void fail_open(const std::filesystem::path& path, const std::string& remedy) {
  const int error = errno;
  const std::string what = fmt::format("cannot open '{}'", path.string());
  if (error == EACCES || error == EPERM)
    throw Error(ExitCode::permission, what, std::strerror(error), "Check the permissions.");
  throw Error(ExitCode::missing_input, what, std::strerror(error), remedy);
}

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

bool valid_sequence(std::string_view text, std::size_t at, std::size_t length) {
  if (length == 0 || text.size() - at < length) return false;
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[at + i]); };
  if (length > 1 && !valid_second(byte(0), byte(1))) return false;
  for (std::size_t i = 2; i < length; ++i)
    if ((byte(i) & 0xC0) != 0x80) return false;
  return true;
}

}  // namespace

std::string read_text_file(const std::filesystem::path& path, std::size_t limit, ExitCode wrong,
                           const std::string& remedy) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status))
    throw Error(wrong, fmt::format("'{}' is not a regular file", path.string()), {}, remedy);
  errno = 0;
  std::ifstream stream(path, std::ios::binary);
  if (!stream) fail_open(path, remedy);
  const std::uintmax_t size = std::filesystem::file_size(path, error);
  if (!error && size > limit)
    throw Error(wrong, fmt::format("'{}' has {} bytes", path.string(), size),
                fmt::format("at most {} are read", limit));
  std::string text(error ? 0 : static_cast<std::size_t>(size), '\0');
  stream.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (stream.gcount() != static_cast<std::streamsize>(text.size()))
    throw Error(wrong, fmt::format("'{}' could not be read whole", path.string()),
                fmt::format("{} of {} bytes came", stream.gcount(), text.size()));
  return text;
}

std::size_t first_invalid_utf8(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = sequence_length(static_cast<unsigned char>(text[at]));
    if (!valid_sequence(text, at, length)) return at;
    at += length;
  }
  return std::string_view::npos;
}

std::string printable(std::string_view text, std::size_t limit) {
  std::string out;
  for (const char c : text) {
    if (out.size() >= limit) {
      out += "...";
      break;
    }
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte != 0x7F)
      out += c;
    else
      out += fmt::format("\\x{:02x}", byte);
  }
  // Cut inside a multi-byte character or invalid input: fall back to escapes for everything beyond
  // ASCII.
  if (first_invalid_utf8(out) == std::string_view::npos) return out;
  std::string escaped;
  for (const char c : out) {
    const auto byte = static_cast<unsigned char>(c);
    escaped += byte < 0x80 ? std::string(1, c) : fmt::format("\\x{:02x}", byte);
  }
  return escaped;
}

}  // namespace espalier::config_detail
