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

/// With start 0 these are the products that they always were, to the bit.
double cumulative(const PruneConfig& prune, double start, double target, double i, double n) {
  const double x = i / n;
  const double way = target - start;
  switch (prune.shape) {
    case ScheduleShape::linear:
      return start + way * x;
    case ScheduleShape::gisp:
      return start + way * (i - 1) / (n - 1);
    case ScheduleShape::cosine:
      return start + way * (1 - std::cos(std::numbers::pi * x)) / 2;
    case ScheduleShape::exponential:
      return start + way * exponential_shape(prune.rate, x);
    case ScheduleShape::geometric:
      return 1 - (1 - start) * std::pow((1 - target) / (1 - start), x);
  }
  return target;
}

double checked_target(const PruneConfig& prune) {
  if (!prune.target)
    throw Error(ExitCode::config, "prune.target is absent", "it says how much is removed",
                "set it to a ratio from 0 to 1");
  require_ratio(*prune.target);
  return *prune.target;
}

}  // namespace

double scheduled_target(const PruneConfig& prune, double start, std::int64_t iteration) {
  const double target = checked_target(prune);
  ESPALIER_CHECK(prune.iterations >= 1 && iteration >= 0 && start >= 0 && start <= 1,
                 fmt::format("iteration {} of {} from {}", iteration, prune.iterations, start));
  if (iteration == 0) return start;
  // Exactly, whatever the shape rounds to; and nothing comes back where the start is beyond it.
  if (iteration >= prune.iterations || start >= target) return std::max(start, target);
  const double now = cumulative(prune, start, target, static_cast<double>(iteration),
                                static_cast<double>(prune.iterations));
  return std::clamp(now, start, target);
}

void require_continuable(const PruneConfig& prune, double start, std::int64_t done,
                         double went_to) {
  const double target = checked_target(prune);
  const bool over = done >= prune.iterations;
  const double next = over ? std::max(start, target) : scheduled_target(prune, start, done + 1);
  if (next < went_to)
    throw Error(
        ExitCode::config,
        fmt::format("prune.target {} in {} iterations: iteration {} would go to {:.6g}, and the "
                    "run went to {:.6g} in iteration {}",
                    target, prune.iterations, std::min(done + 1, prune.iterations), next, went_to,
                    done),
        "removed stays removed",
        "Raise prune.target or lower prune.iterations. A smaller model is had with 'espalier "
        "export RUN --sparsity X'; a run on an export begins its schedule where the export is.");
  if (over && next > went_to)
    throw Error(ExitCode::config,
                fmt::format("prune.target {}: the run has done {} of {} iterations and went to "
                            "{:.6g}",
                            target, done, prune.iterations, went_to),
                "no iteration is left that could go further",
                fmt::format("Raise prune.iterations above {} as well (--set prune.iterations=N "
                            "--allow-change prune.iterations).",
                            done));
}

}  // namespace espalier
