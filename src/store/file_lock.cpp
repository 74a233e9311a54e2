#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <thread>

#include "espalier/store/files.h"
#include "posix.h"

namespace espalier {
namespace {

/// The whole file. Open-file-description locks belong to the open file, not to the process: another
/// open and close of the same file elsewhere in the program does not drop them.
struct flock whole_file(short type) {
  struct flock lock {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  return lock;
}

bool try_lock(int fd, const std::filesystem::path& path) {
  struct flock lock = whole_file(F_WRLCK);
  while (::fcntl(fd, F_OFD_SETLK, &lock) != 0) {
    if (errno == EINTR) continue;
    if (errno == EAGAIN || errno == EACCES) return false;
    posix::fail("fcntl(F_OFD_SETLK)", path, errno, posix::Access::write);
  }
  return true;
}

}  // namespace

std::unique_ptr<FileLock> FileLock::acquire(const std::filesystem::path& path,
                                            double wait_seconds) {
  using Clock = std::chrono::steady_clock;
  posix::Descriptor file{::open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0644)};
  if (file.get() < 0) posix::fail("open", path, errno, posix::Access::write);
  const auto deadline = Clock::now() + std::chrono::duration<double>(wait_seconds);
  while (!try_lock(file.get(), path)) {
    if (Clock::now() >= deadline) return nullptr;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return std::unique_ptr<FileLock>(new FileLock(file.release()));
}

bool FileLock::is_held(const std::filesystem::path& path) {
  const posix::Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.get() < 0) {
    if (errno == ENOENT) return false;
    posix::fail("open", path, errno, posix::Access::read);
  }
  struct flock lock = whole_file(F_WRLCK);
  if (::fcntl(file.get(), F_OFD_GETLK, &lock) != 0)
    posix::fail("fcntl(F_OFD_GETLK)", path, errno, posix::Access::read);
  return lock.l_type != F_UNLCK;
}

FileLock::~FileLock() {
  // Unlock first: a forked child may still hold a copy of the descriptor.
  struct flock lock = whole_file(F_UNLCK);
  ::fcntl(fd_, F_OFD_SETLK, &lock);
  ::close(fd_);
}

}  // namespace espalier
