#include "posix.h"

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <fmt/format.h>

#include "espalier/core/background.h"
#include "espalier/core/error.h"
#include "espalier/core/pulse.h"

namespace espalier::posix {
namespace {

constexpr std::size_t kBuffer = std::size_t{1} << 20;
/// Bytes of a large file, at least, that may be on their way to the disk before any is waited for.
constexpr std::uint64_t kInFlight = std::uint64_t{64} << 20;

std::optional<std::uint64_t> free_bytes(const std::filesystem::path& path) {
  struct statvfs info {};
  if (::statvfs(directory_of(path).c_str(), &info) != 0) return std::nullopt;
  return static_cast<std::uint64_t>(info.f_bavail) * info.f_frsize;
}

/// What file systems say of a call that they do not have.
bool is_unknown_call(int number) {
  return number == EINVAL || number == ENOTSUP || number == EOPNOTSUPP || number == ENOSYS;
}

std::string remedy_of(int number, const std::filesystem::path& path, std::uint64_t needed) {
  switch (number) {
    case ENOSPC:
    case EDQUOT: {
      const auto free = free_bytes(path);
      const std::string have =
          free ? fmt::format("{} bytes are free", *free) : "free bytes unknown";
      const std::string need = needed > 0 ? fmt::format("{} bytes are needed, ", needed) : "";
      return fmt::format("{}{}: free space or quota, or write elsewhere.", need, have);
    }
    case EFBIG:
      return fmt::format("{}Raise the file size limit (ulimit -f), or write elsewhere.",
                         needed > 0 ? fmt::format("{} bytes are needed. ", needed) : "");
    case EACCES:
    case EPERM:
      return "Check the owner and mode of the file and of its directory; people who share a "
             "directory "
             "work with umask 002.";
    case EROFS:
      return "The file system is mounted read-only: name a place on another one.";
    case ENOENT:
    case ENOTDIR:
    case EISDIR:
      return "Check the path.";
    case ELOOP:
      return "Check the symbolic links on the way.";
    case ENAMETOOLONG:
      return "Choose a shorter path.";
    case ESTALE:
      return "The file was replaced or removed on the file server while it was in use: start "
             "again.";
    case EXDEV:
      return "Both names must be on one file system.";
    case EIO:
    case ETIMEDOUT:
    case ENOTCONN:
      return "Check the disk or the file server, then start again.";
    case EEXIST:
    case ENOTEMPTY:
      return "Remove it, or name another output.";
    case EMFILE:
    case ENFILE:
      return "Raise the limit on open files (ulimit -n).";
    default:
      return {};
  }
}

}  // namespace

void fail(const char* call, const std::filesystem::path& path, int number, Access access,
          std::uint64_t needed) {
  throw Error(
      code_of_errno(number),
      fmt::format("cannot {} {}", access == Access::read ? "read" : "write", shown(path.string())),
      fmt::format("{}: {}", call, std::strerror(number)), remedy_of(number, path, needed));
}

int open_restarted(const std::filesystem::path& path, int flags) {
  return restarted([&] { return ::open(path.c_str(), flags | O_CLOEXEC, 0666); });
}

bool synchronised(int fd) {
  return restarted([&] { return ::fsync(fd); }) == 0 || is_unknown_call(errno);
}

fault::Outcome pass(WriteScope scope, std::string_view step) {
  if (scope == WriteScope::other) return {};
  const char* name = scope == WriteScope::save    ? "save"
                     : scope == WriteScope::pause ? "pause"
                     : scope == WriteScope::refit ? "refit"
                                                  : "export";
  return fault::hit(fmt::format("{}.{}", name, step));
}

void pass_or_fail(WriteScope scope, std::string_view step, const char* call,
                  const std::filesystem::path& path) {
  const fault::Outcome outcome = pass(scope, step);
  if (outcome.error_number != 0) fail(call, path, outcome.error_number, Access::write);
}

std::filesystem::path directory_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

std::uint64_t random_number(const std::filesystem::path& path) {
  std::uint64_t number = 0;
  if (restarted([&] { return ::getrandom(&number, sizeof number, 0); }) !=
      static_cast<ssize_t>(sizeof number))
    fail("getrandom", path, errno, Access::write);
  return number;
}

std::filesystem::path temporary_beside(const std::filesystem::path& path) {
  // Room for the rest of the name: the longest that file systems take is 255 bytes.
  const std::string stem = path.filename().string().substr(0, 200);
  return directory_of(path) / fmt::format(".{}.tmp-{:016x}", stem, random_number(path));
}

std::string shown(std::string_view text) {
  constexpr std::size_t kMost = 300;
  std::string result = "'";
  std::size_t at = 0;
  while (at < std::min(text.size(), kMost)) {
    const std::size_t length = character_bytes(text.substr(at));
    if (length == 0 || is_control(text[at]))
      result += fmt::format("\\x{:02x}", static_cast<unsigned char>(text[at]));
    else
      result += text.substr(at, length);
    at += std::max<std::size_t>(length, 1);
  }
  return result + (at < text.size() ? "...'" : "'");
}

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

Descriptor::~Descriptor() {
  if (fd_ >= 0) ::close(fd_);
}

int Descriptor::release() {
  const int fd = fd_;
  fd_ = -1;
  return fd;
}

Descriptor open_regular(const std::filesystem::path& path) {
  // O_NONBLOCK: opening a pipe without a writer would hang before it can be recognised.
  Descriptor file{open_restarted(path, O_RDONLY | O_NONBLOCK)};
  struct stat info {};
  // A lease that another host has on the file is given back only to those who wait.
  if (file.get() < 0 && errno == EAGAIN && ::stat(path.c_str(), &info) == 0 &&
      S_ISREG(info.st_mode))
    file = Descriptor{open_restarted(path, O_RDONLY)};
  if (file.get() < 0) fail("open", path, errno, Access::read);
  if (::fstat(file.get(), &info) != 0) fail("fstat", path, errno, Access::read);
  if (!S_ISREG(info.st_mode))
    throw Error(ExitCode::missing_input, fmt::format("{} is not a file", shown(path.string())),
                "a regular file or a link to one is read here");
  return file;
}

std::uint64_t size_of_file(const Descriptor& file, const std::filesystem::path& path) {
  struct stat info {};
  if (::fstat(file.get(), &info) != 0) fail("fstat", path, errno, Access::read);
  return static_cast<std::uint64_t>(info.st_size);
}

std::size_t read_at(const Descriptor& file, const std::filesystem::path& path, std::uint64_t offset,
                    std::span<std::byte> out) {
  std::size_t done = 0;
  while (done < out.size()) {
    const std::size_t count = std::min(out.size() - done, kBlock);
    const ssize_t got = restarted([&] {
      return ::pread(file.get(), out.data() + done, count, static_cast<off_t>(offset + done));
    });
    if (got < 0) fail("pread", path, errno, Access::read);
    if (got == 0) break;
    done += static_cast<std::size_t>(got);
    pulse::beat();
  }
  return done;
}

OutputFile::OutputFile(const std::filesystem::path& path, WriteScope scope,
                       std::uint64_t expected_bytes)
    : path_(path), scope_(scope), expected_bytes_(expected_bytes) {
  pass_or_fail(scope_, "open", "open", path_);
  file_ = Descriptor{open_restarted(path_, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW)};
  if (file_.get() < 0) fail("open", path_, errno, Access::write);
  buffer_.reserve(static_cast<std::size_t>(std::min<std::uint64_t>(expected_bytes_, kBuffer)));
}

OutputFile::~OutputFile() {
  // What was not finished must not be taken for a whole file.
  if (!finished_ && file_.get() >= 0) ::unlink(path_.c_str());
}

void OutputFile::write(std::span<const std::byte> bytes) {
  if (buffer_.size() + bytes.size() <= kBuffer) {
    hash_.update(bytes);
    buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
    return;
  }
  // Hashing takes about as long as the file system's copy, so both go on at once. Whatever ends
  // this function, it waits for the hash first: that reads `bytes`.
  auto hashed = in_background([&] { hash_.update(bytes); });
  hand_over(buffer_);
  buffer_.clear();
  hand_over(bytes);
  hashed.get();
}

void OutputFile::hand_over(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const auto block = bytes.first(std::min(bytes.size(), kBlock));
    write_block(block);
    bytes = bytes.subspan(block.size());
  }
}

