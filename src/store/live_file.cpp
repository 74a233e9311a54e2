#include "espalier/store/live_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "posix.h"

namespace espalier {

LiveFile::LiveFile(const std::filesystem::path& path)
    : fd_(posix::open_restarted(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW)) {
  if (fd_ < 0) posix::fail("open", path, errno, posix::Access::write);
}

LiveFile::~LiveFile() { ::close(fd_); }

bool LiveFile::write(std::string_view line) noexcept {
  std::array<char, 4097> text{};
  const std::size_t length = std::min(line.size(), text.size() - 1);
  std::memcpy(text.data(), line.data(), length);
  text[length] = '\n';
  // One call: what is shorter than a page is not seen in halves. What is left of a longer text
  // before stands after the line break until it is cut off.
  const auto size = static_cast<ssize_t>(length + 1);
  const ssize_t put = posix::restarted([&] { return ::pwrite(fd_, text.data(), length + 1, 0); });
  return put == size && ::ftruncate(fd_, size) == 0 && posix::synchronised(fd_);
}

}  // namespace espalier
