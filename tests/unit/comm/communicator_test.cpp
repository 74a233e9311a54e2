// Every operation against its closed form, for `self` and for the world, with one source.
#include "espalier/comm/communicator.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>

#include <gtest/gtest.h>

#include "espalier/comm/runtime.h"
#include "espalier/core/error.h"
#include "support/mpi_test_main.h"

namespace espalier {
namespace {

template <class T>
HostBuffer buffer_of(std::vector<T>& values, DType dtype) {
  return {values.data(), values.size(), dtype};
}

/// Runs on `self` and on the world of this program (which is `self` too when it has one rank).
class Operations : public ::testing::TestWithParam<const char*> {
 protected:
  Communicator& comm() {
    if (std::string(GetParam()) == "world") return testing::world();
    return *self_;
  }

  /// 0 + 1 + ... + (size - 1)
  std::int64_t rank_sum() { return std::int64_t{comm().size()} * (comm().size() - 1) / 2; }

 private:
  std::unique_ptr<Communicator> self_ = make_self_communicator();
};

INSTANTIATE_TEST_SUITE_P(, Operations, ::testing::Values("self", "world"),
                         [](const auto& chosen) { return std::string(chosen.param); });

template <class T>
void expect_reductions(Communicator& comm, DType dtype) {
  const T rank = static_cast<T>(comm.rank());
  const T last = static_cast<T>(comm.size() - 1);
  const T size = static_cast<T>(comm.size());
  for (const std::size_t count : {std::size_t{0}, std::size_t{1}, std::size_t{7}}) {
    std::vector<T> sum(count, static_cast<T>(rank + T{1}));
    std::vector<T> max(count, static_cast<T>(rank + T{3}));
    std::vector<T> min(count, static_cast<T>(last - rank + T{5}));
    comm.all_reduce(buffer_of(sum, dtype), ReduceOp::sum);
    comm.all_reduce(buffer_of(max, dtype), ReduceOp::max);
    comm.all_reduce(buffer_of(min, dtype), ReduceOp::min);
    EXPECT_EQ(sum, std::vector<T>(count, static_cast<T>(size * (size + T{1}) / T{2})));
    EXPECT_EQ(max, std::vector<T>(count, static_cast<T>(last + T{3})));
    EXPECT_EQ(min, std::vector<T>(count, T{5}));
  }
}

TEST_P(Operations, ReductionsOfEveryType) {
  expect_reductions<float>(comm(), DType::f32);
  expect_reductions<double>(comm(), DType::f64);
  expect_reductions<std::int32_t>(comm(), DType::i32);
  expect_reductions<std::int64_t>(comm(), DType::i64);
  expect_reductions<std::uint64_t>(comm(), DType::u64);
  expect_reductions<std::uint8_t>(comm(), DType::u8);
}

TEST_P(Operations, ReductionsKeepTheWholeRangeOfTheType) {
  const std::uint64_t huge = std::numeric_limits<std::uint64_t>::max();
  std::vector<std::uint64_t> unsigned_max{comm().rank() == 0 ? huge : 0};
  comm().all_reduce(buffer_of(unsigned_max, DType::u64), ReduceOp::max);
  EXPECT_EQ(unsigned_max[0], huge);
  std::vector<std::int64_t> exact{(std::int64_t{1} << 60) + comm().rank()};
  comm().all_reduce_sum(std::span<std::int64_t>(exact));
  EXPECT_EQ(exact[0], (std::int64_t{1} << 60) * comm().size() + rank_sum());
}

TEST_P(Operations, ReductionOfMoreThanOnePiece) {
  // 2 MiB a piece: five whole pieces of doubles and three elements more.
  const std::size_t count = 5 * (std::size_t{1} << 18) + 3;
  ASSERT_GT(count, std::size_t{1} << 20);
  std::vector<double> values(count);
  for (std::size_t i = 0; i < count; ++i) {
    values[i] = static_cast<double>(i) + static_cast<double>(comm().rank());
  }
  comm().all_reduce_sum(std::span<double>(values));
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const double expected =
        static_cast<double>(i) * comm().size() + static_cast<double>(rank_sum());
    if (values[i] != expected) ++wrong;
  }
  EXPECT_EQ(wrong, 0u);
}

TEST_P(Operations, BroadcastFromEveryRank) {
  for (int root = 0; root < comm().size(); ++root) {
    std::vector<std::int32_t> values(5, comm().rank() == root ? 100 + root : -1);
    comm().broadcast(buffer_of(values, DType::i32), root);
    EXPECT_EQ(values, std::vector<std::int32_t>(5, 100 + root));
  }
  std::vector<std::uint16_t> halves(3, static_cast<std::uint16_t>(comm().rank() == 0 ? 0x3f80 : 0));
  comm().broadcast(buffer_of(halves, DType::bf16), 0);
  EXPECT_EQ(halves, std::vector<std::uint16_t>(3, 0x3f80));
  std::vector<float> none;
  EXPECT_NO_THROW(comm().broadcast(buffer_of(none, DType::f32), 0));
}

TEST_P(Operations, BroadcastOfMoreThanOnePiece) {
  const std::size_t count = (std::size_t{16} << 20) + 5;
  const int root = comm().size() - 1;
  std::vector<std::uint8_t> values(count);
  if (comm().rank() == root) {
    for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<std::uint8_t>(i % 251);
  }
  comm().broadcast(buffer_of(values, DType::u8), root);
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < count; ++i) wrong += values[i] != i % 251;
  EXPECT_EQ(wrong, 0u);
}

