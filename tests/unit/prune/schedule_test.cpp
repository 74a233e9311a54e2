#include <cmath>

#include <gtest/gtest.h>

#include "espalier/core/error.h"
#include "espalier/prune/plan.h"

namespace espalier {
namespace {

PruneConfig schedule(ScheduleShape shape, double target, std::int64_t n) {
  PruneConfig prune;
  prune.shape = shape;
  prune.target = target;
  prune.iterations = n;
  return prune;
}

TEST(Schedule, TablesByHand) {
  const PruneConfig linear = schedule(ScheduleShape::linear, 0.6, 4);
  EXPECT_DOUBLE_EQ(scheduled_target(linear, 1), 0.15);
  EXPECT_DOUBLE_EQ(scheduled_target(linear, 3), 0.45);
  const PruneConfig gisp = schedule(ScheduleShape::gisp, 0.6, 4);
  EXPECT_EQ(scheduled_target(gisp, 1), 0);
  EXPECT_DOUBLE_EQ(scheduled_target(gisp, 2), 0.2);
  EXPECT_EQ(scheduled_target(schedule(ScheduleShape::gisp, 0.6, 1), 1), 0.6);
  const PruneConfig cosine = schedule(ScheduleShape::cosine, 0.8, 4);
  EXPECT_NEAR(scheduled_target(cosine, 2), 0.4, 1e-15);
  EXPECT_NEAR(scheduled_target(cosine, 1), 0.4 * (1 - std::sqrt(0.5)), 1e-15);
  // The kept share falls by one factor: 1, 0.5, 0.25.
  const PruneConfig geometric = schedule(ScheduleShape::geometric, 0.75, 2);
  EXPECT_NEAR(scheduled_target(geometric, 1), 0.5, 1e-15);
  PruneConfig exponential = schedule(ScheduleShape::exponential, 0.5, 2);
  exponential.rate = 2;  // (e - 1) / (e^2 - 1) = 1 / (e + 1)
  EXPECT_NEAR(scheduled_target(exponential, 1), 0.5 / (std::exp(1.0) + 1), 1e-15);
  exponential.rate = -2;
  EXPECT_NEAR(scheduled_target(exponential, 1), 0.5 / (std::exp(-1.0) + 1), 1e-15);
  exponential.rate = 0;
  EXPECT_DOUBLE_EQ(scheduled_target(exponential, 1), 0.25);
}

TEST(Schedule, AllShapesRiseToExactlyTheTarget) {
  for (ScheduleShape shape : {ScheduleShape::linear, ScheduleShape::gisp, ScheduleShape::cosine,
                              ScheduleShape::exponential, ScheduleShape::geometric})
    for (double target : {0.0, 0.1, 0.7, 1.0})
      for (double rate : {-900.0, -3.0, 3.0, 900.0})
        for (std::int64_t n : {1, 2, 7, 112}) {
          PruneConfig prune = schedule(shape, target, n);
          prune.rate = rate;
          EXPECT_EQ(scheduled_target(prune, 0), 0);
          double before = 0;
          for (std::int64_t i = 1; i <= n; ++i) {
            const double now = scheduled_target(prune, i);
            EXPECT_GE(now, before);
            EXPECT_LE(now, target);
            before = now;
          }
          EXPECT_EQ(before, target);
          EXPECT_EQ(scheduled_target(prune, n + 3), target);
        }
}

TEST(Schedule, WithoutATargetOrWithAWrongOne) {
  PruneConfig prune;
  EXPECT_THROW(scheduled_target(prune, 1), Error);
  prune.target = 1.2;
  EXPECT_THROW(scheduled_target(prune, 1), Error);
}

}  // namespace
}  // namespace espalier
