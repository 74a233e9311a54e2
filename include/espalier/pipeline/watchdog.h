#pragma once

#include <atomic>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>

#include "espalier/core/error.h"

namespace espalier {

/// Ends a run whose ranks do not get on, which no collective call ever would: one of them is
/// stopped, its host is gone, or it is at something that does not end. A thread of every rank
/// writes heartbeat/rank-NNNN of the run directory and, when its own rank has been idle for a
/// while, reads those of others (HangJudge). Three ranks look at all; the others look at these
/// three, and at all only when these are silent, so that the files that are read do not grow with
/// the square of the ranks.
///
/// When no rank does a step any more, every rank that still can writes the calls in which its main
/// thread is to hang/rank-NNNN.stack; one says which rank is to blame, writes it to status.json,
/// kills silent processes on its own host, does the last work, and leaves with 76, upon which the
/// launcher ends the rest. No collectives and no MPI: it works while the main thread is inside one.
class Watchdog {
 public:
  struct Options {
    /// Longest time that a step may take; 0: nobody watches; nothing: see step_deadline().
    std::optional<double> hang_timeout;
    /// Prints what ended the run; called by one rank.
    std::function<void(const Error&)> report;
  };

  Watchdog(int rank, int ranks, Options options);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  /// Makes heartbeat/, empty, and hang/, where the files of an earlier hang stay.
  /// Rank 0, before the others watch.
  static void prepare(const std::filesystem::path& run_directory);
  /// Whether this rank sees what rank 0 prepared.
  static bool can_watch(const std::filesystem::path& run_directory);
  /// From now on this rank watches and is watched. Throws where its heartbeat cannot be written.
  void watch(const std::filesystem::path& run_directory);

  /// What a rank of a run that hangs does last of all, from the watchdog's thread, for as long as
  /// this lives: its process ends when the work is done, or does not come to its end. One at a
  /// time; without a watchdog (null) nothing.
  class LastWork {
   public:
    LastWork(Watchdog* watchdog, std::function<void()> work);
    ~LastWork();
    LastWork(const LastWork&) = delete;
    LastWork& operator=(const LastWork&) = delete;

   private:
    Watchdog* watchdog_;
  };
  /// For the main thread before it reports an error: never returns where this process is being
  /// ended, which the error may come from, and which is reported already.
  void give_way() const;
  const std::optional<double>& hang_timeout() const { return options_.hang_timeout; }

 private:
  class Thread;
  void do_last_work();
  int rank_;
  int ranks_;
  Options options_;
  std::mutex last_work_mutex_;
  std::function<void()> last_work_;
  std::atomic<bool> ends_process_ = false;
  std::unique_ptr<Thread> thread_;
};

}  // namespace espalier
