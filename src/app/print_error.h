#pragma once

#include <string>

#include "espalier/core/error.h"

namespace espalier {

/// The error as a user sees it: a headline, and what, why, where and do of every problem on lines
/// of their own.
std::string error_text(const Error& error);

/// "exit 74, resumable" and the like: what a code means for the next step.
std::string code_text(ExitCode code);

/// Puts the error on stderr (under --log-format json as one line with `exit_code` and `problems`)
/// and into the log file, if there is one yet.
void print_error(const Error& error);

}  // namespace espalier
