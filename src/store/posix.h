#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "espalier/core/fault.h"
#include "espalier/core/hash.h"
#include "espalier/core/text.h"
#include "espalier/store/files.h"

/// System calls with the project's messages; shared by the files of this module only.
namespace espalier::posix {

/// Largest piece handed to one read or write call.
inline constexpr std::size_t kBlock = std::size_t{16} << 20;

/// Whether a failed call was about reading an input or writing an output: some errno values mean
/// different things for the two.
enum class Access { read, write };

/// Makes a system call again as long as a signal interrupts it.
template <class Call>
auto restarted(Call&& call) {
  for (;;) {
    const auto result = call();
    if (result >= 0 || errno != EINTR) return result;
  }
}

/// open(2), made again when interrupted; new files get the mode that the umask leaves of 0666.
int open_restarted(const std::filesystem::path& path, int flags);

/// fsync(2) of a file or directory. Some file systems know no fsync, of directories or at all: they
/// write at once, or promise nothing; it is not an error there.
bool synchronised(int fd);

/// Throws Error for `call` on `path` that failed with `number`. `needed` (bytes, 0 = unknown) is
/// put beside the free bytes when the disk is full.
[[noreturn]] void fail(const char* call, const std::filesystem::path& path, int number,
                       Access access, std::uint64_t needed = 0);

/// Passes the fault point `<scope>.<step>`; returns the errno value to behave as, or 0. Scope
/// `other` has no points.
fault::Outcome pass(WriteScope scope, std::string_view step);
/// As pass(), for calls that know no partial effect: every armed effect makes them fail.
void pass_or_fail(WriteScope scope, std::string_view step, const char* call,
                  const std::filesystem::path& path);

/// `text` in single quotes, shortened and without control characters, for messages about hostile
/// input.
std::string shown(std::string_view text);

/// The directory that `path` lies in; "." for a bare name.
std::filesystem::path directory_of(const std::filesystem::path& path);
std::uint64_t random_number(const std::filesystem::path& path);
/// A name beside `path` that no other process uses, hidden and with ".tmp-" in it.
std::filesystem::path temporary_beside(const std::filesystem::path& path);

/// Owns a file descriptor.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(other.release()) {}
  Descriptor& operator=(Descriptor&& other) noexcept;
  ~Descriptor();
  int get() const { return fd_; }
  int release();

 private:
  int fd_ = -1;
};

/// Opens a regular file for reading (links are followed). Anything else is refused: a pipe or
/// device could block or never end.
Descriptor open_regular(const std::filesystem::path& path);
std::uint64_t size_of_file(const Descriptor& file, const std::filesystem::path& path);

/// Reads `out.size()` bytes at `offset`; returns how many there were (fewer only at the file's
/// end).
std::size_t read_at(const Descriptor& file, const std::filesystem::path& path, std::uint64_t offset,
                    std::span<std::byte> out);

/// A new file that is written once from front to back: small pieces are gathered, every call is
/// checked, and a file that was not finished is removed again.
class OutputFile {
 public:
  /// O_EXCL and O_NOFOLLOW: neither an existing file nor the target of a planted link is written.
  /// `expected_bytes` is only for the disk-full message.
  OutputFile(const std::filesystem::path& path, WriteScope scope, std::uint64_t expected_bytes);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(std::span<const std::byte> bytes);
  /// Flushes, fsyncs, reads back (store/files.h) and closes. Returns the SHA-256 of all bytes
  /// written.
  std::string finish();

 private:
  void hand_over(std::span<const std::byte> bytes);
  void write_block(std::span<const std::byte> block);
  /// Has the disk begin with what was handed over, and gives up the cache of what is there. Left
  /// alone the kernel first gathers a tenth of the memory, for which fsync then waits, and a large
  /// file drives everybody else's out of the cache.
  void stream_out();
  /// sync_file_range(2) of [begin, end). Its errors count: the kernel tells an error of the disk
  /// once, and fsync would not hear of it again.
  void sync_range(std::uint64_t begin, std::uint64_t end, unsigned int how);
  void read_back(const std::string& digest);

  std::filesystem::path path_;
  WriteScope scope_;
  std::uint64_t expected_bytes_;
  std::uint64_t written_ = 0;
  /// Up to here the disk was asked to write, and the cache was given up.
  std::uint64_t flushing_ = 0, dropped_ = 0;
  Descriptor file_;
  std::vector<std::byte> buffer_;
  Sha256 hash_;
  bool finished_ = false;
};

}  // namespace espalier::posix
