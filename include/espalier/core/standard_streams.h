#pragma once

#include <string_view>

/// Standard input, output and error as a long run finds them: a terminal that goes away, a pipe
/// whose reader ends, a full disk, or nothing at all.
namespace espalier::standard_streams {

/// Ignores SIGPIPE, so that a reader that ends does not end a run, and puts /dev/null in place of
/// descriptors 0 to 2 that are closed, so that no file that is opened later gets their numbers and
/// whatever is printed. Writing to such a one still fails (EBADF). To be called before anything is
/// opened.
void prepare();

/// Writes all of the text to a descriptor, past interruptions and partial writes. Returns 0, or the
/// errno value of the write that failed.
int write_all(int descriptor, std::string_view text);

}  // namespace espalier::standard_streams
