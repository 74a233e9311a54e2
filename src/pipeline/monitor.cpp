#include "espalier/pipeline/monitor.h"

#include <algorithm>
#include <fstream>

#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/core/pulse.h"
#include "espalier/core/stop.h"
#include "espalier/core/text.h"

namespace espalier {
namespace {

double between(std::chrono::steady_clock::time_point a, std::chrono::steady_clock::time_point b) {
  return std::chrono::duration<double>(b - a).count();
}

}  // namespace

void Monitor::watch(RunDirectory& directory) {
  directory_ = &directory;
  write_status();
}

void Monitor::enter(const std::string& phase) {
  leave();
  status_.phase = phase;
  pulse::enter(phase);
  write_status();
}

void Monitor::leave() {
  const Clock::time_point now = Clock::now();
  const double waited = pulse::read().waited_seconds;
  if (!status_.phase.empty()) {
    const double seconds = between(phase_begin_, now);
    seconds_[status_.phase] += seconds;
    busy_seconds_[status_.phase] += std::max(0.0, seconds - (waited - waited_before_));
  }
  waited_before_ = waited;
  status_.phase.clear();
  pulse::enter("");
  log::show_progress("");
  phase_begin_ = now;
}

RoundHooks Monitor::hooks(const std::string& unit) {
  return {[this] { poll(); },
          [this, unit](std::int64_t done, std::int64_t total) { progress(done, total, unit); },
          [this](double seconds) { foresee(seconds); }};
}

void Monitor::foresee(double seconds) {
  longest_unwatched_ = std::max(longest_unwatched_, seconds);
}

void Monitor::poll() {
  const Clock::time_point now = Clock::now();
  longest_unwatched_ = std::max(longest_unwatched_, between(last_look_, now));
  last_look_ = now;
  if (directory_ == nullptr || asked_ || between(last_poll_, now) < 0.1) return;
  last_poll_ = now;
  const double ending = std::clamp(max_seconds_ / 20, 1.0, 60.0);
  const bool out_of_time =
      max_seconds_ > 0 && elapsed() + 2 * longest_unwatched_ + ending > max_seconds_;
  const bool asked = directory_->stop_requested();
  if (!asked && !out_of_time) return;
  asked_ = true;
  status_.reason = asked ? "STOP file" : "time limit";
  stop::request();
}

void Monitor::progress(std::int64_t done, std::int64_t total, const std::string& unit) {
  const Clock::time_point now = Clock::now();
  const double seconds = between(phase_begin_, now);
  if (between(last_drawn_, now) >= 0.2 && log::has_terminal()) {
    last_drawn_ = now;
    log::show_progress(
        progress_line(status_.phase, done, total, unit, seconds, log::terminal_columns() - 1));
  }
  if (between(last_line_, now) < 60) return;
  last_line_ = now;
  const std::string of = total > 0 ? fmt::format("/{}", total) : "";
  log::write(log::Level::info,
             fmt::format("{} {}{} {} {:.0f} s", status_.phase, done, of, unit, seconds), "");
  write_status();
}

std::string progress_line(const std::string& phase, std::int64_t done, std::int64_t total,
                          const std::string& unit, double seconds, std::size_t columns) {
  std::string bar, of, eta;
  if (total > 0) {
    constexpr std::int64_t kWidth = 30;
    const std::int64_t filled = std::min(kWidth, kWidth * done / total);
    bar = fmt::format(" [{}{}]", std::string(static_cast<std::size_t>(filled), '='),
                      std::string(static_cast<std::size_t>(kWidth - filled), ' '));
    of = fmt::format("/{}", total);
    if (done > 0)
      eta = ", eta " + duration(seconds / static_cast<double>(done) *
                                static_cast<double>(std::max<std::int64_t>(total - done, 0)));
  }
  const double rate = seconds > 0 ? static_cast<double>(done) / seconds : 0;
  return fmt::format("{}{} {}{} {}, {:.3g}/s{}", phase, bar, done, of, unit, rate, eta)
      .substr(0, columns);
}

void Monitor::write_status() {
  if (directory_ == nullptr) return;
  try {
    directory_->write_status(status_);
  } catch (const Error& error) {
    // What cannot be reported must not end what still works; a commit that fails will.
    if (!status_failed_)
      log::warning("status.json cannot be written, and is tried again whenever it changes: {}",
                   error.what());
    status_failed_ = true;
  }
}

std::map<std::string, double> Monitor::take_seconds() {
  std::map<std::string, double> result;
  result.swap(seconds_);
  return result;
}

std::map<std::string, double> Monitor::take_busy_seconds() {
  std::map<std::string, double> result;
  result.swap(busy_seconds_);
  return result;
}

double Monitor::elapsed() const { return between(begin_, Clock::now()); }

std::int64_t kernel_bytes_read() {
  std::ifstream file("/proc/self/io");
  std::string name;
  std::int64_t value = 0;
  while (file >> name >> value)
    if (name == "rchar:") return value;
  return 0;
}

}  // namespace espalier
