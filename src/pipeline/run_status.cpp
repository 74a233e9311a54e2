#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <ctime>
#include <optional>
#include <thread>

#include <fmt/chrono.h>
#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/core/json.h"
#include "espalier/core/paths.h"
#include "espalier/core/text.h"
#include "espalier/pipeline/refit_summary.h"
#include "espalier/pipeline/run_directory.h"
#include "espalier/pipeline/run_report.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr std::size_t kMostBytes = std::size_t{1} << 20;
constexpr std::size_t kMostText = 400;

/// Members of status.json and owner.json. Somebody else may have written or damaged the file: each
/// has the type that is expected, or the file is refused.
class Members {
 public:
  explicit Members(const fs::path& path) : path_(path) {
    try {
      value_ = parse_json(read_file(path, kMostBytes), path.string());
    } catch (const Error& error) {
      Problem problem = error.problems().front();
      problem.remedy = kRemedy;
      throw Error({problem});
    }
    if (!value_.is_object()) refuse("it is no JSON object");
  }

  std::string text(const char* key) const {
    const Json& member = at(key);
    if (!member.is_string()) refuse(fmt::format("'{}' is no text", key));
    return one_line(member.get_ref<const std::string&>().substr(0, kMostText));
  }
  std::int64_t number(const char* key) const {
    const Json& member = at(key);
    const bool fits = member.is_number_integer() && member >= 0 && member <= 1'000'000'000;
    if (!fits) refuse(fmt::format("'{}' is no number from 0 to 10^9", key));
    return member.get<std::int64_t>();
  }
  std::optional<double> seconds(const char* key) const {
    if (at(key).is_null()) return std::nullopt;
    if (!at(key).is_number()) refuse(fmt::format("'{}' is neither a number nor null", key));
    return at(key).get<double>();
  }
  std::optional<int> exit_code(const char* key) const {
    if (at(key).is_null()) return std::nullopt;
    const std::int64_t code = number(key);
    if (code > 255) refuse(fmt::format("'{}' is no exit code", key));
    return static_cast<int>(code);
  }
  const Json& json() const { return value_; }
  [[noreturn]] void refuse(const std::string& why) const {
    throw Error(ExitCode::bad_content, path_.filename().string() + " is damaged", why, kRemedy,
                path_.string());
  }

 private:
  static constexpr const char* kRemedy =
      "Commits do not depend on it: espalier verify looks at them, and the next start of the run "
      "writes the file anew.";

  const Json& at(const char* key) const {
    const auto found = value_.find(key);
    if (found == value_.end()) refuse(fmt::format("it has no '{}'", key));
    return *found;
  }

  fs::path path_;
  Json value_;
};

/// status.json as it was read.
// NOLINTNEXTLINE(bugprone-exception-escape): moving a JSON value throws nothing.
struct Status {
  std::string state, phase, last_commit, heartbeat, reason;
  std::int64_t iteration = 0, iterations = 0;
  std::optional<double> eta;
  std::optional<int> exit_code;
  Json json;

  bool is_final() const { return exit_code.has_value(); }
};

Status read_status(const fs::path& path) {
  const Members members(path);
  Status s;
  s.state = members.text("state");
  s.phase = members.text("phase");
  s.last_commit = members.text("last_commit");
  s.heartbeat = members.text("heartbeat");
  s.reason = members.text("reason");
  s.iteration = members.number("iteration");
  s.iterations = members.number("iterations");
  s.eta = members.seconds("eta_seconds");
  s.exit_code = members.exit_code("exit_code");
  s.json = members.json();
  const bool under_way = s.state == "starting" || s.state == "running";
  const bool failed = s.state == "stopped" || s.state == "failed";
  if (!under_way && !failed && s.state != "finished")
    members.refuse(fmt::format("there is no state '{}'", s.state));
  if (under_way == s.is_final() || (s.is_final() && (*s.exit_code != 0) != failed))
    members.refuse(fmt::format("a run that is {} has no exit code {}", s.state,
                               s.is_final() ? fmt::format("{}", *s.exit_code) : "null"));
  return s;
}

