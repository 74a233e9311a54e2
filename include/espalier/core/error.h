#pragma once

#include <exception>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace espalier {

/// Process exit codes: the numbers of sysexits.h, so that a batch system can decide without reading
/// logs. 75 is the only one that says "run the same command again and it continues".
enum class ExitCode : int {
  ok = 0,
  /// The command line cannot be understood.
  usage = 64,
  /// An input was read and is wrong (NaN, shapes, truncation, hostile file).
  bad_content = 65,
  /// A named input does not exist, or no valid checkpoint where one is required.
  missing_input = 66,
  /// Ranks, devices or memory do not suit the configuration.
  unsuitable = 69,
  /// A bug in espalier.
  internal = 70,
  /// An output exists already, or the run directory is in use.
  cannot_create = 73,
  /// A write failed: disk full, quota, I/O error.
  write_failed = 74,
  /// Stopped on request after a commit; resumable.
  stopped = 75,
  /// Another rank died or hangs.
  peer_lost = 76,
  /// An input may not be read or an output may not be written.
  permission = 77,
  /// The configuration is wrong, or a frozen key changed at resume.
  config = 78,
};

/// One thing that is wrong, in the project's message form: *what (why) do this*, with the values.
struct Problem {
  ExitCode code = ExitCode::internal;
  /// One sentence with the values.
  std::string what;
  /// The rule that was broken; may be empty.
  std::string why;
  /// What to do; may be empty.
  std::string remedy;
  /// "file:line:column", "rank 1, phase save, ..."; may be empty.
  std::string where;

  /// "where: what (why). remedy" in one line, leaving out what is empty.
  std::string message() const;
};

/// The one exception type of the project. Carries every problem that was found, not only the first.
class Error : public std::exception {
 public:
  Error(ExitCode code, std::string what, std::string why = {}, std::string remedy = {},
        std::string where = {});
  /// Precondition: `problems` is not empty. code() is the lowest code among them.
  explicit Error(std::vector<Problem> problems);

  ExitCode code() const noexcept { return code_; }
  const std::vector<Problem>& problems() const noexcept { return problems_; }
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  ExitCode code_;
  std::vector<Problem> problems_;
  std::string text_;  // all messages, one a line
};

/// Collects problems so that a user sees all of them at once. Returned by functions whose callers
/// must go on first: what one rank finds wrong between two collectives is a value that waits for
/// the next agreement (comm/agreement.h), never an exception that leaves the peers waiting.
class [[nodiscard]] Problems {
 public:
  Problems() = default;
  explicit Problems(std::vector<Problem> list) : list_(std::move(list)) {}
  void add(Problem problem) { list_.push_back(std::move(problem)); }
  void add(const Problems& others);
  void add(ExitCode code, std::string what, std::string why = {}, std::string remedy = {},
           std::string where = {});
  bool empty() const { return list_.empty(); }
  const std::vector<Problem>& list() const { return list_; }
  /// Throws Error with all collected problems, if there are any.
  void throw_if_any() const;

 private:
  std::vector<Problem> list_;
};

/// The exit code that a failed system call stands for: 66 what is not there, 77 what is denied, 73
/// what is there already, 69 what the process may not have more of, 74 every other failure.
ExitCode code_of_errno(int number);

/// 69 with the knobs that help and the phase; `said` is what the allocator said.
Problem memory_ran_out(const std::string& said);

/// What a foreign library's exception means to a user; nothing when it is not that library's.
using ExceptionTranslator = std::optional<Problem> (*)(const std::exception& exception);
/// Called by the modules that know foreign exceptions, once per process.
void register_translator(ExceptionTranslator translator);

/// What a user is told of any exception, in one place for agreed and for lone failures: an Error's
/// own problems; memory that ran out, whoever noticed it, 69; failed system calls by their number;
/// what a registered translator says; everything else 70.
Problems problems_of(const std::exception& exception);
/// The same for what `work` throws, in whatever form; empty when it returns.
Problems problems_of(const std::function<void()>& work);
/// The same as an Error, for a failure that one rank reports alone: `who` ("rank 3") is put before
/// every `where`.
Error as_error(const std::exception& exception, const std::string& who);

/// What ESPALIER_CHECK does where its condition does not hold.
[[noreturn]] void fail_check(std::string_view what, const char* file, int line);

/// The candidate nearest to `word` by edit distance, or "" when none is near enough to be meant.
std::string nearest_name(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace espalier

/// Always-on check of our own logic; throws Error(ExitCode::internal) naming the place. `what` is
/// made only then.
#define ESPALIER_CHECK(condition, what)                \
  (static_cast<bool>(condition) ? static_cast<void>(0) \
                                : ::espalier::fail_check((what), __FILE__, __LINE__))
