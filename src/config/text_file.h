#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>

#include "espalier/core/error.h"
#include "espalier/core/text.h"

namespace espalier::config_detail {

/// Exit code for a file or directory that the system does not let us look at, by errno: permission,
/// missing_input (no such name, or none that can be followed), write_failed (the device fails).
ExitCode code_of_unreadable(int error);

/// The error number of opening the file to read it, 0 when that works; reads nothing.
int error_of_opening(const std::filesystem::path& path);

/// Reads a whole regular file of at most `limit` bytes. Throws Error: code_of_unreadable() when it
/// cannot be opened or read, `wrong` when it is no regular file or larger. `remedy` is the sentence
/// for a file that is missing.
std::string read_text_file(const std::filesystem::path& path, std::size_t limit, ExitCode wrong,
                           const std::string& remedy);

/// `text` with control and non-ASCII bytes escaped and cut to `limit` characters: input quoted in
/// messages can neither fill a terminal nor move its cursor.
std::string printable(std::string_view text, std::size_t limit = 60);

}  // namespace espalier::config_detail
