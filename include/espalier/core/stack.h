#pragma once

#include <string>

/// The calls in which a process is, for one that does not get on.
namespace espalier::stack {

/// Names the calling thread as the one that write() is about. Once per process.
void watch_this_thread();

/// Appends to the file `path`, which is made, the header and below it the calls in which the
/// watched thread is now, innermost first, one per line (names as the compiler mangles them:
/// `c++filt` reads them). For any other thread. Waits up to `wait_seconds` for the watched thread
/// to answer; one that sits in the kernel does not, and a line says so. Returns false where nothing
/// could be written.
bool write(const std::string& path, const std::string& header, double wait_seconds);

}  // namespace espalier::stack
