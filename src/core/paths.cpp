#include "espalier/core/paths.h"

#include <system_error>

#include "espalier/core/error.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;

/// Whether "x/.." at the end of `so_far` may be left out.
bool can_step_back(const fs::path& so_far) {
  const fs::path last = so_far.filename();
  if (last.empty() || last == "..") return false;
  std::error_code failure;
  return !fs::is_symlink(fs::symlink_status(so_far, failure));
}

}  // namespace

fs::path tidy_path(const fs::path& path) {
  fs::path result = path.root_path();
  for (const fs::path& part : path.relative_path()) {
    if (part.empty() || part == ".") continue;
    if (part == ".." && path.is_absolute()) {
      if (!result.has_relative_path()) continue;  // above the root is the root
      if (can_step_back(result)) {
        result = result.parent_path();
        continue;
      }
    }
    result /= part;
  }
  return result.empty() && !path.empty() ? fs::path(".") : result;
}

fs::path absolute_path(const fs::path& path) {
  if (path.empty())
    throw Error(ExitCode::usage, "the name of a file or directory is empty", {},
                "Name one; this directory is '.'.");
  if (path.is_absolute()) return tidy_path(path);
  std::error_code failure;
  const fs::path here = fs::current_path(failure);
  if (failure)
    throw Error(ExitCode::missing_input, "the working directory cannot be found", failure.message(),
                "Change to a directory that exists, or use absolute paths.", path.string());
  return tidy_path(here / path);
}

}  // namespace espalier
