#pragma once

#include <string>

#include "espalier/core/error.h"

namespace espalier {

/// The error as a user sees it on stderr: one block for one problem, a list with a count for
/// several.
std::string error_text(const Error& error);

/// "74, the same command continues" and the like: what a code means for the next step.
std::string code_text(ExitCode code);

}  // namespace espalier
