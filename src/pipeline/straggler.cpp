#include "espalier/pipeline/straggler.h"

#include <algorithm>
#include <vector>

namespace espalier {
namespace {

constexpr double kRatio = 2;
constexpr double kSeconds = 0.5;
constexpr double kNoWork = 0.001;  // of the slowest

}  // namespace

std::optional<Straggler> find_straggler(std::span<const double> busy_seconds, Work work) {
  const auto slowest = std::max_element(busy_seconds.begin(), busy_seconds.end());
  if (slowest == busy_seconds.end()) return std::nullopt;
  const double none = work == Work::for_all ? 0 : kNoWork * *slowest;
  std::vector<double> others;
  for (auto it = busy_seconds.begin(); it != busy_seconds.end(); ++it)
    if (it != slowest && *it > none) others.push_back(*it);
  if (others.empty()) return std::nullopt;
  // The lower of two in the middle: of two ranks the other one.
  const auto middle = others.begin() + static_cast<std::ptrdiff_t>((others.size() - 1) / 2);
  std::nth_element(others.begin(), middle, others.end());
  const double median = *middle;
  if (*slowest <= kRatio * median || *slowest - median < kSeconds) return std::nullopt;
  return Straggler{static_cast<int>(slowest - busy_seconds.begin()), *slowest, median};
}

}  // namespace espalier
