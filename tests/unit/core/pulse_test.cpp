#include "espalier/core/pulse.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

namespace espalier::pulse {
namespace {

void sleep_milliseconds(int n) { std::this_thread::sleep_for(std::chrono::milliseconds(n)); }

TEST(Pulse, CountsStepsOfAPhase) {
  enter("one");
  const std::uint64_t before = read().beats;
  EXPECT_EQ(read().phase, "one");
  EXPECT_FALSE(read().seen_before);
  EXPECT_EQ(read().waiting, Waiting::nothing);
  sleep_milliseconds(20);
  beat();
  EXPECT_EQ(read().beats, before + 1);
  EXPECT_GE(read().slowest_seconds, 0.02);
  enter("two");
  EXPECT_EQ(read().beats, before + 2);
  EXPECT_EQ(read().slowest_seconds, 0);
  enter("one");
  EXPECT_TRUE(read().seen_before);
  EXPECT_GE(read().slowest_seconds, 0.02);
}

TEST(Pulse, AWaitIsNoWork) {
  enter("wait");
  const double waited = read().waited_seconds;
  const std::uint64_t before = read().beats;
  {
    const Wait wait(Waiting::ranks);
    {
      const Wait inner(Waiting::reader);
      EXPECT_EQ(read().waiting, Waiting::ranks);
      sleep_milliseconds(20);
    }
    EXPECT_EQ(read().waiting, Waiting::ranks);
  }
  EXPECT_EQ(read().waiting, Waiting::nothing);
  EXPECT_GT(read().beats, before);
  EXPECT_GE(read().waited_seconds, waited + 0.02);
  EXPECT_LT(read().slowest_seconds, 0.02);
}

TEST(Pulse, OtherThreadsCountForNothing) {
  enter("others");
  const Reading before = read();
  std::thread([] {
    beat();
    const Wait wait(Waiting::reader);
    EXPECT_EQ(read().waiting, Waiting::nothing);
  }).join();
  EXPECT_EQ(read().beats, before.beats);
}

}  // namespace
}  // namespace espalier::pulse
