#pragma once

#include <cstdint>
#include <string>
#include <string_view>

/// The sign of life of this process's main thread, for those who watch it from another thread: in
/// which phase it is, how many steps it has done, and whether it waits for somebody else. A step is
/// anything that shows that work goes on: half a layer, a block of a file, a collective. The main
/// thread is the one that called first; steps and waits of others count for nothing, those of
/// whoever watches least of all. Any thread may read.
namespace espalier::pulse {

/// What the main thread waits for, if it does.
enum class Waiting {
  /// It works.
  nothing,
  /// The other ranks of a collective.
  ranks,
  /// Whoever reads its output.
  reader,
};

struct Reading {
  std::string phase;
  /// Steps since the process began.
  std::uint64_t beats = 0;
  Waiting waiting = Waiting::nothing;
  /// Longest step of work in this phase so far.
  double slowest_seconds = 0;
  /// This phase came to its end at least once.
  bool seen_before = false;
  /// For other ranks, since the process began.
  double waited_seconds = 0;
};

/// A new phase begins, which is a step.
void enter(std::string_view phase);
/// A step is done.
void beat();
Reading read();

/// While it lives the main thread waits. Beginning and end are steps; what lies between is no work
/// and says nothing about how long a step takes. An inner wait is part of the outer.
class Wait {
 public:
  explicit Wait(Waiting what);
  ~Wait();
  Wait(const Wait&) = delete;
  Wait& operator=(const Wait&) = delete;

 private:
  bool is_outer_;
};

}  // namespace espalier::pulse
