#include "espalier/pipeline/run_directory.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <thread>

#include <fmt/chrono.h>
#include <fmt/format.h>

#include "espalier/core/batch.h"
#include "espalier/core/error.h"
#include "espalier/core/hash.h"
#include "espalier/core/host.h"
#include "espalier/core/json.h"
#include "espalier/core/log.h"
#include "espalier/core/paths.h"
#include "espalier/core/text.h"
#include "espalier/pipeline/watchdog.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;

template <class T>
nlohmann::ordered_json json_or_null(const std::optional<T>& value) {
  return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json();
}

std::string now_text() { return fmt::format("{:%FT%TZ}", fmt::gmtime(std::time(nullptr))); }

nlohmann::ordered_json read_json(const fs::path& path) {
  return parse_json(read_file(path), path.string());
}

void remove_entries(const fs::path& directory,
                    const std::function<bool(const std::string& name)>& chosen, WriteScope scope) {
  for (const fs::path& path : list_directory(directory))
    if (chosen(path.filename().string())) remove_tree(path, scope);
}

/// What owner.json says of the holder of the lock. It may be damaged, or not be there yet.
std::string owner_text(const fs::path& file) {
  try {
    const nlohmann::ordered_json facts = read_json(file);
    const auto job = facts.value("job", std::string());
    return fmt::format("process {} on {} since {}{}", facts.value("pid", 0),
                       facts.value("host", "?"), facts.value("since", "?"),
                       job.empty() ? "" : ", job " + job);
  } catch (const std::exception&) {
    return "an unknown process";
  }
}

}  // namespace

RunDirectory RunDirectory::open(const fs::path& path, const RunConfig& config,
                                const Options& options, std::vector<std::string>& messages) {
  RunDirectory run(absolute_path(path));
  run.is_empty_ = !path_exists(run.path_);
  make_directories(run.path_);
  require_writable(run.path_);
  run.take_lock(options.lock_wait_seconds);
  make_directories(run.path_ / "ckpt");
  require_writable(run.path_ / "ckpt");
  run.check_same_run(config, options.allowed_changes);
  run.commits_.sweep();
  run.sweep();
  if (run.stop_requested()) {
    run.clear_stop_request();
    messages.push_back("removed a STOP file that an earlier run left behind");
  }
  run.choose_start(options.resume, messages);
  while (name_exists(run.log_directory())) ++run.attempt_;
  make_directories(run.log_directory());
  Watchdog::prepare(run.path_);
  return run;
}

bool RunDirectory::abandon() {
  if (!is_empty_) return false;
  log::Options options = log::current();
  options.file.clear();  // the log lies inside
  log::configure(options);
  remove_tree(path_, WriteScope::other);
  return true;
}

void RunDirectory::begin(const RunConfig& config) {
  is_empty_ = false;
  if (!path_exists(path_ / "config.input.yaml"))
    replace_file(path_ / "config.input.yaml", read_file(config.source));
  replace_file(path_ / "config.resolved.yaml", to_yaml(config));
  cut_metrics(start_ ? start_->iteration : paused_pass_ ? paused_pass_->iteration - 1 : -1);
}

std::string RunDirectory::identity() const {
  const fs::path file = path_ / "provenance.json";
  if (path_exists(file)) {
    const nlohmann::ordered_json before =
        nlohmann::ordered_json::parse(read_file(file), nullptr, false);
    if (before.is_object() && before.contains("run") && before["run"].is_string())
      return before["run"];
  }
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return sha256_hex(std::string_view(fmt::format("{} {} {} {}", host_name(), ::getpid(),
                                                 now.count(), path_.string())))
      .substr(0, 32);
}

fs::path RunDirectory::place_of(const ExportConfig& target) const {
  return absolute_path(target.path.is_absolute() ? target.path : path_ / target.path);
}

// Where the names lead, not how they read: export/ may be a link to a place shared with others.
bool RunDirectory::holds(const fs::path& out) const {
  const fs::path parent = absolute_path(out).parent_path();
  if (!path_exists(parent)) return false;
  const std::string home = real_path(path_).string() + "/";
  return (real_path(parent).string() + "/").starts_with(home);
}

fs::path RunDirectory::log_directory() const {
  return path_ / "logs" / fmt::format("attempt-{:03}", attempt_);
}

