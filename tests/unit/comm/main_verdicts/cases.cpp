#include <stdexcept>

#include <gtest/gtest.h>

#include "support/mpi_test_main.h"

namespace {

bool on_rank_one() { return espalier::testing::world().rank() == 1; }

TEST(Pass, One) { EXPECT_EQ(espalier::testing::world().size(), 2); }
TEST(Pass, Two) { espalier::testing::world().barrier(); }
TEST(FailOnRankOne, Only) { EXPECT_FALSE(on_rank_one()); }

TEST(ThrowOnRankOne, Only) {
  if (on_rank_one()) throw std::runtime_error("thrown on purpose");
}

TEST(SkipEverywhere, Only) { GTEST_SKIP() << "nothing to do here"; }

TEST(SkipOnRankOne, Only) {
  if (on_rank_one()) GTEST_SKIP() << "not on this rank";
}

}  // namespace
