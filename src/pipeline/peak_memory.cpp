#include "espalier/pipeline/peak_memory.h"

#include <c10/core/CachingDeviceAllocator.h>

#include "espalier/core/host_memory.h"

namespace espalier {

std::int64_t peak_memory(c10::Device device) {
  if (device.is_cpu()) return peak_host_memory();
  const auto stats = c10::getDeviceAllocator(device.type())->getDeviceStats(device.index());
  constexpr auto kAll = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  return stats.allocated_bytes[kAll].peak;
}

void reset_peak_memory(c10::Device device) {
  if (device.is_cpu())
    reset_peak_host_memory();
  else
    c10::getDeviceAllocator(device.type())->resetPeakStats(device.index());
}

}  // namespace espalier
