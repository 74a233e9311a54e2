#include "espalier/model/memory.h"

#include <algorithm>

#include <c10/core/Allocator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include "espalier/core/host_memory.h"

namespace espalier {
namespace {

/// Below this, tensors are mostly such as the C library keeps in its heap.
constexpr std::int64_t kSmallPass = std::int64_t{2} << 30;

/// LibTorch's allocators tell every allocation to the latest debug information of the thread; this
/// one tells the one before it, too.
class Count final : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void* place, std::int64_t bytes, std::size_t allocated,
                         std::size_t reserved, c10::Device device) override {
    bytes_ += bytes;  // negative when memory is freed
    if (outer_ != nullptr) outer_->reportMemoryUsage(place, bytes, allocated, reserved, device);
  }
  bool memoryProfilingEnabled() const override { return true; }
  std::int64_t bytes() const { return bytes_; }

 private:
  c10::MemoryReportingInfoBase* outer_ = static_cast<c10::MemoryReportingInfoBase*>(
      c10::ThreadLocalDebugInfo::get(c10::DebugInfoKind::PROFILER_STATE));
  std::int64_t bytes_ = 0;
};

}  // namespace

std::int64_t available_memory(c10::Device device) {
  if (device.is_cpu()) return available_host_memory();
  c10::DeviceAllocator& allocator = *c10::getDeviceAllocator(device.type());
  const auto free = static_cast<std::int64_t>(allocator.getMemoryInfo(device.index()).first);
  const auto stats = allocator.getDeviceStats(device.index());
  constexpr auto kAll = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  return free + stats.reserved_bytes[kAll].current - stats.allocated_bytes[kAll].current;
}

std::int64_t resident_with_tensors(std::int64_t bytes) {
  constexpr std::int64_t kProgram = std::int64_t{192} << 20;
  constexpr std::int64_t kHeap = std::int64_t{1} << 30;
  return kProgram + bytes + std::min(bytes, kHeap) / 8;
}

std::int64_t memory_for_tensors(std::int64_t bytes) {
  const std::int64_t small = std::min(bytes, kSmallPass);
  return kBesideTensors + bytes + small / 2 + (bytes - small) / 8;
}

std::int64_t tensors_for_memory(std::int64_t available) {
  const std::int64_t left = std::max<std::int64_t>(0, available - kBesideTensors);
  const std::int64_t small = std::min(left, kSmallPass);
  return small / 2 + (left - small) / 4 * 3;
}

struct MemoryMeter::State {
  std::shared_ptr<Count> count = std::make_shared<Count>();
  c10::DebugInfoGuard guard{c10::DebugInfoKind::PROFILER_STATE, count};
};

MemoryMeter::MemoryMeter() : state_(std::make_unique<State>()) {}
MemoryMeter::~MemoryMeter() = default;
std::int64_t MemoryMeter::bytes() const { return state_->count->bytes(); }

}  // namespace espalier
