#include "espalier/pipeline/watchdog.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdlib>
#include <ctime>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "espalier/core/host.h"
#include "espalier/core/paths.h"
#include "espalier/core/pulse.h"
#include "espalier/core/stack.h"
#include "espalier/core/text.h"
#include "espalier/pipeline/hang_judge.h"
#include "espalier/pipeline/run_directory.h"
#include "espalier/store/files.h"
#include "espalier/store/live_file.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr double kShortestTick = 0.05;
constexpr double kLongestTick = 5;
constexpr double kLastWordsSeconds = 5;

std::string rank_name(int rank) { return fmt::format("rank-{:04}", rank); }

/// Who looks at everybody: three ranks that are likely on different hosts.
std::vector<int> watchers_of(int ranks) {
  std::vector<int> watchers{0, ranks / 2, ranks - 1};
  watchers.erase(std::unique(watchers.begin(), watchers.end()), watchers.end());
  return watchers;
}

std::optional<Heartbeat> read_heartbeat(const fs::path& file) {
  try {
    return heartbeat_from(read_file(file, std::size_t{1} << 16));
  } catch (const Error&) {
    return std::nullopt;  // not there yet, or its host took it along
  }
}

/// Runs `work` on a thread of its own and goes on after at most `seconds`: what the main thread
/// holds, say the log, may never be let go.
void within(double seconds, std::function<void()> work) {
  auto done = std::make_shared<std::atomic<bool>>(false);
  std::thread([done, work = std::move(work)] {
    work();
    *done = true;
  }).detach();
  const auto end = Clock::now() + Seconds(seconds);
  while (!*done && Clock::now() < end) std::this_thread::sleep_for(std::chrono::milliseconds(10));
}

}  // namespace

class Watchdog::Thread {
 public:
  Thread(Watchdog& watchdog, const fs::path& run_directory)
      : watchdog_(watchdog),
        rank_(watchdog.rank_),
        ranks_(watchdog.ranks_),
        options_(watchdog.options_),
        directory_(run_directory),
        file_(heartbeat_path(rank_)),
        judge_(ranks_),
        watchers_(watchers_of(ranks_)) {
    self_.host = host_name();
    self_.pid = ::getpid();
    tick_ = std::clamp(options_.hang_timeout.value_or(8 * kLongestTick) / 8, kShortestTick,
                       kLongestTick);
    say();
    stack::watch_this_thread();
    // Signals are for the main thread.
    sigset_t all, before;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before);
    thread_ = std::thread([this] { watch_until_told(); });
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  ~Thread() {
    {
      const std::lock_guard lock(mutex_);
      ends_ = true;
    }
    told_.notify_all();
    thread_.join();
  }

 private:
  fs::path heartbeat_path(int rank) const { return directory_ / "heartbeat" / rank_name(rank); }

  void watch_until_told() {
    Clock::time_point before = Clock::now();
    std::unique_lock lock(mutex_);
    while (!told_.wait_for(lock, Seconds(tick_), [this] { return ends_; })) {
      const Clock::time_point now = Clock::now();
      // More than two ticks: this process was suspended, or the file system did not answer.
      look(std::min(Seconds(now - before).count(), 2 * tick_));
      before = now;
    }
  }

  void look(double seconds) {
    say();
    judge_.see(rank_, self_, seconds);
    if (judge_.idle_seconds(rank_) < self_.deadline_seconds / 4) return judge_.look_away(rank_);
    see(watchers_, seconds);
    const bool watched = std::any_of(watchers_.begin(), watchers_.end(),
                                     [this](int rank) { return !is_silent(rank); });
    const bool watches = is_watcher(rank_) || !watched;
    if (watches) see_rest(seconds);
    const bool called = std::any_of(watchers_.begin(), watchers_.end(), [this](int rank) {
      return judge_.last_of(rank) && judge_.last_of(rank)->hangs;
    });
    if (called || (watches && judge_.hangs(rank_))) end();
  }

  void say() {
    const pulse::Reading reading = pulse::read();
    self_.phase = reading.phase;
    self_.beats = reading.beats;
    self_.waiting = reading.waiting;
    self_.deadline_seconds = step_deadline(reading, options_.hang_timeout);
    ++self_.signs;
    file_.write(heartbeat_text(self_));
  }

  void see(const std::vector<int>& ranks, double seconds) {
    for (const int rank : ranks)
      if (rank != rank_) judge_.see(rank, read_heartbeat(heartbeat_path(rank)), seconds);
  }
  void see_rest(double seconds) {
    for (int rank = 0; rank < ranks_; ++rank)
      if (!is_watcher(rank)) see({rank}, seconds);
  }

  bool is_watcher(int rank) const {
    return std::find(watchers_.begin(), watchers_.end(), rank) != watchers_.end();
  }
  bool is_silent(int rank) const {
    return rank != rank_ && judge_.is_silent(rank, self_.deadline_seconds / 2);
  }

  /// The lowest rank that watches and answers.
  int reporter() const {
    for (const int rank : watchers_)
      if (!is_silent(rank)) return rank;
    return rank_;
  }

  [[noreturn]] void end() {
    watchdog_.ends_process_ = true;
    self_.hangs = true;
    say();
    const double idle = judge_.idle_seconds(rank_);
    stack::write(
        (directory_ / "hang" / (rank_name(rank_) + ".stack")).string(),
        fmt::format("{:%FT%TZ} rank {} of {} on {}, process {}, phase '{}', no step for {:.0f} s",
                    fmt::gmtime(std::time(nullptr)), rank_, ranks_, one_line(self_.host), self_.pid,
                    self_.phase, idle),
        std::min(tick_, 1.0));
    // The launcher ends this process when the reporter has left.
    if (reporter() != rank_)
      std::this_thread::sleep_for(Seconds(2 * kLastWordsSeconds + 4 * tick_));
    if (is_first_to_report()) {
      wait_for_stacks();
      const Error error = described();
      within(kLastWordsSeconds, [this, error] {
        options_.report(error);
        report_lone_failure(directory_, static_cast<int>(error.code()), error.what());
      });
      kill_silent();
    }
    leave();
  }