void RunDirectory::take_lock(double wait_seconds) {
  const fs::path owner = path_ / "owner.json";
  const nlohmann::ordered_json facts{{"host", utf8_text(host_name())},
                                     {"pid", ::getpid()},
                                     {"job", utf8_text(batch::job())},
                                     {"since", now_text()}};
  lock_ = FileLock::acquire(path_ / ".lock", wait_seconds, json_text(facts) + "\n");
  if (!lock_)
    throw Error(ExitCode::cannot_create, "the run directory is in use by " + owner_text(owner),
                fmt::format("waited {} s for its lock", wait_seconds),
                "Wait for that run, stop it with 'espalier stop', or choose another --run-dir.",
                path_.string());
  replace_file(owner, json_text(facts, 2) + "\n");
}

void RunDirectory::check_same_run(const RunConfig& config,
                                  const std::vector<std::string>& allowed_changes) {
  const fs::path resolved = path_ / "config.resolved.yaml";
  if (!path_exists(resolved) || !has_commits()) return;
  const RunConfig before = read_run_config(resolved, {}, ConfigUse::print);
  Problems problems;
  for (const ConfigDifference& d : frozen_differences(before, config)) {
    if (std::find(allowed_changes.begin(), allowed_changes.end(), d.key) != allowed_changes.end())
      continue;
    problems.add(ExitCode::config, fmt::format("{} was {} and is now {}", d.key, d.before, d.after),
                 "the run directory belongs to another configuration",
                 fmt::format("Use another --run-dir, or --allow-change {} if you mean it.", d.key),
                 path_.string());
  }
  problems.throw_if_any();
}

bool RunDirectory::has_commits() const {
  return !commits_.iterations().empty() || !commits_.iterations(CommitKind::pass).empty();
}

// A pass continues the commit that was taken, and no other. Those of later iterations continue
// commits that were rejected.
void RunDirectory::choose_paused_pass(std::vector<std::string>& messages) {
  if (!start_) {
    paused_pass_ = commits_.newest_valid(messages, CommitKind::pass);
    if (paused_pass_) set_aside_newer(paused_pass_->iteration, CommitKind::pass, messages);
    return;
  }
  const std::int64_t next = start_->iteration + 1;
  const std::vector<std::int64_t> passes = commits_.iterations(CommitKind::pass);
  if (std::find(passes.begin(), passes.end(), next) != passes.end()) {
    try {
      paused_pass_ = commits_.read(next, CommitKind::pass);
    } catch (const Error& error) {
      if (!is_damage(error)) throw;
      messages.push_back(fmt::format(
          "{} is not used: {}", CommitStore::directory_name(next, CommitKind::pass), error.what()));
    }
  }
  for (const std::int64_t pass : passes)
    if (pass > next)
      messages.push_back(fmt::format("{} is not used: it continues iteration {}",
                                     CommitStore::directory_name(pass, CommitKind::pass),
                                     pass - 1));
  set_aside_newer(paused_pass_ ? next : next - 1, CommitKind::pass, messages);
}

void RunDirectory::set_aside_newer(std::int64_t iteration, CommitKind kind,
                                   std::vector<std::string>& messages) const {
  const std::vector<std::string> lines = commits_.set_aside_newer(iteration, kind);
  messages.insert(messages.end(), lines.begin(), lines.end());
}

void RunDirectory::choose_start(ResumeMode mode, std::vector<std::string>& messages) {
  const std::vector<std::int64_t> existing = commits_.iterations();
  if (mode == ResumeMode::never && has_commits())
    throw Error(
        ExitCode::cannot_create,
        fmt::format("the run directory holds {}{}", counted(existing.size(), "commit"),
                    commits_.iterations(CommitKind::pass).empty() ? "" : " and a paused pass"),
        "--resume=never starts only in a directory without commits",
        "Use --resume=auto to continue, or another --run-dir.", path_.string());
  std::vector<std::string> rejected;
  start_ = commits_.newest_valid(rejected);
  messages.insert(messages.end(), rejected.begin(), rejected.end());
  if (start_) set_aside_newer(start_->iteration, CommitKind::iteration, messages);
  if (start_ || existing.empty()) choose_paused_pass(messages);
  if (start_ || paused_pass_) return;
  if (mode == ResumeMode::require)
    throw Error(
        ExitCode::missing_input,
        existing.empty() ? "there is no commit to resume from" : "no commit of this run is valid",
        fmt::format("--resume=require; {} found, {} rejected", counted(existing.size(), "commit"),
                    rejected.size()),
        "Use --resume=auto to start at the beginning.", path_.string());
  if (!existing.empty())
    throw Error(
        ExitCode::missing_input, "no commit of this run is valid",
        fmt::format("{} found and none verifies; starting anew would throw them away in silence",
                    counted(existing.size(), "commit")),
        "Look at 'espalier verify', or choose another --run-dir.", path_.string());
}

