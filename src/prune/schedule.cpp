#include <algorithm>
#include <cmath>
#include <numbers>

#include <fmt/format.h>

#include "budget.h"
#include "espalier/core/error.h"
#include "espalier/prune/plan.h"

namespace espalier {
namespace {

/// (e^(rate x) - 1) / (e^rate - 1) in the form that does not overflow; the limit x at rate 0.
double exponential_shape(double rate, double x) {
  if (rate == 0) return x;
  if (rate > 0) return std::exp(rate * (x - 1)) * std::expm1(-rate * x) / std::expm1(-rate);
  return std::expm1(rate * x) / std::expm1(rate);
}

double cumulative(const PruneConfig& prune, double target, double i, double n) {
  const double x = i / n;
  switch (prune.shape) {
    case ScheduleShape::linear:
      return target * x;
    case ScheduleShape::gisp:
      return target * (i - 1) / (n - 1);
    case ScheduleShape::cosine:
      return target * (1 - std::cos(std::numbers::pi * x)) / 2;
    case ScheduleShape::exponential:
      return target * exponential_shape(prune.rate, x);
    case ScheduleShape::geometric:
      return 1 - std::pow(1 - target, x);
  }
  return target;
}

}  // namespace

double scheduled_target(const PruneConfig& prune, std::int64_t iteration) {
  if (!prune.target)
    throw Error(ExitCode::config, "prune.target is absent", "it says how much is removed",
                "set it to a ratio from 0 to 1");
  const double target = *prune.target;
  require_ratio(target);
  ESPALIER_CHECK(prune.iterations >= 1 && iteration >= 0,
                 fmt::format("iteration {} of {}", iteration, prune.iterations));
  if (iteration == 0) return 0;
  if (iteration >= prune.iterations) return target;  // exactly, whatever the shape rounds to
  const double now = cumulative(prune, target, static_cast<double>(iteration),
                                static_cast<double>(prune.iterations));
  return std::clamp(now, 0.0, target);
}

}  // namespace espalier
