#include "espalier/core/pulse.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <mutex>
#include <thread>

namespace espalier::pulse {
namespace {

using Clock = std::chrono::steady_clock;

struct Phase {
  double slowest_seconds = 0;
  bool seen_before = false;
};

struct State {
  std::mutex mutex;
  std::map<std::string, Phase, std::less<>> phases;
  std::string phase;
  Phase* current = &phases[""];
  std::uint64_t beats = 0;
  Waiting waiting = Waiting::nothing;
  double waited_seconds = 0;
  Clock::time_point last_beat = Clock::now();
  std::thread::id main = std::this_thread::get_id();
};

State& state() {
  static State instance;
  return instance;
}

/// The step that ends now was work, unless it was a wait.
void count(State& s) {
  const Clock::time_point now = Clock::now();
  const double seconds = std::chrono::duration<double>(now - s.last_beat).count();
  if (s.waiting == Waiting::nothing)
    s.current->slowest_seconds = std::max(s.current->slowest_seconds, seconds);
  if (s.waiting == Waiting::ranks) s.waited_seconds += seconds;
  s.last_beat = now;
  ++s.beats;
}

}  // namespace

void enter(std::string_view phase) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  count(s);
  s.current->seen_before = true;
  s.phase = phase;
  s.current = &s.phases[s.phase];
}

void beat() {
  State& s = state();
  if (s.main != std::this_thread::get_id()) return;
  const std::lock_guard lock(s.mutex);
  count(s);
}

Reading read() {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  return {s.phase,         s.beats, s.waiting, s.current->slowest_seconds, s.current->seen_before,
          s.waited_seconds};
}

Wait::Wait(Waiting what) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  is_outer_ = s.waiting == Waiting::nothing && s.main == std::this_thread::get_id();
  if (!is_outer_) return;
  count(s);
  s.waiting = what;
}

Wait::~Wait() {
  State& s = state();
  if (!is_outer_) return;
  const std::lock_guard lock(s.mutex);
  count(s);
  s.waiting = Waiting::nothing;
}

}  // namespace espalier::pulse
