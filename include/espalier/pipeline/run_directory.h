#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "espalier/config/run_config.h"
#include "espalier/pipeline/commit.h"
#include "espalier/store/files.h"

namespace espalier {

enum class ResumeMode { automatic, never, require };

/// status.json: what `espalier status` and scripts read.
struct RunStatus {
  /// starting, running, stopped, finished, failed
  std::string state = "starting";
  std::int64_t iteration = 0;
  std::int64_t iterations = 0;
  std::string phase;
  /// Until the end, once an iteration was timed.
  std::optional<double> eta_seconds;
  /// "iter-000041", or empty.
  std::string last_commit;
  /// Of a run that has ended.
  std::optional<int> exit_code;
  std::string reason;
};

/// The run directory (docs/file-formats.md). Only rank 0 has one: it alone creates, renames and
/// deletes.
class RunDirectory {
 public:
  struct Options {
    ResumeMode resume = ResumeMode::automatic;
    /// Frozen keys that may differ all the same.
    std::vector<std::string> allowed_changes;
    double lock_wait_seconds = 30;
  };

  /// Creates or opens: takes the lock (73 naming the owner when another process has it), refuses a
  /// directory of another configuration (78 with key, old and new value), sweeps leftovers, removes
  /// a stale STOP file, finds the newest valid commit and sets aside what is newer. Reads nothing
  /// but the directory. Lines worth telling go to `messages`.
  static RunDirectory open(const std::filesystem::path& path, const RunConfig& config,
                           const Options& options, std::vector<std::string>& messages);

  /// Removes the directory again if open() made it and nothing was begun in it: inputs that are
  /// wrong leave nothing behind. Returns whether it did.
  bool abandon();

  /// Once nothing speaks against going on: writes the configuration down and drops metrics beyond
  /// the commit that the run continues from. A refused command leaves the run as it was.
  void begin(const RunConfig& config);

  const std::filesystem::path& path() const { return path_; }
  /// A name of this run that its exports carry (`run` in provenance.json); a new one where there is
  /// no such file yet.
  std::string identity() const;
  /// Where an export goes: relative paths start here; tidy (core/paths.h).
  std::filesystem::path place_of(const ExportConfig& target) const;
  /// Whether `out` lies below the run directory, links in its parents followed.
  bool holds(const std::filesystem::path& out) const;
  CommitStore& commits() { return commits_; }
  const CommitStore& commits() const { return commits_; }
  /// The commit to continue from; empty when the run starts at the beginning.
  const std::optional<Commit>& start() const { return start_; }
  /// What an interrupted pass had summed; empty when there is none, or it does not continue
  /// start().
  const std::optional<Commit>& paused_pass() const { return paused_pass_; }
  /// 1 for the first process that worked here, then 2, ...
  int attempt() const { return attempt_; }
  std::filesystem::path log_directory() const;

  /// Removes what writers of the export `out` left behind when they died (a half-written new one, a
  /// replaced old one); only inside this run directory, where the lock says that nobody else is
  /// writing.
  void sweep_unfinished_export(const std::filesystem::path& out) const;

  /// Throws when the lock was lost, before anything is written that others would trip over.
  void require_lock() const { lock_->require_held(); }

  bool stop_requested() const;
  void clear_stop_request() const;

  void write_status(const RunStatus& status) const;
  /// Into provenance.json, and into the log directory of this attempt, where it stays.
  void write_provenance(const nlohmann::ordered_json& provenance) const;
  /// Appends the line of one iteration, replacing an earlier one of the same iteration.
  void record_metrics(const nlohmann::ordered_json& row) const;
  /// Lines of metrics.jsonl in order.
  std::vector<nlohmann::ordered_json> metrics() const;
  /// Drops lines beyond the committed iteration, so that nothing is counted twice.
  void cut_metrics(std::int64_t last_iteration) const;

 private:
  explicit RunDirectory(std::filesystem::path path)
      : path_(std::move(path)), commits_(path_ / "ckpt") {}
  void take_lock(double wait_seconds);
  void check_same_run(const RunConfig& config, const std::vector<std::string>& allowed_changes);
  bool has_commits() const;
  void choose_start(ResumeMode mode, std::vector<std::string>& messages);
  void choose_paused_pass(std::vector<std::string>& messages);
  void set_aside_newer(std::int64_t iteration, CommitKind kind,
                       std::vector<std::string>& messages) const;
  void sweep() const;
  void write_metrics(const std::vector<nlohmann::ordered_json>& rows) const;

  std::filesystem::path path_;
  CommitStore commits_;
  std::unique_ptr<FileLock> lock_;
  std::optional<Commit> start_;
  std::optional<Commit> paused_pass_;
  int attempt_ = 1;
  bool is_empty_ = false;  // open() made the directory, and nothing was begun in it
};

/// Lines of metrics.jsonl of a run directory in order; none when there is no such file.
std::vector<nlohmann::ordered_json> read_metrics(const std::filesystem::path& run_directory);

/// Whether a run has begun there, or a commit is there. Throws where that cannot be looked at.
bool is_run_directory(const std::filesystem::path& path);
bool is_commit(const std::filesystem::path& path);
/// The run directory that a commit belongs to: two names up, or, when these lead nowhere since the
/// commit or ckpt/ is a link, two directories up from where it really is.
std::filesystem::path run_of_commit(const std::filesystem::path& commit);

/// What `espalier status` says of a run directory.
// NOLINTNEXTLINE(bugprone-exception-escape): moving a JSON value throws nothing.
struct StatusReport {
  /// status.json with `alive` added.
  nlohmann::ordered_json status;
  /// "running iter 3/10 ...", "finished: ...", "dead since ...", one line.
  std::string line;
  /// 0 running or finished, 75 stopped, 76 dead, else the run's code.
  int exit_code = 0;
  /// Nobody works in the directory any more.
  bool ended = false;
};
/// Looks at status.json, owner.json and the lock; a run that has the lock and has not written its
/// status yet is `starting`. Throws missing_input when it is no run directory, bad_content when
/// status.json is damaged.
StatusReport report_status(const std::filesystem::path& run_directory);

/// Writes into status.json that the run there failed, on behalf of a rank without a RunDirectory
/// that will end the whole job. Never throws: it is about to leave for a better reason.
void report_lone_failure(const std::filesystem::path& run_directory, int exit_code,
                         const std::string& reason) noexcept;

/// Asks the run in that directory to commit and stop; one that is just starting is waited for, up
/// to 5 s. Throws missing_input, and leaves no file, when it is no run directory or nobody works
/// there: it finished, failed, was stopped or died.
void request_stop(const std::filesystem::path& run_directory);

}  // namespace espalier
