#pragma once

#include <filesystem>

namespace espalier {

/// `path` without `.`, empty components and a trailing slash. `x/..` goes too, unless x is a
/// symbolic link: the kernel then looks beside what the link points to, and so does the result.
/// Of a relative path, whose start may be another directory than this process's, `..` stays.
std::filesystem::path tidy_path(const std::filesystem::path& path);

/// tidy_path() of `path` below the working directory. Throws Error: usage when `path` is empty,
/// missing_input when the working directory is gone.
std::filesystem::path absolute_path(const std::filesystem::path& path);

}  // namespace espalier