TEST_P(Operations, GatherOfUnevenContributions) {
  // Rank r gives r elements: rank 0 nothing, and the total has no common divisor with anything.
  std::vector<std::int32_t> mine(static_cast<std::size_t>(comm().rank()), comm().rank());
  const std::vector<std::int32_t> all = comm().gather(std::span<const std::int32_t>(mine));
  std::vector<std::int32_t> expected;
  for (int rank = 0; rank < comm().size(); ++rank) {
    expected.insert(expected.end(), static_cast<std::size_t>(rank), rank);
  }
  EXPECT_EQ(all, expected);
  EXPECT_TRUE(comm().gather(std::span<const double>()).empty());
  const std::vector<double> one{0.5 * comm().rank()};
  EXPECT_EQ(comm().gather(std::span<const double>(one)).back(), 0.5 * (comm().size() - 1));
  const std::vector<std::int64_t> big{std::int64_t{1} << 40};
  EXPECT_EQ(comm().gather(std::span<const std::int64_t>(big)),
            std::vector<std::int64_t>(static_cast<std::size_t>(comm().size()), big[0]));
}

TEST_P(Operations, GatherBeyondTheOneCallLimit) {
  // 40 MB from the first rank, 30 MB from the last, a little from those between.
  const bool first = comm().rank() == 0;
  const bool last = comm().rank() == comm().size() - 1;
  const std::size_t length = first ? 40'000'001 : last ? 30'000'003 : 17;
  const std::vector<std::byte> mine(length, static_cast<std::byte>(comm().rank() + 1));
  const std::vector<std::byte> all = comm().all_gather(mine);
  const std::vector<std::int64_t> lengths = comm().gather(
      std::span<const std::int64_t>(std::vector<std::int64_t>{static_cast<std::int64_t>(length)}));
  std::size_t at = 0;
  for (std::size_t rank = 0; rank < lengths.size(); ++rank) {
    const auto begin = all.begin() + static_cast<std::ptrdiff_t>(at);
    at += static_cast<std::size_t>(lengths[rank]);
    ASSERT_LE(at, all.size());
    EXPECT_EQ(std::count(begin, all.begin() + static_cast<std::ptrdiff_t>(at),
                         static_cast<std::byte>(rank + 1)),
              lengths[rank]);
  }
  EXPECT_EQ(at, all.size());
}

TEST_P(Operations, Texts) {
  const std::string mine(static_cast<std::size_t>(comm().rank()), 'x');
  const std::vector<std::string> all = comm().gather_text(mine);
  ASSERT_EQ(all.size(), static_cast<std::size_t>(comm().size()));
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    EXPECT_EQ(all[rank], std::string(rank, 'x'));
  }
  const int root = comm().size() - 1;
  const std::string secret("a\0b\xff", 4);
  EXPECT_EQ(comm().broadcast_text(comm().rank() == root ? secret : "mine", root), secret);
  EXPECT_EQ(comm().broadcast_text("", 0), "");
}

TEST_P(Operations, LargestAndSmallest) {
  EXPECT_EQ(comm().max(-1.5 * comm().rank()), 0.0);
  EXPECT_EQ(comm().min(10 - comm().rank()), 10 - (comm().size() - 1));
}

void expect_internal(const std::function<void()>& call, const std::string& text) {
  try {
    call();
    ADD_FAILURE() << "nothing was thrown; expected '" << text << "'";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::internal);
    EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
  }
}

