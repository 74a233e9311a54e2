#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

#include "claim_file.h"
#include "espalier/core/log.h"
#include "espalier/store/files.h"
#include "posix.h"

namespace espalier {
namespace {

using Clock = std::chrono::steady_clock;

/// The whole file. Open-file-description locks belong to the open file, not to the process: another
/// open and close of the same file elsewhere in the program does not drop them.
struct flock whole_file(short type) {
  struct flock lock {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  return lock;
}

/// How file systems and old kernels say that they have no such locks.
bool means_no_locks(int number) {
  return number == ENOLCK || number == ENOSYS || number == EOPNOTSUPP || number == ENOTSUP ||
         number == EINVAL;
}

enum class Attempt { locked, busy, no_locks };

Attempt try_lock(int fd, const std::filesystem::path& path) {
  struct flock lock = whole_file(F_WRLCK);
  if (posix::restarted([&] { return ::fcntl(fd, F_OFD_SETLK, &lock); }) == 0)
    return Attempt::locked;
  if (errno == EAGAIN || errno == EACCES) return Attempt::busy;
  if (means_no_locks(errno)) return Attempt::no_locks;
  posix::fail("fcntl(F_OFD_SETLK)", path, errno, posix::Access::write);
}

void unlock(int fd) {
  struct flock lock = whole_file(F_UNLCK);
  ::fcntl(fd, F_OFD_SETLK, &lock);
}

std::filesystem::path claim_of(const std::filesystem::path& path) {
  return path.string() + ".claim";
}

}  // namespace

FileLock::FileLock(int fd) : fd_(fd) {}
FileLock::FileLock(std::unique_ptr<posix::ClaimFile> claim) : claim_(std::move(claim)) {}

std::unique_ptr<FileLock> FileLock::acquire(const std::filesystem::path& path, double wait_seconds,
                                            const std::string& owner) {
  posix::Descriptor file{posix::open_restarted(path, O_RDWR | O_CREAT | O_NOFOLLOW)};
  if (file.get() < 0) posix::fail("open", path, errno, posix::Access::write);
  const auto deadline = Clock::now() + std::chrono::duration<double>(wait_seconds);
  for (;;) {
    const Attempt attempt = try_lock(file.get(), path);
    if (attempt == Attempt::no_locks) {
      const std::string words = std::strerror(errno);
      log::warning("the file system has no locks ({}): {} with a heartbeat stands for them", words,
                   claim_of(path).string());
      auto claim = posix::ClaimFile::acquire(claim_of(path), wait_seconds, owner);
      return claim ? std::unique_ptr<FileLock>(new FileLock(std::move(claim))) : nullptr;
    }
    // A host without locks may have claimed what this one could lock.
    if (attempt == Attempt::locked && !posix::ClaimFile::is_live(claim_of(path)))
      return std::unique_ptr<FileLock>(new FileLock(file.release()));
    if (attempt == Attempt::locked) unlock(file.get());
    if (Clock::now() >= deadline) return nullptr;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
}

bool FileLock::is_held(const std::filesystem::path& path) {
  const posix::Descriptor file{posix::open_restarted(path, O_RDONLY)};
  if (file.get() < 0) {
    if (errno == ENOENT) return false;
    posix::fail("open", path, errno, posix::Access::read);
  }
  struct flock lock = whole_file(F_WRLCK);
  const bool known = posix::restarted([&] { return ::fcntl(file.get(), F_OFD_GETLK, &lock); }) == 0;
  if (!known && !means_no_locks(errno))
    posix::fail("fcntl(F_OFD_GETLK)", path, errno, posix::Access::read);
  return (known && lock.l_type != F_UNLCK) || posix::ClaimFile::is_live(claim_of(path));
}

void FileLock::require_held() const {
  if (claim_) claim_->require_held();
}

FileLock::~FileLock() {
  if (fd_ < 0) return;
  unlock(fd_);  // first: a forked child may still hold a copy of the descriptor
  ::close(fd_);
}

}  // namespace espalier
