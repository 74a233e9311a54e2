#include "espalier/core/standard_streams.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>

#include "espalier/core/pulse.h"

namespace espalier::standard_streams {

void prepare() {
  std::signal(SIGPIPE, SIG_IGN);
  for (const int descriptor : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(descriptor, F_GETFD) >= 0 || errno != EBADF) continue;
    // The lowest free number is this one, since those below it are open. Open for the other
    // direction, a use of it stays an error that can be told.
    [[maybe_unused]] const int opened =
        ::open("/dev/null", descriptor == STDIN_FILENO ? O_WRONLY : O_RDONLY);
  }
}

int write_all(int descriptor, std::string_view text) {
  const pulse::Wait wait_for_reader(pulse::Waiting::reader);
  while (!text.empty()) {
    const ssize_t written = ::write(descriptor, text.data(), text.size());
    if (written > 0) {
      text.remove_prefix(static_cast<std::size_t>(written));
      continue;
    }
    if (written < 0 && errno == EINTR) continue;
    if (written < 0 && errno != EAGAIN) return errno;
    // A terminal or pipe that somebody set to non-blocking: wait until it takes more.
    pollfd wait{descriptor, POLLOUT, 0};
    if (::poll(&wait, 1, -1) < 0 && errno != EINTR) return errno;
  }
  return 0;
}

}  // namespace espalier::standard_streams
