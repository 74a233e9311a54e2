#include "claim_file.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <optional>

#include <fmt/format.h>

#include "espalier/core/error.h"
#include "posix.h"

namespace espalier::posix {
namespace {

using Steady = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr std::size_t kMaxText = 4096;

double seconds_of(const timespec& time) {
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double now_here() { return Seconds(std::chrono::system_clock::now().time_since_epoch()).count(); }

/// A claim as somebody saw it.
struct Sight {
  std::string text;  // empty when it may not be read
  double time = 0;   // of the last sign of life, by the file system's clock
  ino_t inode = 0;
  bool operator==(const Sight&) const = default;
};

/// A file that may go at any moment: removed on another host it can also be stale (ESTALE).
bool is_gone(int number) { return number == ENOENT || number == ESTALE; }

std::optional<Sight> look(const std::filesystem::path& path) {
  // Opening makes network file systems ask the server; stat alone may answer from memory.
  const Descriptor file{open_restarted(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK)};
  struct stat info {};
  if (file.get() < 0) {
    if (is_gone(errno)) return std::nullopt;
    if (errno != EACCES) fail("open", path, errno, Access::read);
    if (::lstat(path.c_str(), &info) != 0) return std::nullopt;
    return Sight{{}, seconds_of(info.st_mtim), info.st_ino};
  }
  std::string text(kMaxText, '\0');
  const ssize_t got = restarted([&] { return ::pread(file.get(), text.data(), text.size(), 0); });
  if (got < 0 || ::fstat(file.get(), &info) != 0) {
    if (is_gone(errno)) return std::nullopt;
    fail("pread", path, errno, Access::read);
  }
  text.resize(static_cast<std::size_t>(got));
  return Sight{std::move(text), seconds_of(info.st_mtim), info.st_ino};
}

bool write_text(int fd, const std::string& text) {
  std::size_t done = 0;
  while (done < text.size()) {
    const ssize_t put = restarted([&] {
      return ::pwrite(fd, text.data() + done, text.size() - done, static_cast<off_t>(done));
    });
    if (put <= 0) return false;
    done += static_cast<std::size_t>(put);
  }
  return true;
}

/// Makes the claim; false when there is one.
bool create(const std::filesystem::path& path, const std::string& text) {
  Descriptor file{open_restarted(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW)};
  if (file.get() < 0) {
    if (errno == EEXIST) return false;
    fail("open", path, errno, Access::write);
  }
  if (write_text(file.get(), text) && (::close(file.release()) == 0 || errno == EINTR)) return true;
  const int number = errno;
  ::unlink(path.c_str());
  fail("write", path, number, Access::write, text.size());
}

/// What the file system's clock shows less what this host's does; 0 when nothing can be made there.
double clock_difference(const std::filesystem::path& path) {
  const std::filesystem::path probe = temporary_beside(path);
  const Descriptor file{open_restarted(probe, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW)};
  if (file.get() < 0) return 0;
  struct stat info {};
  const bool known = ::fstat(file.get(), &info) == 0;
  ::unlink(probe.c_str());
  return known ? seconds_of(info.st_mtim) - now_here() : 0;
}

/// Watches somebody else's claim until it goes or turns out stale.
class Watch {
 public:
  Watch(std::filesystem::path path, double stale)
      : path_(std::move(path)), stale_(stale), difference_(clock_difference(path_)) {}

  /// The claim, if it is stale: by its time, or because it stood still while we watched (a clock
  /// that was set back leaves times of the future).
  std::optional<Sight> stale() {
    const std::optional<Sight> now = look(path_);
    if (now != seen_) {
      seen_ = now;
      since_ = Steady::now();
    }
    if (!now) return std::nullopt;
    const bool old = now_here() + difference_ - now->time > stale_;
    return old || Seconds(Steady::now() - since_).count() > stale_ ? now : std::nullopt;
  }

 private:
  std::filesystem::path path_;
  double stale_;
  double difference_;
  std::optional<Sight> seen_;
  Steady::time_point since_ = Steady::now();
};

/// Takes a stale claim away. Another process may have been faster, and this be a new claim of its:
/// that one is put back.
void take_away(const std::filesystem::path& path, const Sight& stale) {
  const std::filesystem::path aside = temporary_beside(path);
  if (::rename(path.c_str(), aside.c_str()) != 0) {
    if (is_gone(errno)) return;
    fail("rename", path, errno, Access::write);
  }
  const std::optional<Sight> taken = look(aside);
  if (taken && *taken != stale) create(path, taken->text);
  ::unlink(aside.c_str());
}

enum class Beat { held, lost, unknown };

/// Writes the claim's text again, which refreshes its time on every file system.
Beat beat(const std::filesystem::path& path, const std::string& text) {
  const Descriptor file{open_restarted(path, O_RDWR | O_NOFOLLOW | O_NONBLOCK)};
  if (file.get() < 0) return is_gone(errno) ? Beat::lost : Beat::unknown;
  std::string found(text.size() + 1, '\0');
  const ssize_t got = restarted([&] { return ::pread(file.get(), found.data(), found.size(), 0); });
  if (got < 0) return Beat::unknown;
  found.resize(static_cast<std::size_t>(got));
  if (found != text) return Beat::lost;
  return write_text(file.get(), text) ? Beat::held : Beat::unknown;
}

/// As beat(); asks again before it calls a claim lost, since one that was renamed away by mistake
/// comes back at once.
Beat surely(const std::filesystem::path& path, const std::string& text) {
  Beat result = beat(path, text);
  for (int i = 0; i < 5 && result == Beat::lost; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    result = beat(path, text);
  }
  return result;
}

}  // namespace

std::unique_ptr<ClaimFile> ClaimFile::acquire(const std::filesystem::path& path,
                                              double wait_seconds, const std::string& owner,
                                              Timing timing) {
  const std::string text =
      fmt::format("{:016x}\n{}", random_number(path), owner).substr(0, kMaxText - 1);
  const auto deadline = Steady::now() + Seconds(wait_seconds);
  Watch watch(path, timing.stale());
  for (;;) {
    if (create(path, text)) {
      std::this_thread::sleep_for(Seconds(timing.settle));
      if (surely(path, text) == Beat::held)
        return std::unique_ptr<ClaimFile>(new ClaimFile(path, text, timing));
    } else if (const std::optional<Sight> stale = watch.stale()) {
      take_away(path, *stale);
      continue;
    }
    if (Steady::now() >= deadline) return nullptr;
    std::this_thread::sleep_for(Seconds(std::min(0.2, timing.heartbeat / 4)));
  }
}

bool ClaimFile::is_live(const std::filesystem::path& path, Timing timing) {
  if (!look(path)) return false;
  return !Watch(path, timing.stale()).stale();
}

void ClaimFile::require_held() const {
  if (surely(path_, text_) != Beat::lost) return;
  throw Error(
      ExitCode::cannot_create, "another process took this run directory over",
      fmt::format("this one gave no sign of life for more than {} s, and the file system has "
                  "no locks",
                  timing_.stale()),
      "Let the other one go on; nothing more is written here.", directory_of(path_).string());
}

ClaimFile::ClaimFile(std::filesystem::path path, std::string text, Timing timing)
    : path_(std::move(path)), text_(std::move(text)), timing_(timing) {
  // Signals are for the main thread.
  sigset_t all, before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  heart_ = std::thread([this] { beat_until_told(); });
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void ClaimFile::beat_until_told() {
  std::unique_lock lock(mutex_);
  while (!told_.wait_for(lock, Seconds(timing_.heartbeat), [this] { return ends_; }))
    beat(path_, text_);
}

ClaimFile::~ClaimFile() {
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
  }
  told_.notify_all();
  heart_.join();
  if (beat(path_, text_) == Beat::held) ::unlink(path_.c_str());
}

}  // namespace espalier::posix
