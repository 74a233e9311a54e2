#pragma once

#include <cstdint>
#include <filesystem>

namespace espalier {

/// Bytes of host memory that this process and its children may still take: the least of what the
/// kernel calls available, of what every memory control group above this process leaves (version 1
/// or 2, as batch systems set them; page cache inside a group counts as free), and of RLIMIT_AS
/// less what is mapped. What cannot be read limits nothing; 0 when nothing at all could be read.
/// `root` stands before /proc and /sys (tests).
std::int64_t available_host_memory(const std::filesystem::path& root = "/");

}  // namespace espalier