void RunDirectory::sweep() const {
  // Files that replace_file did not come to rename; whoever asks for a stop or waits for the lock
  // has none.
  const auto chosen = [](const std::string& name) {
    return name.starts_with(".") && name.find(".tmp-") != std::string::npos &&
           !name.starts_with(".STOP") && !name.starts_with("..lock");
  };
  remove_entries(path_, chosen, WriteScope::other);
}

void RunDirectory::sweep_unfinished_export(const fs::path& out) const {
  const fs::path parent = absolute_path(out).parent_path();
  if (!path_exists(parent) || !holds(out)) return;
  const std::string name = out.filename().string();
  const auto chosen = [&](const std::string& entry) {
    return entry.starts_with(name + ".tmp-") || entry.starts_with(name + ".trash-");
  };
  remove_entries(parent, chosen, WriteScope::export_model);
}

bool RunDirectory::stop_requested() const { return name_exists(path_ / "STOP"); }
void RunDirectory::clear_stop_request() const { remove_file(path_ / "STOP"); }

void RunDirectory::write_status(const RunStatus& status) const {
  const nlohmann::ordered_json value{{"state", status.state},
                                     {"iteration", status.iteration},
                                     {"iterations", status.iterations},
                                     {"phase", status.phase},
                                     {"eta_seconds", json_or_null(status.eta_seconds)},
                                     {"last_commit", status.last_commit},
                                     {"heartbeat", now_text()},
                                     {"attempt", attempt_},
                                     {"exit_code", json_or_null(status.exit_code)},
                                     {"reason", utf8_text(status.reason)}};
  replace_file(path_ / "status.json", json_text(value, 2) + "\n");
}

void RunDirectory::write_provenance(const nlohmann::ordered_json& provenance) const {
  const std::string text = json_text(provenance, 2) + "\n";
  replace_file(path_ / "provenance.json", text);
  replace_file(log_directory() / "provenance.json", text);
}

std::vector<nlohmann::ordered_json> RunDirectory::metrics() const { return read_metrics(path_); }

void RunDirectory::write_metrics(const std::vector<nlohmann::ordered_json>& rows) const {
  std::string text;
  for (const auto& row : rows) text += json_text(row) + "\n";
  replace_file(path_ / "metrics.jsonl", text);
}

void RunDirectory::record_metrics(const nlohmann::ordered_json& row) const {
  std::vector<nlohmann::ordered_json> rows = metrics();
  std::erase_if(rows,
                [&](const auto& other) { return other.at("iteration") == row.at("iteration"); });
  rows.push_back(row);
  write_metrics(rows);
}

void RunDirectory::cut_metrics(std::int64_t last_iteration) const {
  std::vector<nlohmann::ordered_json> rows = metrics();
  const std::size_t before = rows.size();
  std::erase_if(rows, [&](const auto& row) {
    return row.at("iteration").template get<std::int64_t>() > last_iteration;
  });
  if (rows.size() != before) write_metrics(rows);
}

std::vector<nlohmann::ordered_json> read_metrics(const fs::path& run_directory) {
  std::vector<nlohmann::ordered_json> rows;
  const fs::path path = run_directory / "metrics.jsonl";
  if (!path_exists(path)) return rows;
  const std::string text = read_file(path);
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    if (end > begin)
      rows.push_back(parse_json(std::string_view(text).substr(begin, end - begin), path.string()));
    begin = end + 1;
  }
  return rows;
}

bool is_run_directory(const fs::path& path) { return path_exists(path / "config.resolved.yaml"); }

bool is_commit(const fs::path& path) { return path_exists(path / "MANIFEST.json"); }

fs::path run_of_commit(const fs::path& commit) {
  const fs::path named = absolute_path(commit).parent_path().parent_path();
  return is_run_directory(named) ? named : real_path(commit).parent_path().parent_path();
}

void report_lone_failure(const fs::path& run_directory, int exit_code,
                         const std::string& reason) noexcept {
  try {
    const fs::path file = run_directory / "status.json";
    // Rank 0 may be about to enter a phase and to say so: it waits for this rank soon after.
    for (int look = 0; look < 3; ++look) {
      nlohmann::ordered_json status = read_json(file);
      if (look > 0 && status.value("state", "") == "failed") continue;
      status["state"] = "failed";
      status["heartbeat"] = now_text();
      status["exit_code"] = exit_code;
      status["reason"] = utf8_text(reason);
      replace_file(file, json_text(status, 2) + "\n");
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
  } catch (const std::exception&) {
  }
}

}  // namespace espalier