TEST_P(Operations, WhatMpiCannotAddIsRefused) {
  std::vector<std::uint16_t> halves(4);
  for (const DType dtype : {DType::bf16, DType::f16}) {
    for (const ReduceOp op : {ReduceOp::sum, ReduceOp::max, ReduceOp::min}) {
      expect_internal([&] { comm().all_reduce(buffer_of(halves, dtype), op); }, "Accumulate in");
    }
  }
}

TEST_P(Operations, BadArgumentsAreRefused) {
  float value = 1;
  const HostBuffer good{&value, 1, DType::f32};
  expect_internal([&] { comm().broadcast(good, -1); }, "rank -1");
  expect_internal([&] { comm().broadcast(good, comm().size()); }, "broadcast from rank");
  const HostBuffer nowhere{nullptr, 3, DType::f32};
  expect_internal([&] { comm().all_reduce(nowhere, ReduceOp::sum); }, "without an address");
}

TEST_P(Operations, SplitByColorOrderedByKey) {
  // Odd and even ranks, in reverse order.
  const int size = comm().size();
  const auto part = comm().split(comm().rank() % 2, -comm().rank());
  ASSERT_NE(part, nullptr);
  const int members = (size + 1 - comm().rank() % 2) / 2;
  EXPECT_EQ(part->size(), members);
  EXPECT_EQ(part->rank(), members - 1 - comm().rank() / 2);
  const std::vector<std::int32_t> mine{comm().rank()};
  const std::vector<std::int32_t> all = part->gather(std::span<const std::int32_t>(mine));
  EXPECT_TRUE(std::is_sorted(all.rbegin(), all.rend()));
  EXPECT_EQ(all.size(), static_cast<std::size_t>(members));
}

TEST_P(Operations, SplitLeavesOutNegativeColors) {
  const bool last = comm().rank() == comm().size() - 1;
  const auto part = comm().split(last ? -1 : 0, comm().rank());
  EXPECT_EQ(part == nullptr, last);
  if (part) {
    EXPECT_EQ(part->size(), comm().size() - 1);
    std::vector<std::int64_t> one{1};
    part->all_reduce_sum(std::span<std::int64_t>(one));
    EXPECT_EQ(one[0], comm().size() - 1);
  }
}

TEST_P(Operations, ProgressIsNoCollective) {
  comm().reset_counters();
  if (comm().rank() == 0)
    for (int i = 0; i < 3; ++i) comm().progress();
  EXPECT_EQ(comm().counters().collectives, 0u);
  std::vector<std::int64_t> one{1};
  comm().all_reduce_sum(std::span<std::int64_t>(one));
  EXPECT_EQ(one[0], comm().size());
}

TEST_P(Operations, CountersCountWhatCrossesRanks) {
  comm().reset_counters();
  std::vector<double> values(1000);
  std::vector<double> none;
  comm().all_reduce_sum(std::span<double>(values));
  comm().all_reduce_sum(std::span<double>(none));
  comm().broadcast(buffer_of(values, DType::f64), 0);
  const std::vector<std::byte> mine(static_cast<std::size_t>(comm().rank()));
  comm().all_gather(mine);
  comm().barrier();
  const CommCounters counters = comm().counters();
  if (comm().size() == 1) {
    EXPECT_EQ(counters.collectives, 0u);
    EXPECT_EQ(counters.bytes, 0u);
  } else {
    EXPECT_EQ(counters.collectives, 4u);
    // 8000 each way; a gather also sends its length.
    EXPECT_EQ(counters.bytes, 8000u + 8000u + 8u + mine.size());
    EXPECT_GT(counters.seconds, 0.0);
  }
  comm().reset_counters();
  EXPECT_EQ(comm().counters().bytes, 0u);
}

TEST(World, IsSelfForOneRankAndMpiForSeveral) {
  Communicator& world = testing::world();
  EXPECT_EQ(world.name(), world.size() == 1 ? "self" : "mpi");
  const std::vector<std::int32_t> mine{world.rank()};
  std::vector<std::int32_t> ranks(static_cast<std::size_t>(world.size()));
  std::iota(ranks.begin(), ranks.end(), 0);
  EXPECT_EQ(world.gather(std::span<const std::int32_t>(mine)), ranks);
}

TEST(World, RanksOfOneNode) {
  // The launcher of the tests starts all ranks on this machine.
  EXPECT_EQ(testing::runtime().node_rank(), testing::world().rank());
  EXPECT_EQ(testing::runtime().node_size(), testing::world().size());
}

}  // namespace
}  // namespace espalier
