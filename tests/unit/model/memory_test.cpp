#include "espalier/model/memory.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "espalier/core/error.h"
#include "espalier/model/torch_errors.h"

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

TEST(TorchErrors, MemoryThatRanOutIsNamedWhoeverNoticed) {
  register_torch_errors();
  const Problems memory = problems_of([] { at::empty({std::int64_t{1} << 52}); });
  ASSERT_EQ(memory.list().size(), 1u);
  EXPECT_EQ(memory.list().front().code, ExitCode::unsuitable) << memory.list().front().message();
  EXPECT_NE(memory.list().front().why.find("18014398509481984"), std::string::npos)
      << memory.list().front().why;
  const Problems shapes = problems_of([] { at::zeros({2}) + at::zeros({3}); });
  ASSERT_EQ(shapes.list().size(), 1u);
  EXPECT_EQ(shapes.list().front().code, ExitCode::internal);
  EXPECT_EQ(shapes.list().front().what.find('\n'), std::string::npos) << "a backtrace";
}

TEST(Memory, TensorsLeaveRoomForWhatIsNone) {
  constexpr std::int64_t kGiB = std::int64_t{1} << 30;
  EXPECT_EQ(resident_with_tensors(kGiB / 2), kGiB / 2 + kGiB / 16 + (192 << 20));
  EXPECT_EQ(resident_with_tensors(10 * kGiB), 10 * kGiB + kGiB / 8 + (192 << 20));
  EXPECT_EQ(memory_for_tensors(0), kBesideTensors);
  EXPECT_EQ(memory_for_tensors(kGiB), kBesideTensors + kGiB + kGiB / 2);
  EXPECT_EQ(memory_for_tensors(10 * kGiB), kBesideTensors + 12 * kGiB);
  EXPECT_EQ(tensors_for_memory(kBesideTensors / 2), 0);
  EXPECT_EQ(tensors_for_memory(kBesideTensors + kGiB), kGiB / 2);
  EXPECT_EQ(tensors_for_memory(kBesideTensors + 10 * kGiB), 7 * kGiB);
  for (std::int64_t bytes = 1; bytes < 1000 * kGiB; bytes = bytes * 3 + 7) {
    EXPECT_LE(memory_for_tensors(tensors_for_memory(bytes)), std::max(bytes, kBesideTensors));
    EXPECT_GT(memory_for_tensors(bytes + 9), memory_for_tensors(bytes));
  }
}

TEST(AvailableMemory, OfTheHostIsPositive) { EXPECT_GT(available_memory(at::kCPU), 1 << 20); }

}  // namespace
}  // namespace espalier
