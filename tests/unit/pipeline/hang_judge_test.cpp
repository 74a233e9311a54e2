#include "espalier/pipeline/hang_judge.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "espalier/pipeline/straggler.h"

namespace espalier {
namespace {

using Cause = HangJudge::Verdict::Cause;
using pulse::Waiting;

TEST(Heartbeat, ComesBackFromItsText) {
  const Heartbeat h{"h\xff\n", 12, "hash inputs", 7, 8, Waiting::ranks, 2.5, true};
  const std::string text = heartbeat_text(h);
  const auto back = heartbeat_from(text + "\nrest of a longer one");
  ASSERT_TRUE(back);
  EXPECT_EQ(back->pid, 12);
  EXPECT_EQ(back->phase, "hash inputs");
  EXPECT_EQ(back->signs, 7U);
  EXPECT_EQ(back->beats, 8U);
  EXPECT_EQ(back->waiting, Waiting::ranks);
  EXPECT_EQ(back->deadline_seconds, 2.5);
  EXPECT_TRUE(back->hangs);
  for (std::size_t n = 0; n < text.size(); ++n)
    EXPECT_FALSE(heartbeat_from(text.substr(0, n))) << n;
  for (const char* damaged : {"", "null", "[]", "{}", R"({"host":1})", "\xff"})
    EXPECT_FALSE(heartbeat_from(damaged)) << damaged;
}

TEST(StepDeadline, IsFixedOrLearned) {
  pulse::Reading reading;
  EXPECT_EQ(step_deadline(reading, 7.0), 7);
  EXPECT_EQ(step_deadline(reading, {}), 300);
  reading.slowest_seconds = 100;
  EXPECT_EQ(step_deadline(reading, {}), 500);
  reading.seen_before = true;
  EXPECT_EQ(step_deadline(reading, {}), 500);
  reading.slowest_seconds = 3;
  EXPECT_EQ(step_deadline(reading, {}), 60);
}

/// A world whose rank 0 is the one that watches; a tick is a second.
class World {
 public:
  explicit World(int ranks) : judge(ranks), hearts(static_cast<std::size_t>(ranks)) {
    for (Heartbeat& heart : hearts) heart.deadline_seconds = 10;
  }

  /// Lets time pass while `working` ranks do steps and all but the `stopped` ones live.
  void pass(int seconds, const std::vector<int>& working, const std::vector<int>& stopped = {}) {
    const auto is_in = [](int rank, const std::vector<int>& ranks) {
      return std::find(ranks.begin(), ranks.end(), rank) != ranks.end();
    };
    for (int s = 0; s < seconds; ++s)
      for (int rank = 0; rank < static_cast<int>(hearts.size()); ++rank) {
        Heartbeat& heart = hearts[static_cast<std::size_t>(rank)];
        if (!is_in(rank, stopped)) ++heart.signs;
        if (is_in(rank, working)) ++heart.beats;
        judge.see(rank, heart, 1);
      }
  }

  HangJudge judge;
  std::vector<Heartbeat> hearts;
};

TEST(HangJudge, OneThatWorksIsEnough) {
  World world(3);
  world.hearts[0].waiting = world.hearts[1].waiting = Waiting::ranks;
  world.pass(100, {2});
  EXPECT_FALSE(world.judge.hangs(0));
  EXPECT_EQ(world.judge.idle_seconds(0), 99);
  world.pass(7, {});
  EXPECT_FALSE(world.judge.hangs(0)) << "it may do a step of 7 s";
  world.pass(1, {});
  EXPECT_TRUE(world.judge.hangs(0));
}

TEST(HangJudge, EveryRankHasItsOwnDeadline) {
  World world(2);
  world.hearts[1].deadline_seconds = 100;
  world.pass(70, {});
  EXPECT_FALSE(world.judge.hangs(0));
  world.pass(10, {});
  EXPECT_TRUE(world.judge.hangs(0));
}

TEST(HangJudge, BlamesTheSilentThenTheWorkingThenAll) {
  World world(3);
  for (Heartbeat& heart : world.hearts) heart.waiting = Waiting::ranks;
  world.pass(20, {});
  EXPECT_EQ(world.judge.verdict(5).cause, Cause::all_wait);
  EXPECT_EQ(world.judge.verdict(5).ranks, (std::vector{0, 1, 2}));
  world.hearts[2].waiting = Waiting::nothing;
  world.pass(20, {});
  EXPECT_EQ(world.judge.verdict(5).cause, Cause::works);
  EXPECT_EQ(world.judge.verdict(5).ranks, std::vector{2});
  world.pass(20, {}, {1});
  EXPECT_EQ(world.judge.verdict(5).cause, Cause::silent);
  EXPECT_EQ(world.judge.verdict(5).ranks, std::vector{1});
}

TEST(HangJudge, WaitingForTheReaderOfTheOutputIsNoHang) {
  World world(2);
  world.hearts[1].waiting = Waiting::reader;
  world.pass(1000, {});
  EXPECT_FALSE(world.judge.hangs(0));
  world.pass(1000, {}, {1});
  EXPECT_TRUE(world.judge.hangs(0)) << "its process is stopped as well";
}

TEST(HangJudge, WhoLooksAgainBeginsAnew) {
  World world(2);
  world.pass(50, {});
  world.judge.look_away(0);
  EXPECT_FALSE(world.judge.hangs(0));
  EXPECT_EQ(world.judge.idle_seconds(1), 0);
  EXPECT_EQ(world.judge.idle_seconds(0), 49) << "of itself it knows";
}

TEST(HangJudge, ARankWithoutHeartbeatIsSilent) {
  HangJudge judge(2);
  Heartbeat mine;
  mine.deadline_seconds = 10;
  mine.waiting = Waiting::ranks;
  for (int s = 0; s < 20; ++s) {
    ++mine.signs;
    judge.see(0, mine, 1);
    judge.see(1, std::nullopt, 1);
  }
  EXPECT_TRUE(judge.hangs(0));
  EXPECT_EQ(judge.verdict(5).ranks, std::vector{1});
  EXPECT_FALSE(judge.last_of(1));
}

TEST(FindStraggler, Table) {
  struct Row {
    std::vector<double> busy;
    int rank;  // -1: none
    double ratio = 0;
    Work work = Work::may_be_none;
  };
  const Row rows[] = {
      {{}, -1},
      {{5}, -1},
      {{0, 0, 0}, -1},
      {{1, 5}, 1, 5},
      {{10, 1, 1, 1}, 0, 10},
      {{1, 1.9, 1, 1}, -1},                             // not twice
      {{0.1, 0.5, 0.1}, -1},                            // noise
      {{0, 5, 0}, -1},                                  // the others had no work
      {{0, 5, 1}, 1, 5},                                // one of them had some
      {{1, 2, 3, 4, 50}, 4, 25},                        // the lower of two in the middle
      {{100, 100, 1, 1, 1}, 0, 100},                    // the first of two
      {{0, 600, 0.001}, -1},                            // nobody else has more than a thousandth
      {{0.002, 600, 0.001}, 1, 600000, Work::for_all},  // a file system that stands nearly still
      {{0.5, 0.1}, -1, 0, Work::for_all},
  };
  for (const Row& row : rows) {
    const auto found = find_straggler(row.busy, row.work);
    EXPECT_EQ(found ? found->rank : -1, row.rank) << ::testing::PrintToString(row.busy);
    if (found) {
      EXPECT_NEAR(found->ratio(), row.ratio, 1e-12);
    }
  }
}

}  // namespace
}  // namespace espalier
