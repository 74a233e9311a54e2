#include "espalier/pipeline/straggler.h"

#include <algorithm>
#include <array>
#include <vector>

#include "espalier/core/host.h"
#include "espalier/core/log.h"

namespace espalier {
namespace {

constexpr double kRatio = 2;
constexpr double kSeconds = 0.5;
constexpr double kNoWork = 0.001;  // of the slowest

struct Phase {
  const char* name;
  Work work;
};
constexpr std::array<Phase, 4> kPhases{{{"load", Work::for_all},
                                        {"calibrate", Work::may_be_none},
                                        {"slice", Work::for_all},
                                        {"evaluate", Work::may_be_none}}};

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

void Stragglers::warn(std::int64_t iteration, std::map<std::string, double> busy_seconds) {
  std::vector<double> mine;
  mine.reserve(kPhases.size());
  for (const Phase& phase : kPhases) mine.push_back(busy_seconds[phase.name]);
  const std::vector<double> all = world_.gather(mine);
  for (std::size_t p = 0; p < kPhases.size(); ++p) {
    std::vector<double> of_phase;
    for (std::size_t at = p; at < all.size(); at += kPhases.size()) of_phase.push_back(all[at]);
    const std::optional<Straggler> slow = find_straggler(of_phase, kPhases[p].work);
    if (!slow || times_[{kPhases[p].name, slow->rank}]++ % 10 != 0) continue;
    const std::string host = world_.broadcast_text(host_name(), slow->rank);
    if (world_.rank() == 0)
      log::warning(
          "iteration {}: rank {} on {} was busy {:.1f} times as long in phase {} as the median of "
          "the others ({:.1f} s, {:.1f} s), which wait for it",
          iteration, slow->rank, host, slow->ratio(), kPhases[p].name, slow->seconds, slow->median);
  }
}

}  // namespace espalier
