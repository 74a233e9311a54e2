#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "espalier/core/pulse.h"

namespace espalier {

/// One line of a rank about itself, in heartbeat/rank-NNNN of the run directory.
struct Heartbeat {
  std::string host;
  std::int64_t pid = 0;
  std::string phase;
  /// How often the rank wrote this line: its process runs.
  std::uint64_t signs = 0;
  /// Steps of its work (core/pulse.h).
  std::uint64_t beats = 0;
  pulse::Waiting waiting = pulse::Waiting::nothing;
  /// Longest that a step may take, by what this rank has seen.
  double deadline_seconds = 0;
  /// It has come to the end that HangJudge describes.
  bool hangs = false;
};
std::string heartbeat_text(const Heartbeat& heartbeat);
/// Nothing where the text is damaged or half written.
std::optional<Heartbeat> heartbeat_from(std::string_view text);

/// How long a step may take: `fixed` seconds; else five times the slowest one of this phase, at
/// least 60 s, and at least 300 s as long as the phase has never come to its end.
double step_deadline(const pulse::Reading& reading, std::optional<double> fixed);

/// Decides from the heartbeats of all ranks whether the run hangs, and who is to blame. A run hangs
/// when no rank has done a step for as long as its own deadline: one that waits in a collective is
/// fine as long as anybody works. Pure: time is what it is told has passed, so a process that was
/// suspended together with the others blames nobody.
class HangJudge {
 public:
  explicit HangJudge(int ranks) : ranks_(static_cast<std::size_t>(ranks)) {}

  /// What rank `rank` says now; nothing: it cannot be read. `seconds` have passed since the rank
  /// was looked at before.
  void see(int rank, std::optional<Heartbeat> heartbeat, double seconds);
  /// Forgets how long the others have been idle: nobody looked.
  void look_away(int self);

  /// Seconds since the rank did a step.
  double idle_seconds(int rank) const { return at(rank).idle; }
  /// Its process has not written its line for `seconds`: it is stopped, or its host does not work.
  bool is_silent(int rank, double seconds) const { return at(rank).silent >= seconds; }
  const std::optional<Heartbeat>& last_of(int rank) const { return at(rank).last; }

  /// Whether no rank does a step any more. `self` was watched all the time; the others since it
  /// had been idle for a quarter of its deadline.
  bool hangs(int self) const;

  struct Verdict {
    enum class Cause { silent, works, all_wait } cause = Cause::silent;
    std::vector<int> ranks;
  };
  /// Who keeps the others waiting: the silent ranks; else those that do not wait in a collective;
  /// else, all of them, each waiting for another.
  Verdict verdict(double silent_seconds) const;

 private:
  struct Rank {
    std::optional<Heartbeat> last;
    double idle = 0;
    double silent = 0;
  };
  const Rank& at(int rank) const { return ranks_.at(static_cast<std::size_t>(rank)); }

  std::vector<Rank> ranks_;
};

}  // namespace espalier
