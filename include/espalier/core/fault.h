#pragma once

#include <string>
#include <string_view>
#include <vector>

/// Named places where a test, or an operator rehearsing a failure, can make this very binary fail:
///   ESPALIER_FAULT="point=save.pre_rename;rank=1;iter=3;action=kill9"
/// Several specifications are separated by '|'. `nth=N` fires at the N-th hit only; `seed=S;p=0.01`
/// draws. Without the variable a fault point costs one predictable branch.
namespace espalier::fault {

/// What a call site must do itself. The other actions (kill9, stop, throw, slow:MS) happen inside
/// `hit`; `throw` raises Error(internal).
enum class Effect {
  none,
  nan,          ///< poison one value of what is being computed here
  short_write,  ///< write only a part and fail
  io_error,     ///< behave as if the call failed with `Outcome::error_number`
  alloc_fail,   ///< behave as if memory had run out
};

struct Outcome {
  Effect effect = Effect::none;
  int error_number = 0;
};

/// Reads ESPALIER_FAULT once. Throws Error(usage) for an unknown point or action, naming the
/// nearest.
void initialise(int rank);
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
};
/// All points, sorted by name; `espalier doctor --list-faults` prints them.
const std::vector<Point>& points();

/// Where ESPALIER_FAULT_TRACE names a file, every point passed appends its name there once per
/// process: the test that no listed point is dead reads it.
}  // namespace espalier::fault
