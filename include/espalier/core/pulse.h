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
  nothing,  ///< it works
  ranks,    ///< the other ranks of a collective
  reader,   ///< whoever reads its output
};

struct Reading {
  std::string phase;
  std::uint64_t beats = 0;  ///< steps since the process began
  Waiting waiting = Waiting::nothing;
  double slowest_seconds = 0;  ///< longest step of work in this phase so far
  bool seen_before = false;    ///< this phase came to its end at least once
  double waited_seconds = 0;   ///< for other ranks, since the process began
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
