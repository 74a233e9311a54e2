#pragma once

#include <cstdint>

#include <c10/core/Device.h>

namespace espalier {

/// The most memory that this process took at once, in bytes: resident memory on a CPU, tensors on a
/// GPU. From its start, or from the last reset.
std::int64_t peak_memory(c10::Device device);
/// Begins to count anew. Where the kernel does not allow it (no /proc/self/clear_refs) the count
/// goes on.
void reset_peak_memory(c10::Device device);

}  // namespace espalier
