#include "espalier/calib/adapt.h"

#include <cmath>

#include <gtest/gtest.h>

namespace espalier {
namespace {

CalibrationConfig two_domains(double a, double b, Adapt adapt = Adapt::loss_gap) {
  CalibrationConfig config;
  config.domains.resize(2);
  config.domains[0].weight = a;
  config.domains[1].weight = b;
  config.adapt = adapt;
  return config;
}

void expect_weights(const std::vector<double>& found, const std::vector<double>& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t i = 0; i < found.size(); ++i)
    EXPECT_NEAR(found[i], expected[i], 4 * 2.3e-16 * std::abs(expected[i])) << i;
}

TEST(AdaptedWeights, Table) {
  const double twice = std::log(2.0);
  // A domain whose perplexity has doubled weighs twice as much; the sum stays.
  expect_weights(adapted_weights(two_domains(1, 1), {{2, 3}, {2 + twice, 3}}), {4.0 / 3, 2.0 / 3});
  expect_weights(adapted_weights(two_domains(3, 1), {{2, 3}, {2, 3 + twice}}), {12.0 / 5, 8.0 / 5});
  // What has fallen counts as what stayed.
  expect_weights(adapted_weights(two_domains(1, 1), {{2, 3}, {1, 3}}), {1, 1});
  // A margin's loss may be negative.
  expect_weights(adapted_weights(two_domains(1, 1), {{-2, 3}, {-2 + twice, 3}}),
                 {4.0 / 3, 2.0 / 3});
  expect_weights(adapted_weights(two_domains(0, 5), {{2, 3}, {9, 3}}), {0, 5});
  expect_weights(adapted_weights(two_domains(0, 5), {{2, 3}, {2000, 3}}), {0, 5});
  expect_weights(adapted_weights(two_domains(1, 1), {{2, 3}, {2000, 3}}), {2, 0});
}

TEST(AdaptedWeights, AreTheConfiguredOnesWithoutLossesOrByDefault) {
  expect_weights(adapted_weights(two_domains(2, 7), {}), {2, 7});
  expect_weights(adapted_weights(two_domains(2, 7, Adapt::none), {{1, 1}, {5, 1}}), {2, 7});
}

}  // namespace
}  // namespace espalier