void OutputFile::write_block(std::span<const std::byte> block) {
  const fault::Outcome outcome = pass(scope_, "write");
  const bool short_write = outcome.effect == fault::Effect::short_write;
  if (outcome.error_number != 0 && !short_write)
    fail("write", path_, outcome.error_number, Access::write, expected_bytes_);
  const std::size_t count = short_write ? block.size() / 2 : block.size();
  std::size_t done = 0;
  while (done < count) {
    const ssize_t put =
        restarted([&] { return ::write(file_.get(), block.data() + done, count - done); });
    if (put < 0) fail("write", path_, errno, Access::write, std::max(expected_bytes_, written_));
    // POSIX allows 0 for no progress; going on would loop for ever.
    if (put == 0) fail("write", path_, ENOSPC, Access::write, expected_bytes_);
    done += static_cast<std::size_t>(put);
  }
  written_ += done;
  pulse::beat();
  stream_out();
  if (short_write) fail("write", path_, outcome.error_number, Access::write, expected_bytes_);
}

void OutputFile::stream_out() {
  sync_range(flushing_, written_, SYNC_FILE_RANGE_WRITE);
  flushing_ = written_;
  if (written_ - dropped_ < 2 * kInFlight) return;
  const std::uint64_t end = written_ - kInFlight;
  sync_range(dropped_, end,
             SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
  ::posix_fadvise(file_.get(), static_cast<off_t>(dropped_), static_cast<off_t>(end - dropped_),
                  POSIX_FADV_DONTNEED);
  dropped_ = end;
}

void OutputFile::sync_range(std::uint64_t begin, std::uint64_t end, unsigned int how) {
  const int result = restarted([&] {
    return ::sync_file_range(file_.get(), static_cast<off64_t>(begin),
                             static_cast<off64_t>(end - begin), how);
  });
  // Containers forbid calls that they do not know with EPERM, which no disk says.
  if (result == 0 || is_unknown_call(errno) || errno == EPERM) return;
  fail("sync_file_range", path_, errno, Access::write, expected_bytes_);
}

std::string OutputFile::finish() {
  pass_or_fail(scope_, "flush", "write", path_);
  hand_over(buffer_);
  buffer_.clear();
  pass_or_fail(scope_, "fsync", "fsync", path_);
  if (!synchronised(file_.get())) fail("fsync", path_, errno, Access::write, expected_bytes_);
  std::string digest = hash_.hex();
  if (scope_ != WriteScope::export_model && scope_ != WriteScope::other) read_back(digest);
  pass_or_fail(scope_, "close", "close", path_);
  // Network file systems report late write errors here. After a failed close the descriptor is
  // gone, also when a signal interrupted it; the data are safe since fsync.
  if (::close(file_.release()) != 0 && errno != EINTR) {
    const int number = errno;
    ::unlink(path_.c_str());
    fail("close", path_, number, Access::write, expected_bytes_);
  }
  finished_ = true;
  return digest;
}

void OutputFile::read_back(const std::string& digest) {
  pass_or_fail(scope_, "readback", "pread", path_);
  // Drop the cached pages, so that what is compared is what the device gives back.
  ::posix_fadvise(file_.get(), 0, 0, POSIX_FADV_DONTNEED);
  Sha256 hash;
  std::vector<std::byte> block(
      static_cast<std::size_t>(std::min<std::uint64_t>(written_ + 1, kBlock)));
  std::uint64_t offset = 0;
  while (const std::size_t got = read_at(file_, path_, offset, block)) {
    hash.update(std::span(block).first(got));
    offset += got;
  }
  const std::string found = hash.hex();
  if (offset == written_ && found == digest) return;
  throw Error(ExitCode::write_failed,
              fmt::format("{} reads back differently from what was written", shown(path_.string())),
              fmt::format("{} bytes with SHA-256 {} instead of {} bytes with {}", offset, found,
                          written_, digest),
              "Check the disk; nothing was published.");
}

}  // namespace espalier::posix
