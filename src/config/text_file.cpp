#include "text_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

#include <fmt/format.h>

namespace espalier::config_detail {
namespace {

constexpr std::size_t kShownPath = 400;

/// Owns a file descriptor.
class File {
 public:
  explicit File(const std::filesystem::path& path) {
    // O_NONBLOCK: a pipe without a writer must not hang.
    do {
      fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    } while (fd_ < 0 && errno == EINTR);
  }
  ~File() {
    if (fd_ >= 0) ::close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int get() const { return fd_; }

 private:
  int fd_ = -1;
};

[[noreturn]] void fail_open(const std::filesystem::path& path, const std::string& remedy) {
  const int error = errno;
  const ExitCode code = code_of_unreadable(error);
  throw Error(code, fmt::format("cannot open '{}'", printable(path.string(), kShownPath)),
              std::strerror(error),
              code == ExitCode::permission ? "Check the permissions." : remedy);
}

/// Bytes at the front of the file, up to `text.size()`; fewer when it ends before.
std::size_t read_front(const File& file, const std::filesystem::path& path, std::string& text,
                       const std::string& remedy) {
  std::size_t done = 0;
  while (done < text.size()) {
    const ssize_t got = ::read(file.get(), text.data() + done, text.size() - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail_open(path, remedy);
    if (got == 0) break;
    done += static_cast<std::size_t>(got);
  }
  return done;
}

}  // namespace

int error_of_opening(const std::filesystem::path& path) {
  return File(path).get() >= 0 ? 0 : errno;
}

ExitCode code_of_unreadable(int error) {
  switch (error) {
    case EACCES:
    case EPERM:
      return ExitCode::permission;
    case ENOENT:
    case ENOTDIR:
    case ELOOP:
    case ENAMETOOLONG:
      return ExitCode::missing_input;
    default:
      return ExitCode::write_failed;  // of a device or file server: 74 is the code for I/O errors
  }
}

std::string read_text_file(const std::filesystem::path& path, std::size_t limit, ExitCode wrong,
                           const std::string& remedy) {
  const std::string shown = printable(path.string(), kShownPath);
  const File file(path);
  struct stat info {};
  if (file.get() < 0 || ::fstat(file.get(), &info) != 0) fail_open(path, remedy);
  if (!S_ISREG(info.st_mode))
    throw Error(wrong, fmt::format("'{}' is not a regular file", shown), {}, remedy);
  const auto size = static_cast<std::uintmax_t>(info.st_size);
  if (size > limit)
    throw Error(wrong, fmt::format("'{}' has {} bytes", shown, size),
                fmt::format("at most {} are read", limit));
  std::string text(static_cast<std::size_t>(size), '\0');
  const std::size_t got = read_front(file, path, text, remedy);
  if (got != text.size())
    throw Error(wrong, fmt::format("'{}' could not be read whole", shown),
                fmt::format("{} of {} bytes came", got, text.size()), "Try again.");
  return text;
}

std::string printable(std::string_view text, std::size_t limit) {
  std::string out;
  for (const char c : text) {
    if (out.size() >= limit) {
      out += "...";
      break;
    }
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte != 0x7F)
      out += c;
    else
      out += fmt::format("\\x{:02x}", byte);
  }
  // Cut inside a multi-byte character or invalid input: fall back to escapes for everything beyond
  // ASCII.
  if (first_invalid_utf8(out) == std::string_view::npos) return out;
  std::string escaped;
  for (const char c : out) {
    const auto byte = static_cast<unsigned char>(c);
    escaped += byte < 0x80 ? std::string(1, c) : fmt::format("\\x{:02x}", byte);
  }
  return escaped;
}

}  // namespace espalier::config_detail
