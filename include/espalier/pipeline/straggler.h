#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "espalier/comm/communicator.h"

namespace espalier {

/// A rank that keeps the others waiting without standing still.
struct Straggler {
  int rank = 0;
  double seconds = 0;
  /// Of the others that had work.
  double median = 0;
  double ratio() const { return seconds / median; }
};

/// Whether a phase has work for every rank, or a rank may have been dealt none of it.
enum class Work { for_all, may_be_none };

/// The slowest rank of a phase, when it worked more than twice as long as the median of the other
/// ranks that had work, and at least half a second longer. `busy_seconds` has a number per rank:
/// time in the phase less what it waited for others. Where a rank may have had none, one that took
/// less than a thousandth of the slowest is taken to have had none; where all have work, such a
/// rank is what shows how slow the slowest is. Micro-batches are dealt so that a rank has at most
/// one more than another, which twice the median allows for.
std::optional<Straggler> find_straggler(std::span<const double> busy_seconds, Work work);

/// Warns of the ranks that the others wait for, iteration by iteration.
class Stragglers {
 public:
  explicit Stragglers(Communicator& world) : world_(world) {}

  /// `busy_seconds`: of this rank by phase, in the iteration but for what came after slicing, and
  /// of that in the one before. Rank 0 warns, once per phase and rank, and again every tenth time.
  /// Collective.
  void warn(std::int64_t iteration, std::map<std::string, double> busy_seconds);

 private:
  Communicator& world_;
  std::map<std::pair<std::string, int>, int> times_;  // that a phase had this rank last
};

}  // namespace espalier
