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

/// The largest resident memory of this process since it began or its count was reset (VmHWM of
/// proc(5)). Not getrusage(2) where the kernel tells this: its number does not end with exec, and a
/// program would count what the Python that started it had taken. `root` stands before /proc.
std::int64_t peak_host_memory(const std::filesystem::path& root = "/");
/// Begins to count anew; where the kernel does not allow it, the count goes on.
void reset_peak_host_memory();

/// Gives what the C library's heap holds free back to the kernel, also between blocks in use. The
/// heap keeps the pages of freed blocks, which count as resident until then; the next to be handed
/// out are mapped and cleared anew. Milliseconds.
void release_freed_memory();

}  // namespace espalier
