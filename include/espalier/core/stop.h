#pragma once

#include <exception>
#include <string_view>

/// Requests to stop, as signals set them. Handlers only count; action is taken between
/// micro-batches after the ranks agreed. Signals closer than two seconds count once, since some
/// launchers deliver one request twice. The third signal ends the process where it is, for a rank
/// that waits for one that will not come.
namespace espalier::stop {

/// Installs the SIGUSR1 handler (and ignores SIGXFSZ, so that a file-size limit is an error code).
/// `last_words` is the line that the third request leaves on stderr, at most 256 bytes of it.
void install_handlers(std::string_view last_words);
/// 0 = go on; more = finish the micro-batch, commit what can be continued, stop.
int requests();
/// Counts one request from inside the process (STOP file, time limit).
void request();
/// Forgets all requests (tests).
void reset();

/// Thrown on every rank together once the ranks agreed to stop.
class Stopped : public std::exception {
 public:
  explicit Stopped(int level) : level_(level) {}
  /// The highest number of requests any rank had.
  int level() const { return level_; }
  const char* what() const noexcept override { return "stopped on request"; }

 private:
  int level_;
};

}  // namespace espalier::stop
