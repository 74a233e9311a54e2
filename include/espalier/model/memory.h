#pragma once

#include <cstdint>
#include <memory>

#include <c10/core/Device.h>

namespace espalier {

/// Bytes that tensors on `device` may still take in this process: of the host
/// (core/host_memory.h), or of the GPU including what LibTorch's allocator holds without using it.
/// Processes that share the device each see all of it.
std::int64_t available_memory(c10::Device device);

/// What a process may come to take beside tensors once it computes: buffers of the math libraries
/// and what the allocator cannot give back (230 MiB were seen on a CPU).
inline constexpr std::int64_t kBesideTensors = std::int64_t{256} << 20;

/// Counts the bytes of tensors that the calling thread allocates and has not freed since the meter
/// was made, on any device; the thread's latest meter counts.
class MemoryMeter {
 public:
  MemoryMeter();
  ~MemoryMeter();
  MemoryMeter(const MemoryMeter&) = delete;
  MemoryMeter& operator=(const MemoryMeter&) = delete;
  std::int64_t bytes() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace espalier
