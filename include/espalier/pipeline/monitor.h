#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>

#include "espalier/calib/rounds.h"
#include "espalier/pipeline/run_directory.h"

namespace espalier {

/// Watches a run from the inside: which phase it is in, how long each took, whether somebody asked
/// it to stop, and a line at least every 60 s in long phases. Lives on every rank; only rank 0 has
/// a directory to write to.
class Monitor {
 public:
  /// `directory` is null on other ranks and for commands without a run directory. max_hours <= 0:
  /// no limit.
  Monitor(RunDirectory* directory, double max_hours);

  /// Begins a phase; its seconds are added up until the next one begins.
  void enter(const std::string& phase);
  void leave();
  /// Hooks for micro-batch rounds in the current phase.
  RoundHooks hooks();
  /// Looks for a STOP file and the time limit (rank 0), at most every 0.1 s.
  void poll();
  /// A heartbeat line when the last line is 60 s old.
  void progress(std::int64_t done, std::int64_t total, const std::string& unit);

  RunStatus& status() { return status_; }
  void write_status();
  /// Seconds per phase since the last call.
  std::map<std::string, double> take_seconds();
  double elapsed() const;

 private:
  using Clock = std::chrono::steady_clock;
  RunDirectory* directory_;
  double max_seconds_;
  RunStatus status_;
  Clock::time_point begin_ = Clock::now();
  Clock::time_point phase_begin_ = Clock::now();
  Clock::time_point last_poll_{};
  Clock::time_point last_line_ = Clock::now();
  Clock::time_point last_round_ = Clock::now();
  double slowest_round_ = 0;
  bool asked_ = false;
  bool status_failed_ = false;
  std::map<std::string, double> seconds_;
};

/// Largest resident memory of this process so far, bytes.
std::int64_t peak_memory_bytes();

/// Bytes this process has read through system calls so far, as the kernel counts them
/// (/proc/self/io); 0 where the kernel does not tell.
std::int64_t kernel_bytes_read();

}  // namespace espalier
