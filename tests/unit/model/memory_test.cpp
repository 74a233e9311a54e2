#include "espalier/model/memory.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace espalier {
namespace {

TEST(MemoryMeter, CountsWhatIsAllocatedAndNotFreed) {
  const at::Tensor before = at::zeros({1000});
  const MemoryMeter meter;
  EXPECT_EQ(meter.bytes(), 0);
  at::Tensor kept = at::zeros({1 << 16});
  EXPECT_GE(meter.bytes(), 4 << 16);
  const std::int64_t alone = meter.bytes();
  at::zeros({1 << 18}).add_(1);
  EXPECT_EQ(meter.bytes(), alone) << "what was freed does not count";
  kept.reset();
  EXPECT_EQ(meter.bytes(), 0);
}

TEST(AvailableMemory, OfTheHostIsPositive) { EXPECT_GT(available_memory(at::kCPU), 1 << 20); }

}  // namespace
}  // namespace espalier
