#include "espalier/store/scratch_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/core/pulse.h"
#include "posix.h"

namespace espalier {

ScratchFile::ScratchFile(const std::filesystem::path& directory)
    : path_(posix::temporary_beside(directory / "scratch")),
      fd_(posix::open_restarted(path_, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW)) {
  if (fd_ < 0) posix::fail("open", path_, errno, posix::Access::write);
  if (::unlink(path_.c_str()) == 0) return;
  const int number = errno;
  ::close(fd_);
  posix::fail("unlink", path_, number, posix::Access::write);
}

ScratchFile::~ScratchFile() { ::close(fd_); }

void ScratchFile::write(std::uint64_t offset, std::span<const std::byte> bytes) {
  const fault::Outcome outcome = fault::hit("scratch.write");
  if (outcome.error_number != 0)
    posix::fail("pwrite", path_, outcome.error_number, posix::Access::write, bytes.size());
  std::size_t done = 0;
  while (done < bytes.size()) {
    const std::size_t count = std::min(bytes.size() - done, posix::kBlock);
    const ssize_t put = posix::restarted([&] {
      return ::pwrite(fd_, bytes.data() + done, count, static_cast<off_t>(offset + done));
    });
    if (put <= 0)
      posix::fail("pwrite", path_, put == 0 ? ENOSPC : errno, posix::Access::write, bytes.size());
    done += static_cast<std::size_t>(put);
    pulse::beat();
  }
}

void ScratchFile::read(std::uint64_t offset, std::span<std::byte> out) const {
  std::size_t done = 0;
  while (done < out.size()) {
    const std::size_t count = std::min(out.size() - done, posix::kBlock);
    const ssize_t got = posix::restarted(
        [&] { return ::pread(fd_, out.data() + done, count, static_cast<off_t>(offset + done)); });
    if (got < 0) posix::fail("pread", path_, errno, posix::Access::read);
    if (got == 0)
      throw Error(ExitCode::write_failed,
                  fmt::format("{} is shorter than what was written", posix::shown(path_.string())),
                  fmt::format("{} of {} bytes at {}", done, out.size(), offset),
                  "Check the disk or the file server, then start again.");
    done += static_cast<std::size_t>(got);
    pulse::beat();
  }
}

void ScratchFile::will_read(std::uint64_t offset, std::uint64_t count) const noexcept {
  ::posix_fadvise(fd_, static_cast<off_t>(offset), static_cast<off_t>(count), POSIX_FADV_WILLNEED);
}

}  // namespace espalier
