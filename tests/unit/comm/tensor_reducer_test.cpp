// Reduction of tensors through the control's library, and what every reducer does by itself.
#include "espalier/comm/tensor_reducer.h"

#include <functional>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "espalier/comm/rank_group.h"
#include "espalier/core/error.h"
#include "support/mpi_test_main.h"

namespace espalier {
namespace {

void expect_internal(const std::function<void()>& call, const std::string& text) {
  try {
    call();
    ADD_FAILURE() << "nothing was thrown; expected '" << text << "'";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::internal);
    EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
  }
}

/// What a library with failures of its own looks like.
class Library final : public TensorReducer {
 public:
  int size() const override { return 1; }
  bool takes(DType dtype, Memory memory) const override {
    return dtype == DType::bf16 && memory == Memory::device;
  }
  bool is_broken = false;
  int reductions = 0;
  int aborts = 0;

 private:
  void reduce(const TensorBuffer& buffer, ReduceOp) override {
    ++reductions;
    ++counters_.collectives;
    counters_.bytes += buffer.count * size_of(buffer.dtype);
  }
  void check_library() override {
    if (is_broken) throw Error(ExitCode::internal, "a remote rank is gone");
  }
  void abort_library() noexcept override { ++aborts; }
};

TEST(HostReducer, ReducesOverTheRanksOfItsControl) {
  RankGroup& world = testing::world_group();
  std::vector<float> values{static_cast<float>(world.rank()), 1};
  world.reducer().all_reduce({values.data(), 2, DType::f32}, ReduceOp::sum);
  const int size = world.size();
  EXPECT_EQ(values[0], static_cast<float>(size * (size - 1) / 2));
  EXPECT_EQ(values[1], static_cast<float>(size));
  values[0] = static_cast<float>(world.rank());
  world.reducer().all_reduce({values.data(), 1, DType::f32}, ReduceOp::max);
  EXPECT_EQ(values[0], static_cast<float>(size - 1));
  EXPECT_NO_THROW(world.reducer().check());
}

TEST(HostReducer, TakesWhatMpiTakes) {
  const TensorReducer& reducer = testing::world_group().reducer();
  for (const DType dtype : {DType::f32, DType::f64, DType::i32, DType::i64, DType::u64, DType::u8})
    EXPECT_TRUE(reducer.takes(dtype, Memory::host)) << safetensors_name(dtype);
  for (const DType dtype : {DType::bf16, DType::f16, DType::boolean, DType::i8, DType::i16})
    EXPECT_FALSE(reducer.takes(dtype, Memory::host)) << safetensors_name(dtype);
  EXPECT_FALSE(reducer.takes(DType::f32, Memory::device));
}

TEST(HostReducer, WhatItDoesNotTakeIsRefusedOnEveryRankBeforeAnyTraffic) {
  RankGroup& world = testing::world_group();
  world.reset_counters();
  float value = 1;
  expect_internal(
      [&] {
        world.reducer().all_reduce({&value, 1, DType::f32, Memory::device, nullptr}, ReduceOp::sum);
      },
      "F32 in device memory");
  expect_internal(
      [&] {
        world.reducer().all_reduce({&value, 2, DType::bf16}, ReduceOp::sum);
      },
      "BF16 in host memory");
  EXPECT_EQ(world.counters().collectives, 0u);
}

TEST(RankGroup, CountsWhatBothSendOnce) {
  RankGroup& world = testing::world_group();
  world.reset_counters();
  std::vector<double> values(100);
  world.reducer().all_reduce({values.data(), values.size(), DType::f64}, ReduceOp::sum);
  world.control().all_reduce_sum(std::span<double>(values).first(3));
  const std::uint64_t calls = world.size() > 1 ? 2 : 0;
  EXPECT_EQ(world.counters().collectives, calls);
  EXPECT_EQ(world.counters().bytes, calls / 2 * 103 * sizeof(double));

  auto library = std::make_unique<Library>();
  Library& used = *library;
  RankGroup group(make_self_communicator(), std::move(library));
  group.reducer().all_reduce({nullptr, 5, DType::bf16, Memory::device, nullptr}, ReduceOp::sum);
  EXPECT_EQ(used.reductions, 1);
  EXPECT_EQ(group.counters().collectives, 1u);
  EXPECT_EQ(group.counters().bytes, 10u);
  group.reset_counters();
  EXPECT_EQ(group.counters().bytes, 0u);
}

TEST(TensorReducer, CheckThrowsWhatTheLibraryFound) {
  Library library;
  EXPECT_NO_THROW(library.check());
  library.is_broken = true;
  expect_internal([&] { library.check(); }, "a remote rank is gone");
}

TEST(TensorReducer, NothingIsReducedAfterAnAbortFromAnyThread) {
  Library library;
  std::thread([&] { library.abort(); }).join();
  library.abort();
  EXPECT_EQ(library.aborts, 1);
  const TensorBuffer buffer{nullptr, 0, DType::bf16, Memory::device, nullptr};
  expect_internal([&] { library.all_reduce(buffer, ReduceOp::sum); }, "was ended");
  expect_internal([&] { library.check(); }, "was ended");
  EXPECT_EQ(library.reductions, 0);
}

TEST(TensorReducer, WhatEndedItFirstIsWhatLaterCallsThrow) {
  Library library;
  library.abort(ExitCode::peer_lost);
  library.abort();
  EXPECT_EQ(library.aborts, 1);
  try {
    library.check();
    ADD_FAILURE() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::peer_lost);
    EXPECT_NE(std::string(error.what()).find("another rank is lost"), std::string::npos);
  }
}

TEST(RankGroup, TakesAnotherReducer) {
  RankGroup group(make_self_communicator());
  EXPECT_FALSE(group.reducer().takes(DType::bf16, Memory::device));
  group.set_reducer(std::make_unique<Library>());
  EXPECT_TRUE(group.reducer().takes(DType::bf16, Memory::device));
}

TEST(RankGroup, AnExceptionThatUnwindsEndsTheReduction) {
  struct Told final : TensorReducer {
    explicit Told(int& aborts) : aborts_(aborts) {}
    int size() const override { return 1; }
    bool takes(DType, Memory) const override { return true; }
    void reduce(const TensorBuffer&, ReduceOp) override {}
    void abort_library() noexcept override { ++aborts_; }
    int& aborts_;
  };
  int aborts = 0;
  { const RankGroup group(make_self_communicator(), std::make_unique<Told>(aborts)); }
  EXPECT_EQ(aborts, 0);
  try {
    const RankGroup group(make_self_communicator(), std::make_unique<Told>(aborts));
    throw Error(ExitCode::internal, "a failure of this rank alone");
  } catch (const Error&) {
  }
  EXPECT_EQ(aborts, 1);
}

}  // namespace
}  // namespace espalier