  /// The process ends with the last work: what that work lets the main thread go on with must come
  /// to nothing.
  [[noreturn]] void leave() {
    constexpr int kCode = static_cast<int>(ExitCode::peer_lost);
    std::thread([this] {
      watchdog_.do_last_work();
      ::_exit(kCode);
    }).detach();
    std::this_thread::sleep_for(Seconds(kLastWordsSeconds));
    ::_exit(kCode);
  }

  /// One that was stopped and wakes when the launcher ends it finds that all has been said.
  bool is_first_to_report() const {
    try {
      const LiveFile claim(directory_ / "heartbeat" / "reported");
      return true;
    } catch (const Error&) {
      return false;
    }
  }

  /// Every rank that answers notices within a few ticks and writes where it is.
  void wait_for_stacks() {
    const auto end = Clock::now() + Seconds(4 * tick_ + 1);
    const auto answers = [this](int rank) {
      if (rank == rank_ || is_silent(rank)) return true;
      const std::optional<Heartbeat> heartbeat = read_heartbeat(heartbeat_path(rank));
      return heartbeat && heartbeat->hangs;
    };
    for (int rank = 0; rank < ranks_; ++rank)
      while (!answers(rank) && Clock::now() < end)
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    std::this_thread::sleep_for(Seconds(std::min(tick_, 1.0)));
  }

  std::string rank_text(int rank) const {
    const std::optional<Heartbeat>& last = judge_.last_of(rank);
    if (!last) return fmt::format("rank {} (no heartbeat)", rank);
    return fmt::format("rank {} on {} (process {})", rank, one_line(last->host), last->pid);
  }

  Error described() const {
    using Cause = HangJudge::Verdict::Cause;
    const HangJudge::Verdict verdict = judge_.verdict(self_.deadline_seconds / 2);
    std::vector<std::string> names;
    for (const int rank : verdict.ranks) names.push_back(rank_text(rank));
    constexpr std::size_t kMost = 8;
    if (names.size() > kMost) {
      const std::size_t others = names.size() - kMost;
      names.resize(kMost);
      names.push_back(fmt::format("{} more", others));
    }
    const std::string why =
        verdict.cause == Cause::silent  ? "its process is stopped, or its host does not answer"
        : verdict.cause == Cause::works ? "it is at something that does not come to an end"
                                        : "every rank waits in a collective for another one";
    // What a silent rank said last is older than what this one waits for.
    const std::string phase =
        verdict.cause == Cause::works ? judge_.last_of(verdict.ranks.front())->phase : self_.phase;
    return Error(
        ExitCode::peer_lost,
        fmt::format("the run hangs{}: {} did nothing for {:.0f} s",
                    phase.empty() ? "" : " in phase '" + phase + "'", fmt::join(names, ", "),
                    judge_.idle_seconds(rank_)),
        fmt::format("{}; a step of this phase may take {:.0f} s", why, self_.deadline_seconds),
        "Start it again with the same command: the last commit stands. The files in hang/ of the "
        "run directory say where the ranks were; --hang-timeout SECONDS allows longer steps.",
        directory_.string());
  }

  void kill_silent() const {
    for (int rank = 0; rank < ranks_; ++rank) {
      const std::optional<Heartbeat>& last = judge_.last_of(rank);
      if (is_silent(rank) && last && last->host == self_.host && last->pid > 1)
        ::kill(static_cast<pid_t>(last->pid), SIGKILL);
    }
  }

  Watchdog& watchdog_;
  const int rank_;
  const int ranks_;
  const Options& options_;
  const fs::path directory_;
  LiveFile file_;
  HangJudge judge_;
  std::vector<int> watchers_;
  Heartbeat self_;
  double tick_;
  std::mutex mutex_;
  std::condition_variable told_;
  bool ends_ = false;
  std::thread thread_;
};

Watchdog::Watchdog(int rank, int ranks, Options options)
    : rank_(rank), ranks_(ranks), options_(std::move(options)) {}

Watchdog::~Watchdog() = default;

Watchdog::LastWork::LastWork(Watchdog* watchdog, std::function<void()> work) : watchdog_(watchdog) {
  if (watchdog_ == nullptr) return;
  const std::lock_guard lock(watchdog_->last_work_mutex_);
  watchdog_->last_work_ = std::move(work);
}

Watchdog::LastWork::~LastWork() {
  if (watchdog_ == nullptr) return;
  const std::lock_guard lock(watchdog_->last_work_mutex_);
  watchdog_->last_work_ = nullptr;
}

void Watchdog::do_last_work() {
  const std::lock_guard lock(last_work_mutex_);
  if (last_work_) last_work_();
}

void Watchdog::give_way() const {
  while (ends_process_) std::this_thread::sleep_for(std::chrono::hours(1));
}

void Watchdog::prepare(const fs::path& run_directory) {
  remove_tree(run_directory / "heartbeat", WriteScope::other);
  for (const char* name : {"heartbeat", "hang"}) make_directories(run_directory / name);
}

bool Watchdog::can_watch(const fs::path& run_directory) {
  return directory_exists(run_directory / "heartbeat");
}

void Watchdog::watch(const fs::path& run_directory) {
  if (options_.hang_timeout == 0.0) return;
  thread_ = std::make_unique<Thread>(*this, absolute_path(run_directory));
}

}  // namespace espalier