/// What a run that took the lock has not written yet.
Status unwritten_status() {
  Status s;
  s.state = "starting";
  s.json = {{"state", s.state},       {"iteration", 0},    {"iterations", 0}, {"phase", ""},
            {"eta_seconds", nullptr}, {"last_commit", ""}, {"heartbeat", ""}, {"attempt", 0},
            {"exit_code", nullptr},   {"reason", ""}};
  return s;
}

/// Who has or had the lock.
struct Owner {
  std::string name = "an unknown process";
  std::string since;
};

Owner owner_of(const fs::path& run_directory) {
  Owner owner;
  try {
    const Members members(run_directory / "owner.json");
    owner.since = members.text("since");
    owner.name = fmt::format("process {} on {}", members.number("pid"), members.text("host"));
  } catch (const Error&) {
    // It only makes a sentence more precise.
  }
  return owner;
}

/// A run directory as it is at this moment.
struct Observed {
  Status status;
  Owner owner;
  bool has_status = false;
  bool alive = false;
  /// Whether the status is that of the process that has the lock, or of the last that had it.
  bool is_current = false;
};

Observed observe(const fs::path& run_directory) {
  if (!directory_exists(run_directory))
    throw Error(ExitCode::missing_input, "there is no such directory", "a run directory is one",
                "Name the directory that was given to --run-dir.", run_directory.string());
  const fs::path file = run_directory / "status.json";
  Observed seen;
  seen.alive = FileLock::is_held(run_directory / ".lock");
  seen.has_status = path_exists(file);
  if (!seen.has_status && !path_exists(run_directory / "owner.json"))
    throw Error(ExitCode::missing_input, "this is not a run directory",
                "it has neither status.json nor owner.json",
                "Name the directory that was given to --run-dir.", run_directory.string());
  seen.owner = owner_of(run_directory);
  seen.status = seen.has_status ? read_status(file) : unwritten_status();
  // Both are UTC to the second in a form that sorts.
  seen.is_current = seen.has_status && seen.status.heartbeat >= seen.owner.since;
  return seen;
}

std::string commit_text(const Status& s) {
  return s.last_commit.empty() ? "no commit yet" : "last commit " + s.last_commit;
}

std::string place_text(const Status& s) {
  return fmt::format("iter {}/{}{}", s.iteration, s.iterations,
                     s.phase.empty() ? "" : " phase " + s.phase);
}

/// "7 of 8 matrices refitted (perplexity 13.000 -> 11.000), ", the perplexities geometric means
/// over all evaluations; empty where no refit is finished.
std::string refitted_text(const fs::path& run_directory, const std::vector<Json>& rows) {
  if (rows.empty()) return "";
  const std::optional<RefitSummary> refit =
      summary_of_refit(run_directory, rows.back().at("plan_digest").get<std::string>());
  if (!refit) return "";
  const bool evaluated = !refit->perplexity.empty() && !refit->perplexity_before.empty();
  return fmt::format(
      "{} of {} refitted{}, ", refit->refitted, counted(refit->matrices(), "matrix", "matrices"),
      evaluated
          ? fmt::format(" (perplexity {:.3f} -> {:.3f})", geometric_mean(refit->perplexity_before),
                        geometric_mean(refit->perplexity))
          : "");
}

/// "50.0% of structures removed, export DIR": what the other files of the directory know. One that
/// cannot be read leaves its part out.
std::string result_text(const fs::path& run_directory) {
  std::string text;
  try {
    const RunConfig config =
        read_run_config(run_directory / "config.resolved.yaml", {}, ConfigUse::print);
    const std::vector<Json> rows = read_metrics(run_directory);
    const char* field = config.prune.measure == Measure::structures   ? "sparsity_structures"
                        : config.prune.measure == Measure::parameters ? "sparsity_parameters"
                                                                      : "sparsity_total_parameters";
    if (!rows.empty())
      text += fmt::format("{} of {} removed, ", percent(rows.back().at(field).get<double>()),
                          measure_text(config.prune.measure));
    text += refitted_text(run_directory, rows);
    for (const ExportConfig& target : config.exports)
      text += fmt::format("export {}, ", one_line((target.path.is_absolute()
                                                       ? target.path
                                                       : absolute_path(run_directory / target.path))
                                                      .string()));
  } catch (const Error&) {
  } catch (const Json::exception&) {
  }
  return text;
}

