// How sums over NCCL are connected, awaited, given up and ended, over a table of calls that needs
// no GPU (support/nccl_fake.h). That the table of the libraries does the same is what
// tests/gpu/nccl_test.cpp looks at.
#include "espalier/comm/nccl_reducer.h"

#include <chrono>
#include <functional>
#include <numeric>
#include <thread>

#include <gtest/gtest.h>

#include "espalier/core/pulse.h"
#include "support/mpi_test_main.h"
#include "support/nccl_fake.h"

namespace espalier {
namespace {

using nccl::Result;
using testing::FakeNccl;

constexpr double kShort = 0.05;  // of what never comes to its end

/// Every grid of these ranks: 1x1 alone; 2x1 and 1x2 of two; 4x1, 2x2 and 1x4 of four.
std::vector<int> tensor_sizes() {
  std::vector<int> sizes;
  for (int tensor = 1; tensor <= testing::world().size(); ++tensor)
    if (testing::world().size() % tensor == 0) sizes.push_back(tensor);
  return sizes;
}

ExitCode code_of(const std::function<void()>& work, const std::string& part_of_text = "") {
  try {
    work();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(part_of_text), std::string::npos) << error.what();
    return error.code();
  }
  return ExitCode::ok;
}

TensorBuffer on_device(void* data, std::size_t count, DType dtype) {
  return {data, count, dtype, Memory::device, nullptr};
}

/// One rank of two, whose peer is what the fake makes of it.
struct Alone {
  explicit Alone(double deadline = kShort) {
    const auto made = nccl::join(fake.calls(), *control, {0, deadline}, 2, {}, 0);
    reducer = nccl::make_reducer(made, *control, nccl::Wire::activations);
  }
  Alone(const Alone&) = delete;
  Alone& operator=(const Alone&) = delete;
  void sum() { reducer->all_reduce(on_device(values, 2, DType::f32), ReduceOp::sum); }

