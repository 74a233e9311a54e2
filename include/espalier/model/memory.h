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

/// What a CPU process that holds tensors of `bytes` is expected to have resident: the program and
/// its libraries (190 MiB were seen), and what the C library's heap keeps free between blocks,
/// which grew with the tensors up to about an eighth of a GiB. Pure.
std::int64_t resident_with_tensors(std::int64_t bytes);

/// Memory that a process should have for tensors of `bytes`: kBesideTensors, an eighth more, and
/// for the first 2 GiB of tensors half as much again instead: the C library keeps blocks below 32
/// MiB, which small passes are made of, in one heap, with holes of 44 % of the tensors where that
/// was measured. Pure.
std::int64_t memory_for_tensors(std::int64_t bytes);
/// Bytes of tensors that a pass may come to hold where so much memory is available: half of what
/// kBesideTensors leaves of it, and three quarters of all beyond 2 GiB. Pure; less than the inverse
/// of the above.
std::int64_t tensors_for_memory(std::int64_t available);

/// Counts the bytes of tensors that the calling thread allocates and has not freed since the meter
/// was made, on any device. Meters may lie inside one another.
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
