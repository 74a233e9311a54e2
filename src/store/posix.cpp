#include "posix.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <fmt/format.h>

#include "espalier/core/error.h"

namespace espalier::posix {
namespace {

constexpr std::size_t kBuffer = std::size_t{1} << 20;

/// A device that cannot be read says nothing about the content: 74 is the code for I/O errors.
ExitCode code_of(int number, Access access) {
  const ExitCode code = code_of_errno(number);
  const bool is_content = code == ExitCode::write_failed && access == Access::read && number != EIO;
  return is_content ? ExitCode::bad_content : code;
}

std::optional<std::uint64_t> free_bytes(const std::filesystem::path& path) {
  struct statvfs info {};
  std::filesystem::path directory = path.parent_path();
  if (directory.empty()) directory = ".";
  if (::statvfs(directory.c_str(), &info) != 0) return std::nullopt;
  return static_cast<std::uint64_t>(info.f_bavail) * info.f_frsize;
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
      return "Check the owner and mode of the file and of its directory.";
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
      code_of(number, access),
      fmt::format("cannot {} {}", access == Access::read ? "read" : "write", shown(path.string())),
      fmt::format("{}: {}", call, std::strerror(number)), remedy_of(number, path, needed));
}

fault::Outcome pass(WriteScope scope, std::string_view step) {
  if (scope == WriteScope::other) return {};
  return fault::hit(fmt::format("{}.{}", scope == WriteScope::save ? "save" : "export", step));
}

void pass_or_fail(WriteScope scope, std::string_view step, const char* call,
                  const std::filesystem::path& path) {
  const fault::Outcome outcome = pass(scope, step);
  if (outcome.error_number != 0) fail(call, path, outcome.error_number, Access::write);
}

std::size_t character_bytes(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  if (text.empty()) return 0;
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  const std::size_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  if (lead < 0xc2 || lead > 0xf4 || length > text.size()) return 0;
  for (std::size_t i = 1; i < length; ++i)
    if ((byte(i) & 0xc0U) != 0x80U) return 0;
  // Too long forms, halves of surrogate pairs, beyond U+10FFFF.
  if ((lead == 0xe0 && byte(1) < 0xa0) || (lead == 0xed && byte(1) > 0x9f) ||
      (lead == 0xf0 && byte(1) < 0x90) || (lead == 0xf4 && byte(1) > 0x8f))
    return 0;
  return length;
}

bool is_control(char c) {
  const auto byte = static_cast<unsigned char>(c);
  return byte < 0x20 || byte == 0x7f;
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
  Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.get() < 0) fail("open", path, errno, Access::read);
  struct stat info {};
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
    const ssize_t got =
        ::pread(file.get(), out.data() + done, count, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail("pread", path, errno, Access::read);
    if (got == 0) break;
    done += static_cast<std::size_t>(got);
  }
  return done;
}

OutputFile::OutputFile(const std::filesystem::path& path, WriteScope scope,
                       std::uint64_t expected_bytes)
    : path_(path), scope_(scope), expected_bytes_(expected_bytes) {
  pass_or_fail(scope_, "open", "open", path_);
  file_ =
      Descriptor{::open(path_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644)};
  if (file_.get() < 0) fail("open", path_, errno, Access::write);
  buffer_.reserve(static_cast<std::size_t>(std::min<std::uint64_t>(expected_bytes_, kBuffer)));
}

OutputFile::~OutputFile() {
  // What was not finished must not be taken for a whole file.
  if (!finished_ && file_.get() >= 0) ::unlink(path_.c_str());
}

void OutputFile::write(std::span<const std::byte> bytes) {
  hash_.update(bytes);
  if (buffer_.size() + bytes.size() <= kBuffer) {
    buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
    return;
  }
  hand_over(buffer_);
  buffer_.clear();
  hand_over(bytes);
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
    const ssize_t put = ::write(file_.get(), block.data() + done, count - done);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) fail("write", path_, errno, Access::write, std::max(expected_bytes_, written_));
    // POSIX allows 0 for no progress; going on would loop for ever.
    if (put == 0) fail("write", path_, ENOSPC, Access::write, expected_bytes_);
    done += static_cast<std::size_t>(put);
  }
  written_ += done;
  if (short_write) fail("write", path_, outcome.error_number, Access::write, expected_bytes_);
}

std::string OutputFile::finish() {
  pass_or_fail(scope_, "flush", "write", path_);
  hand_over(buffer_);
  buffer_.clear();
  pass_or_fail(scope_, "fsync", "fsync", path_);
  if (::fsync(file_.get()) != 0) fail("fsync", path_, errno, Access::write, expected_bytes_);
  std::string digest = hash_.hex();
  if (scope_ == WriteScope::save) read_back(digest);
  pass_or_fail(scope_, "close", "close", path_);
  // Network file systems report late write errors here. After a failed close the descriptor is
  // gone.
  if (::close(file_.release()) != 0) {
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