  std::unique_ptr<Communicator> control = make_self_communicator();
  FakeNccl fake{*control};
  float values[2] = {1, 2};
  std::unique_ptr<TensorReducer> reducer;
};

TEST(NcclConnect, TheIdOfRankZeroReachesAllAndGroupsAreSplitByTheGrid) {
  Communicator& world = testing::world();
  for (const int tensor : tensor_sizes()) {
    SCOPED_TRACE(tensor);
    FakeNccl fake(world);
    const ProcessGrid grid(world, tensor);
    nccl::connect(fake.calls(), grid, {3, 60});
    if (world.size() == 1) {
      EXPECT_TRUE(fake.joins.empty() && fake.splits.empty() && fake.devices.empty());
      continue;
    }
    EXPECT_EQ(fake.devices, std::vector<int>{3});
    EXPECT_EQ(fake.ids, world.rank() == 0 ? 1 : 0);
    EXPECT_EQ(fake.joins.size(), 1u);
    EXPECT_EQ(fake.joins.at(0).ranks, world.size());
    EXPECT_EQ(fake.joins.at(0).rank, world.rank());
    for (std::size_t i = 0; i < 128; ++i)
      EXPECT_EQ(fake.joins.at(0).id[i], static_cast<char>(3 * i + 1)) << i;
    std::vector<FakeNccl::Split> splits;
    if (tensor > 1) splits.push_back({world.rank() / tensor, world.rank()});
    if (tensor < world.size()) splits.push_back({world.rank() % tensor, world.rank()});
    EXPECT_EQ(fake.splits, splits);
    for (const RankGroup* group : {&grid.tensor(), &grid.data()})
      EXPECT_EQ(group->reducer().takes(DType::f32, Memory::device), group->size() > 1);
  }
}

/// Sums of `dtype` over both groups of every grid, with literal results.
template <class T>
void expect_sums(DType dtype, int looks) {
  Communicator& world = testing::world();
  for (const int tensor : tensor_sizes()) {
    SCOPED_TRACE(tensor);
    FakeNccl fake(world);
    fake.looks = looks;
    const ProcessGrid grid(world, tensor);
    nccl::connect(fake.calls(), grid, {});
    for (const RankGroup* group : {&grid.tensor(), &grid.data()}) {
      if (group->size() == 1) continue;
      const int n = group->size();
      std::vector<T> values{static_cast<T>(group->rank()), T{1}, static_cast<T>(10)};
      const TensorBuffer buffer = on_device(values.data(), 3, dtype);
      group->reducer().all_reduce(buffer, ReduceOp::sum);
      group->reducer().check();
      EXPECT_EQ(values, (std::vector<T>{static_cast<T>(n * (n - 1) / 2), static_cast<T>(n),
                                        static_cast<T>(10 * n)}));
      values[0] = static_cast<T>(group->rank());
      group->reducer().all_reduce(on_device(values.data(), 1, dtype), ReduceOp::max);
      group->reducer().check();
      EXPECT_EQ(values[0], static_cast<T>(n - 1));
    }
    EXPECT_EQ(fake.aborted, 0);
    EXPECT_EQ(fake.misused, 0);
  }
}

TEST(NcclReducer, SumsOverTheGroupsOfEveryGrid) {
  expect_sums<float>(DType::f32, 0);
  expect_sums<double>(DType::f64, 0);
  expect_sums<std::int64_t>(DType::i64, 0);
}

TEST(NcclReducer, WhatIsInProgressForAWhileIsWaitedFor) {
  expect_sums<float>(DType::f32, 1);
  expect_sums<float>(DType::f32, 7);
}

TEST(NcclReducer, Bfloat16CrossesAsItIsInTheTensorGroupOnly) {
  Communicator& world = testing::world();
  for (const int tensor : tensor_sizes()) {
    FakeNccl fake(world);
    const ProcessGrid grid(world, tensor);
    nccl::connect(fake.calls(), grid, {});
    for (const RankGroup* group : {&grid.tensor(), &grid.data()}) {
      if (group->size() == 1) continue;
      EXPECT_EQ(group->reducer().takes(DType::bf16, Memory::device), group == &grid.tensor());
      EXPECT_FALSE(group->reducer().takes(DType::f16, Memory::device));
      for (const DType dtype : {DType::f32, DType::f64, DType::i32, DType::i64, DType::u8})
        EXPECT_TRUE(group->reducer().takes(dtype, Memory::device)) << safetensors_name(dtype);
    }
    if (tensor == 1) continue;
    std::vector<std::uint16_t> values{testing::narrowed(1.5f), testing::narrowed(-0.25f)};
    grid.tensor().reset_counters();
    grid.tensor().reducer().all_reduce(on_device(values.data(), 2, DType::bf16), ReduceOp::sum);
    grid.tensor().reducer().check();
    EXPECT_EQ(testing::widened(values[0]), 1.5f * static_cast<float>(tensor));
    EXPECT_EQ(testing::widened(values[1]), -0.25f * static_cast<float>(tensor));
    EXPECT_EQ(fake.sums, std::vector<DType>{DType::bf16});
    EXPECT_EQ(grid.tensor().counters().collectives, 1u);
    EXPECT_EQ(grid.tensor().counters().bytes, 4u) << "two bytes a number on the wire";
  }
}

TEST(NcclReducer, HostMemoryGoesThroughTheControl) {
  Communicator& world = testing::world();
  FakeNccl fake(world);
  const ProcessGrid grid(world, world.size());
  nccl::connect(fake.calls(), grid, {});
  TensorReducer& reducer = grid.tensor().reducer();
  EXPECT_TRUE(reducer.takes(DType::f64, Memory::host));
  EXPECT_FALSE(reducer.takes(DType::bf16, Memory::host));
  grid.tensor().reset_counters();
  std::vector<double> values{1, 2};
  reducer.all_reduce({values.data(), 2, DType::f64}, ReduceOp::sum);
  EXPECT_EQ(values, (std::vector<double>{1.0 * world.size(), 2.0 * world.size()}));
  EXPECT_TRUE(fake.sums.empty());
  EXPECT_EQ(grid.tensor().counters().bytes, world.size() > 1 ? 16u : 0u);
}

TEST(NcclReducer, EveryCommunicatorIsLeftOnce) {
  Communicator& world = testing::world();
  FakeNccl fake(world);
  {
    const ProcessGrid grid(world, world.size() == 4 ? 2 : world.size());
    nccl::connect(fake.calls(), grid, {});
    std::vector<float> values{1};
    if (world.size() > 1)
      grid.tensor().reducer().all_reduce(on_device(values.data(), 1, DType::f32), ReduceOp::sum);
  }
  const int communicators = world.size() == 4 ? 3 : world.size() == 2 ? 2 : 0;
  EXPECT_EQ(fake.finalized, communicators);
  EXPECT_EQ(fake.destroyed, communicators);
  EXPECT_EQ(fake.aborted, 0);
  EXPECT_EQ(fake.misused, 0);
  EXPECT_EQ(fake.events, 0) << "events that were not destroyed";
}

TEST(NcclConnect, WithoutAGpuAllRanksSayTheSameOnceAndNoneIsLeftBehind) {
  Communicator& world = testing::world();
  if (world.size() == 1) GTEST_SKIP() << "one rank connects to nobody";
  FakeNccl fake(world);
  fake.wrong_device = "cudaSetDevice: no CUDA-capable device is detected";
  std::string said;
  const ProcessGrid grid(world, 1);
  EXPECT_EQ(code_of([&] {
              try {
                nccl::connect(fake.calls(), grid, {});
              } catch (const AgreedError& error) {
                said = error.what();
                throw;
              }
            }),
            ExitCode::unsuitable);
  EXPECT_EQ(said,
            "NCCL cannot connect the ranks: cudaSetDevice failed (cudaSetDevice: no CUDA-capable "
            "device is detected). NCCL_DEBUG=WARN in the environment says more; "
            "execution.collectives: mpi works without NCCL.");
  EXPECT_TRUE(fake.joins.empty());
}

TEST(NcclConnect, OneRankThatCannotJoinIsEverybodysError) {
  Communicator& world = testing::world();
  if (world.size() == 1) GTEST_SKIP() << "one rank connects to nobody";
  FakeNccl fake(world);
  fake.looks = 2;
  if (world.rank() == world.size() - 1) fake.joined = Result::unhandled_cuda_error;
  const ProcessGrid grid(world, 1);
  EXPECT_EQ(code_of([&] { nccl::connect(fake.calls(), grid, {}); },
                    "ncclCommInitRankConfig failed (in the library's own words, 1)"),
            ExitCode::unsuitable);
  EXPECT_EQ(fake.aborted, 1) << "by the rank that failed, and by those that had joined";
  EXPECT_EQ(fake.finalized, 0);
  EXPECT_EQ(fake.misused, 0);
  EXPECT_FALSE(grid.data().reducer().takes(DType::f32, Memory::device)) << "as it was";
}

TEST(NcclConnect, APeerThatDoesNotJoinIsGivenUpAtTheDeadline) {
  Communicator& world = testing::world();
  if (world.size() == 1) GTEST_SKIP() << "one rank connects to nobody";
  FakeNccl fake(world);
  fake.joining_hangs = true;
  const ProcessGrid grid(world, 1);
  EXPECT_EQ(code_of(
                [&] {
                  nccl::connect(fake.calls(), grid, {0, kShort});
                },
                "ncclCommInitRankConfig did not come to its end in 0.05 s"),
            ExitCode::peer_lost);
  EXPECT_EQ(fake.aborted, 1);
}

TEST(NcclReducer, ASumThatHangsIsAbortedOnceAtTheDeadline) {
  Alone alone;
  alone.fake.sums_hang = true;
  alone.sum();
  EXPECT_EQ(alone.fake.aborted, 0) << "a sum on its stream is not waited for";
  EXPECT_EQ(
      code_of([&] { alone.reducer->check(); }, "a sum over NCCL did not come to its end in 0.05 s"),
      ExitCode::peer_lost);
  EXPECT_EQ(alone.fake.aborted, 1);
  EXPECT_EQ(code_of([&] { alone.reducer->check(); }, "was ended"), ExitCode::peer_lost);
  EXPECT_EQ(code_of([&] { alone.sum(); }, "was ended"), ExitCode::peer_lost);
  alone.reducer.reset();
  EXPECT_EQ(alone.fake.aborted, 1);
  EXPECT_EQ(alone.fake.finalized + alone.fake.destroyed, 0) << "what was ended is not left";
  EXPECT_EQ(alone.fake.misused, 0);
  EXPECT_EQ(alone.fake.events, 0);
}

TEST(NcclReducer, AnAsynchronousErrorEndsTheWaitWithTheLibrarysWords) {
  const std::pair<Result, ExitCode> cases[] = {{Result::remote_error, ExitCode::peer_lost},
                                               {Result::system_error, ExitCode::internal},
                                               {Result::unhandled_cuda_error, ExitCode::internal},
                                               {Result::internal_error, ExitCode::internal}};
  for (const auto& [found, code] : cases) {
    Alone alone(60);
    alone.fake.sums_hang = true;
    alone.sum();
    alone.fake.found = found;
    const std::string words =
        "in the library's own words, " + std::to_string(static_cast<int>(found));
    EXPECT_EQ(code_of([&] { alone.reducer->check(); }, words), code);
    EXPECT_EQ(alone.fake.aborted, 1);
    EXPECT_EQ(code_of([&] { alone.sum(); }, "was ended"), code);
    EXPECT_EQ(alone.fake.misused, 0);
  }
}

TEST(NcclReducer, AnErrorOfTheCallItselfEndsTheReducer) {
  Alone alone;
  alone.fake.found = Result::invalid_argument;
  EXPECT_EQ(code_of([&] { alone.sum(); }, "ncclAllReduce failed (in the library's own words, 4)"),
            ExitCode::internal);
  EXPECT_EQ(alone.fake.aborted, 1);
}

TEST(NcclReducer, AFailureOfNoSumIsFoundToo) {
  Alone alone;
  EXPECT_NO_THROW(alone.reducer->check());
  alone.fake.found = Result::remote_error;
  EXPECT_EQ(code_of([&] { alone.reducer->check(); }), ExitCode::peer_lost);
}

TEST(NcclReducer, AnotherThreadEndsAWaitWithoutADeadline) {
  Alone alone(0);
  alone.fake.sums_hang = true;
  alone.sum();
  const std::uint64_t before = pulse::read().beats;
  std::thread watchdog([&] {
    // The main thread waits by then.
    while (pulse::read().waiting != pulse::Waiting::ranks || pulse::read().beats == before)
      std::this_thread::yield();
    alone.reducer->abort(ExitCode::peer_lost);
  });
  EXPECT_EQ(code_of([&] { alone.reducer->check(); }, "another rank is lost or hangs"),
            ExitCode::peer_lost);
  watchdog.join();
  EXPECT_EQ(alone.fake.aborted, 1);
  EXPECT_EQ(alone.fake.misused, 0);
}

TEST(NcclReducer, EndingOneGroupEndsTheWholeAndNothingTwice) {
  Communicator& world = testing::world();
  if (world.size() == 1) GTEST_SKIP() << "one rank has no groups";
  FakeNccl fake(world);
  {
    const ProcessGrid grid(world, world.size() == 4 ? 2 : 1);
    nccl::connect(fake.calls(), grid, {});
    grid.data().reducer().abort(ExitCode::peer_lost);
    grid.data().reducer().abort(ExitCode::peer_lost);
    EXPECT_EQ(fake.aborted, 2) << "the part and the whole that it was split from";
    grid.tensor().reducer().abort(ExitCode::peer_lost);
    EXPECT_EQ(fake.aborted, world.size() == 4 ? 3 : 2);
  }
  EXPECT_EQ(fake.aborted, world.size() == 4 ? 3 : 2);
  EXPECT_EQ(fake.finalized + fake.destroyed, 0);
  EXPECT_EQ(fake.misused, 0);
}

TEST(NcclReducer, AnExceptionThatUnwindsEndsWhatItMeets) {
  FakeNccl fake(testing::world());
  try {
    const auto control = make_self_communicator();
    const auto made = nccl::join(fake.calls(), *control, {}, 2, {}, 0);
    throw Error(ExitCode::internal, "a failure of this rank alone");
  } catch (const Error&) {
  }
  EXPECT_EQ(fake.aborted, 1);
  EXPECT_EQ(fake.finalized, 0);
}

TEST(NcclReducer, LeavingThatHangsIsAborted) {
  Alone alone;
  alone.fake.leaving_hangs = true;
  alone.reducer.reset();
  EXPECT_EQ(alone.fake.finalized, 1);
  EXPECT_EQ(alone.fake.aborted, 1);
  EXPECT_EQ(alone.fake.destroyed, 0);
}

TEST(NcclReducer, AWaitIsOneForOtherRanksAndEverySumIsAStep) {
  Alone alone(60);
  alone.fake.looks = 3;
  for (int i = 0; i < 5; ++i) alone.sum();
  const std::uint64_t before = pulse::read().beats;
  alone.reducer->check();
  EXPECT_GE(pulse::read().beats - before, 5u);
  EXPECT_EQ(pulse::read().waiting, pulse::Waiting::nothing);
  EXPECT_GT(alone.reducer->counters().seconds, 0);
  EXPECT_EQ(alone.reducer->counters().collectives, 5u);
  EXPECT_EQ(alone.reducer->counters().bytes, 40u);
}

TEST(NcclObstacle, IsTheSameOnEveryRankAndNamesIt) {
  Communicator& world = testing::world();
  EXPECT_EQ(nccl::obstacle(nullptr, world, 0), "this build has no NCCL");
  FakeNccl fake(world);
  const nccl::Calls calls = fake.calls();
  EXPECT_EQ(nccl::obstacle(&calls, world, std::nullopt), "rank 0: it computes on the CPU");
  const int last = world.size() - 1;
  fake.bus_id = "0000:0" + std::to_string(world.rank()) + ":00.0";
  EXPECT_EQ(nccl::obstacle(&calls, world, world.rank()), "");
  if (world.rank() == last) fake.wrong_device = "cudaDeviceGetPCIBusId: unknown error";
  EXPECT_EQ(nccl::obstacle(&calls, world, world.rank()),
            "rank " + std::to_string(last) + ": cudaDeviceGetPCIBusId: unknown error");
  if (world.size() == 1) return;
  fake.wrong_device.clear();
  fake.bus_id = "0000:01:00.0";
  const std::string shared = nccl::obstacle(&calls, world, 0);
  EXPECT_EQ(shared.substr(0, 40), "ranks 0 and 1 share GPU 0000:01:00.0 of ") << shared;
}

TEST(NcclLibrary, ABuildWithoutItSaysSo) {
  if (nccl::library() != nullptr) GTEST_SKIP() << "this build has NCCL";
  EXPECT_EQ(nccl::library_version(), "not in this build");
}

}  // namespace
}  // namespace espalier