/// What to do next with a run that did not come to its end.
std::string continue_text(const Status& s, const fs::path& run_directory) {
  const bool mend = s.state == "failed" &&
                    s.exit_code != static_cast<int>(ExitCode::write_failed) &&
                    s.exit_code != static_cast<int>(ExitCode::peer_lost);
  const std::string how = s.last_commit.empty() ? "start it again with the same command"
                                                : "continue with: espalier resume " +
                                                      shell_word(run_directory.string());
  return (mend ? "once that is mended, " : "") + how;
}

void report_final(StatusReport& report, const Status& s, const fs::path& run_directory) {
  report.exit_code = *s.exit_code;
  report.ended = true;
  if (s.state == "finished") {
    report.line = fmt::format("finished: {}exit 0", result_text(run_directory));
    return;
  }
  const std::string reason = s.reason.substr(0, s.reason.find("\\x0a"));
  report.line = fmt::format("{} {}{}, {}, {}; {}", s.state, *s.exit_code,
                            reason.empty() ? "" : " (" + reason + ")", place_text(s),
                            commit_text(s), continue_text(s, run_directory));
}

void report_dead(StatusReport& report, const Observed& seen, const fs::path& run_directory) {
  const Status& s = seen.status;
  report.exit_code = static_cast<int>(ExitCode::peer_lost);
  report.ended = true;
  if (seen.has_status)
    report.line = fmt::format("dead since {} (lock free), {}, {}; {}", s.heartbeat, place_text(s),
                              commit_text(s), continue_text(s, run_directory));
  else
    report.line = fmt::format(
        "dead: {} took the lock at {} and ended before it wrote its status (lock free); its own "
        "output says why",
        seen.owner.name, seen.owner.since.empty() ? "?" : seen.owner.since);
}

void report_alive(StatusReport& report, const Observed& seen) {
  const Status& s = seen.status;
  if (!seen.is_current)
    report.line = fmt::format("starting: {} has the lock{}", seen.owner.name,
                              seen.owner.since.empty() ? "" : " since " + seen.owner.since);
  else
    report.line = fmt::format("{} {}, {}{}", s.state, place_text(s), commit_text(s),
                              s.eta ? ", eta " + duration(*s.eta) : "");
}

StatusReport report_of(const Observed& seen, const fs::path& run_directory) {
  StatusReport report;
  report.status = seen.status.json;
  report.status["alive"] = seen.alive;
  if (seen.alive && !(seen.is_current && seen.status.is_final()))
    report_alive(report, seen);
  else if (seen.status.is_final() && (seen.is_current || !seen.alive))
    report_final(report, seen.status, run_directory);
  else
    report_dead(report, seen, run_directory);
  return report;
}

bool works_here(const Observed& seen) {
  return seen.alive && seen.is_current && !seen.status.is_final();
}

[[noreturn]] void refuse_stop(const Observed& seen, const fs::path& run_directory) {
  throw Error(ExitCode::missing_input, "there is no run under way to stop",
              report_of(seen, run_directory).line,
              "Nobody works there, so nothing needs to be stopped.", run_directory.string());
}

}  // namespace

StatusReport report_status(const fs::path& run_directory) {
  return report_of(observe(run_directory), run_directory);
}

void request_stop(const fs::path& run_directory) {
  using Clock = std::chrono::steady_clock;
  // A run that has just taken the lock removes a STOP file of earlier times, and one that is about
  // to end obeys none: both show themselves soon.
  const Clock::time_point end = Clock::now() + std::chrono::seconds(5);
  Observed seen = observe(run_directory);
  while (seen.alive && !works_here(seen) && Clock::now() < end) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    seen = observe(run_directory);
  }
  if (!seen.alive) refuse_stop(seen, run_directory);
  const fs::path stop = run_directory / "STOP";
  replace_file(stop, fmt::format("{:%FT%TZ}\n", fmt::gmtime(std::time(nullptr))));
  seen = observe(run_directory);
  if (seen.alive) return;
  remove_file(stop);
  if (seen.status.state != "stopped") refuse_stop(seen, run_directory);
}

}  // namespace espalier
