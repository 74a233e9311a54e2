#pragma once

#include <string_view>

namespace espalier {

/// "0.1.0"
std::string_view version();
/// Short git hash of the build, "+" appended when the tree had changes, or "unknown".
std::string_view git_hash();
/// Compiler name and version.
std::string_view compiler();

}  // namespace espalier
