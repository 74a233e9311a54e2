#include <cmath>
#include <numbers>

#include <fmt/format.h>
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
  EXPECT_DOUBLE_EQ(scheduled_target(linear, 0, 1), 0.15);
  EXPECT_DOUBLE_EQ(scheduled_target(linear, 0, 3), 0.45);
  const PruneConfig gisp = schedule(ScheduleShape::gisp, 0.6, 4);
  EXPECT_EQ(scheduled_target(gisp, 0, 1), 0);
  EXPECT_DOUBLE_EQ(scheduled_target(gisp, 0, 2), 0.2);
  EXPECT_EQ(scheduled_target(schedule(ScheduleShape::gisp, 0.6, 1), 0, 1), 0.6);
  const PruneConfig cosine = schedule(ScheduleShape::cosine, 0.8, 4);
  EXPECT_NEAR(scheduled_target(cosine, 0, 2), 0.4, 1e-15);
  EXPECT_NEAR(scheduled_target(cosine, 0, 1), 0.4 * (1 - std::sqrt(0.5)), 1e-15);
  // The kept share falls by one factor: 1, 0.5, 0.25.
  const PruneConfig geometric = schedule(ScheduleShape::geometric, 0.75, 2);
  EXPECT_NEAR(scheduled_target(geometric, 0, 1), 0.5, 1e-15);
  PruneConfig exponential = schedule(ScheduleShape::exponential, 0.5, 2);
  exponential.rate = 2;  // (e - 1) / (e^2 - 1) = 1 / (e + 1)
  EXPECT_NEAR(scheduled_target(exponential, 0, 1), 0.5 / (std::exp(1.0) + 1), 1e-15);
  exponential.rate = -2;
  EXPECT_NEAR(scheduled_target(exponential, 0, 1), 0.5 / (std::exp(-1.0) + 1), 1e-15);
  exponential.rate = 0;
  EXPECT_DOUBLE_EQ(scheduled_target(exponential, 0, 1), 0.25);
}

TEST(Schedule, AllShapesRiseToExactlyTheTarget) {
  for (ScheduleShape shape : {ScheduleShape::linear, ScheduleShape::gisp, ScheduleShape::cosine,
                              ScheduleShape::exponential, ScheduleShape::geometric})
    for (double target : {0.0, 0.1, 0.7, 1.0})
      for (double rate : {-900.0, -3.0, 3.0, 900.0})
        for (std::int64_t n : {1, 2, 7, 112}) {
          PruneConfig prune = schedule(shape, target, n);
          prune.rate = rate;
          EXPECT_EQ(scheduled_target(prune, 0, 0), 0);
          double before = 0;
          for (std::int64_t i = 1; i <= n; ++i) {
            const double now = scheduled_target(prune, 0, i);
            EXPECT_GE(now, before);
            EXPECT_LE(now, target);
            before = now;
          }
          EXPECT_EQ(before, target);
          EXPECT_EQ(scheduled_target(prune, 0, n + 3), target);
        }
}

TEST(Schedule, BeginsAtWhatTheSourceHasLost) {
  // From 0.2 to 0.6 in 4: a way of 0.4.
  const PruneConfig linear = schedule(ScheduleShape::linear, 0.6, 4);
  EXPECT_EQ(scheduled_target(linear, 0.2, 0), 0.2);
  EXPECT_NEAR(scheduled_target(linear, 0.2, 1), 0.3, 1e-15);
  EXPECT_NEAR(scheduled_target(linear, 0.2, 2), 0.4, 1e-15);
  EXPECT_NEAR(scheduled_target(linear, 0.2, 3), 0.5, 1e-15);
  EXPECT_EQ(scheduled_target(linear, 0.2, 4), 0.6);
  const PruneConfig gisp = schedule(ScheduleShape::gisp, 0.6, 5);
  EXPECT_EQ(scheduled_target(gisp, 0.2, 1), 0.2);
  EXPECT_NEAR(scheduled_target(gisp, 0.2, 2), 0.3, 1e-15);
  EXPECT_NEAR(scheduled_target(gisp, 0.2, 4), 0.5, 1e-15);
  EXPECT_EQ(scheduled_target(schedule(ScheduleShape::gisp, 0.6, 1), 0.2, 1), 0.6);
  const PruneConfig cosine = schedule(ScheduleShape::cosine, 0.6, 4);
  EXPECT_NEAR(scheduled_target(cosine, 0.2, 1), 0.2 + 0.2 * (1 - std::sqrt(0.5)), 1e-15);
  EXPECT_NEAR(scheduled_target(cosine, 0.2, 2), 0.4, 1e-15);
  PruneConfig exponential = schedule(ScheduleShape::exponential, 0.6, 2);
  exponential.rate = 2;
  EXPECT_NEAR(scheduled_target(exponential, 0.2, 1), 0.2 + 0.4 / (std::exp(1.0) + 1), 1e-15);
  // Kept 0.8, 0.4, 0.2: halved each time.
  const PruneConfig geometric = schedule(ScheduleShape::geometric, 0.8, 2);
  EXPECT_NEAR(scheduled_target(geometric, 0.2, 1), 0.6, 1e-15);
  EXPECT_EQ(scheduled_target(geometric, 0.2, 2), 0.8);
}

