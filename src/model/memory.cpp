#include "espalier/model/memory.h"

#include <c10/core/Allocator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include "espalier/core/host_memory.h"

namespace espalier {
namespace {

/// LibTorch's allocators tell every allocation to the debug information of the thread.
class Count final : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void*, std::int64_t bytes, std::size_t, std::size_t,
                         c10::Device) override {
    bytes_ += bytes;  // negative when memory is freed
  }
  bool memoryProfilingEnabled() const override { return true; }
  std::int64_t bytes() const { return bytes_; }

 private:
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

struct MemoryMeter::State {
  std::shared_ptr<Count> count = std::make_shared<Count>();
  c10::DebugInfoGuard guard{c10::DebugInfoKind::PROFILER_STATE, count};
};

MemoryMeter::MemoryMeter() : state_(std::make_unique<State>()) {}
MemoryMeter::~MemoryMeter() = default;
std::int64_t MemoryMeter::bytes() const { return state_->count->bytes(); }

}  // namespace espalier
