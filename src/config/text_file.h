#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>

#include "espalier/core/error.h"

namespace espalier::config_detail {

/// Reads a whole regular file of at most `limit` bytes. Throws Error: missing_input when it does
/// not exist, permission when it may not be read, `wrong` when it is no regular file or larger.
/// `remedy` is the sentence of the first case.
std::string read_text_file(const std::filesystem::path& path, std::size_t limit, ExitCode wrong,
                           const std::string& remedy);

/// Offset of the first byte that is not valid UTF-8 (RFC 3629), or npos.
std::size_t first_invalid_utf8(std::string_view text);

/// `text` with control and non-ASCII bytes escaped and cut to `limit` characters: input quoted in
/// messages can neither fill a terminal nor move its cursor.
std::string printable(std::string_view text, std::size_t limit = 60);

}  // namespace espalier::config_detail