TEST(Schedule, FromAnyStartItRisesToExactlyTheTarget) {
  for (ScheduleShape shape : {ScheduleShape::linear, ScheduleShape::gisp, ScheduleShape::cosine,
                              ScheduleShape::exponential, ScheduleShape::geometric})
    for (double start : {0.0, 0.1, 1.0 / 3, 0.999, 1.0})
      for (double target : {0.1, 0.7, 1.0})
        for (std::int64_t n : {1, 3, 40}) {
          const PruneConfig prune = schedule(shape, target, n);
          double before = start;
          EXPECT_EQ(scheduled_target(prune, start, 0), start);
          for (std::int64_t i = 1; i <= n; ++i) {
            const double now = scheduled_target(prune, start, i);
            EXPECT_GE(now, before);
            EXPECT_LE(now, std::max(start, target));
            before = now;
          }
          EXPECT_EQ(before, std::max(start, target));
        }
}

// The formulas of an unpruned start, written down a second time: plans of runs made before must
// come out again.
TEST(Schedule, AnUnprunedStartChangesNoBit) {
  for (double target : {0.1, 0.37, 0.55, 0.9})
    for (std::int64_t n : {2, 3, 7, 112})
      for (std::int64_t i = 1; i < n; ++i) {
        const auto k = static_cast<double>(i);
        const auto m = static_cast<double>(n);
        EXPECT_EQ(scheduled_target(schedule(ScheduleShape::linear, target, n), 0, i),
                  target * (k / m));
        EXPECT_EQ(scheduled_target(schedule(ScheduleShape::gisp, target, n), 0, i),
                  target * (k - 1) / (m - 1));
        EXPECT_EQ(scheduled_target(schedule(ScheduleShape::cosine, target, n), 0, i),
                  target * (1 - std::cos(std::numbers::pi * (k / m))) / 2);
        EXPECT_EQ(scheduled_target(schedule(ScheduleShape::geometric, target, n), 0, i),
                  1 - std::pow(1 - target, k / m));
      }
}

TEST(Schedule, WhatARunThatContinuesMayChange) {
  struct Row {
    double target;
    std::int64_t iterations;
    std::int64_t done;
    double went_to;
    const char* word;  // of the message; nullptr = it continues
  };
  const Row rows[] = {
      {0.4, 4, 2, 0.2, nullptr},  // as it was
      {0.4, 4, 4, 0.4, nullptr},  // finished
      {0.6, 6, 4, 0.4, nullptr},  // further, with iterations left
      {0.6, 4, 4, 0.4, "Raise prune.iterations above 4"},
      {0.6, 4, 2, 0.2, nullptr},  // 0.45, 0.6
      {0.3, 4, 4, 0.4, "the run went to 0.4"},
      {0.2, 4, 2, 0.2, "went to 0.2 in iteration 2"},  // 0.15 would be next
      {0.4, 20, 4, 0.4, "would go to 0.1"},
      {0.4, 3, 2, 0.2, nullptr},  // sooner
      {0.4, 2, 3, 0.3, "Raise prune.iterations above 3"},
  };
  for (const Row& row : rows) {
    const PruneConfig prune = schedule(ScheduleShape::linear, row.target, row.iterations);
    std::string message;
    try {
      require_continuable(prune, 0, row.done, row.went_to);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::config);
      message = error.what();
    }
    const std::string name = fmt::format("{} in {} after {}", row.target, row.iterations, row.done);
    if (row.word == nullptr)
      EXPECT_EQ(message, "") << name;
    else
      EXPECT_NE(message.find(row.word), std::string::npos) << name << ": " << message;
  }
}

TEST(Schedule, WithoutATargetOrWithAWrongOne) {
  PruneConfig prune;
  EXPECT_THROW(scheduled_target(prune, 0, 1), Error);
  prune.target = 1.2;
  EXPECT_THROW(scheduled_target(prune, 0, 1), Error);
}

}  // namespace
}  // namespace espalier
