#pragma once

#include <string>
#include <string_view>
#include <vector>

/// Named places where a test, or an operator rehearsing a failure, can make this very binary fail:
///   ESPALIER_FAULT="point=save.pre_rename;rank=1;iter=3;action=kill9"
/// Several specifications are separated by '|'. `nth=N` fires at the N-th hit only; `seed=S;p=0.01`
/// draws. Without the variable a fault point costs one predictable branch.
namespace espalier::fault {

/// What a call site must do itself, where its point offers it. The other actions happen inside
/// `hit` at any point: kill9, stop, sigusr1 (asks the run to stop), slow:MS, throw (raises
/// Error(internal)) and alloc-fail (raises std::bad_alloc).
enum class Effect {
  none,
  /// Poison one value of what is being computed here.
  nan,
  /// Write only a part and fail.
  short_write,
  /// Behave as if the call failed with `Outcome::error_number`.
  io_error,
};

struct Outcome {
  Effect effect = Effect::none;
  int error_number = 0;
};

/// Reads ESPALIER_FAULT once, on rank `rank` of `ranks`. Throws Error(usage) for an unknown point
/// or action, naming the nearest, and for a specification that cannot take effect: an action that
/// the point does not offer, a rank that does not pass it, numbers out of range.
void initialise(int rank, int ranks);
/// True when any fault is armed (the run says so in its first log line and in provenance.json).
bool armed();
std::string specification();
/// The iteration that `iter=` is compared with.
void set_iteration(int iteration);

/// Passes through the point `name`, which must be one of points().
Outcome hit(std::string_view name);

struct Point {
  std::string name;
  std::string meaning;
  /// Computes what `nan` poisons.
  bool offers_nan = false;
  /// A system call, which errno:NAME makes fail.
  bool offers_errors = false;
  /// Hands bytes to the system.
  bool offers_short_write = false;
  /// Only rank 0 comes here.
  bool root_only = false;

  /// The actions that only some points offer, for help: "nan", "errno:NAME, short-write" or "".
  std::string special_actions() const;
};
/// All points, sorted by name; `espalier doctor --list-faults` prints them.
const std::vector<Point>& points();

/// Where ESPALIER_FAULT_TRACE names a file, every point passed appends its name there once per
/// process: the test that no listed point is dead reads it.
}  // namespace espalier::fault
