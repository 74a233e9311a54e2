#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>

#include "espalier/comm/agreement.h"
#include "espalier/pipeline/run_directory.h"

namespace espalier {

/// Watches a run from the inside: which phase it is in, how long each took, whether somebody asked
/// it to stop, and a line at least every 60 s in long phases. Lives on every rank; only rank 0 has
/// a directory to write to.
///
/// The time limit is that of the whole run, from the monitor's birth. A request to stop takes
/// effect at the next agreement, and what lies between two of them can be long: one micro-batch, a
/// layer that is finished before a pass is paused, or reduce, rank, slice and save together. So the
/// longest time between two polls so far, or that is foreseen, must fit twice into what is left,
/// and a twentieth of the limit, at most a minute, for the job to end.
class Monitor {
 public:
  /// max_seconds <= 0: no limit.
  explicit Monitor(double max_seconds) : max_seconds_(max_seconds) {}
  /// From now on there is a run directory to look at and to report to. Rank 0 only.
  void watch(RunDirectory& directory);

  /// Begins a phase; its seconds are added up until the next one begins.
  void enter(const std::string& phase);
  void leave();
  /// Hooks for the rounds of the current phase, which counts in `unit`.
  RoundHooks hooks(const std::string& unit = "micro-batches");
  /// Looks for a STOP file and the time limit (rank 0), at most every 0.1 s.
  void poll();
  /// The next poll may be so far away: counts like one that was.
  void foresee(double seconds);
  /// A line when the last one is 60 s old; a terminal gets a bar instead. total = 0: not known.
  void progress(std::int64_t done, std::int64_t total, const std::string& unit);

  RunStatus& status() { return status_; }
  void write_status();
  /// Seconds per phase since the last call.
  std::map<std::string, double> take_seconds();
  /// Of this rank alone, since the last call: seconds per phase less those that it waited for other
  /// ranks.
  std::map<std::string, double> take_busy_seconds();
  double elapsed() const;

 private:
  using Clock = std::chrono::steady_clock;
  RunDirectory* directory_ = nullptr;
  double max_seconds_;
  RunStatus status_;
  Clock::time_point begin_ = Clock::now();
  Clock::time_point phase_begin_ = Clock::now();
  Clock::time_point last_poll_{};
  Clock::time_point last_line_ = Clock::now();
  Clock::time_point last_drawn_{};
  Clock::time_point last_look_ = Clock::now();
  double longest_unwatched_ = 0;  // seconds between two polls, foreseen ones included
  bool asked_ = false;
  bool status_failed_ = false;
  double waited_before_ = 0;  // when the phase began
  std::map<std::string, double> seconds_;
  std::map<std::string, double> busy_seconds_;
};

/// "load [=====     ] 3/17 parts, 2.1/s, eta 6.7 s", at most `columns` characters; without bar and
/// time left where total is 0.
std::string progress_line(const std::string& phase, std::int64_t done, std::int64_t total,
                          const std::string& unit, double seconds, std::size_t columns);

/// Bytes this process has read through system calls so far, as the kernel counts them
/// (/proc/self/io); 0 where the kernel does not tell.
std::int64_t kernel_bytes_read();

}  // namespace espalier
