#pragma once

namespace espalier {

/// Parses the command line, runs the command and returns the exit code. Usage errors are 64.
int run_command_line(int argc, char** argv);

}  // namespace espalier
