#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace espalier {

/// Checked file calls with the project's messages: the only ones, besides the overloads with an
/// error code, that look at the file system. Failures throw Error with the call, the path and what
/// to do: missing_input (ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG), permission (EACCES, EPERM, EROFS),
/// cannot_create (EEXIST), unsuitable (no descriptors or memory), write_failed (everything else:
/// full disks, short writes, devices and file servers that fail). Calls that a signal interrupts
/// are made again. New files have the mode 0666 and new directories 0777, less the umask; a file
/// that replaces another does not take over its mode. Each writing step passes the fault point
/// `<scope>.<step>` with the steps open, write, flush, close, fsync, readback, pre_rename,
/// post_rename, fsync_dir, unlink, where scope is "save" for checkpoints, "pause" for what ranks
/// add to that of a paused pass, "refit" for refitted layers and "export" for exports; all but the
/// last are read back.
enum class WriteScope { save, pause, refit, export_model, other };

/// Whether something is there, links followed. False only for missing names (ENOENT, ENOTDIR).
bool path_exists(const std::filesystem::path& path);
/// Whether the name is taken, also by a link that leads nowhere.
bool name_exists(const std::filesystem::path& path);
/// False for everything else and where nothing is.
bool file_exists(const std::filesystem::path& path);
bool directory_exists(const std::filesystem::path& path);
/// mkdir of `path` and of all that is missing above it; fine when it is there. cannot_create when
/// something else is.
void make_directories(const std::filesystem::path& path);
/// mkdir of a directory that must be new.
void make_directory(const std::filesystem::path& path);
/// Throws unless this user may make and remove files in `directory`.
void require_writable(const std::filesystem::path& directory);
/// Paths of the entries, sorted.
std::vector<std::filesystem::path> list_directory(const std::filesystem::path& path);
/// Removes one file or link; fine when there is none.
void remove_file(const std::filesystem::path& path);
/// The path without links.
std::filesystem::path real_path(const std::filesystem::path& path);

/// Whole file as bytes; refuses files larger than `limit`.
std::string read_file(const std::filesystem::path& path, std::size_t limit = std::size_t{1} << 40);

/// Writes and fsyncs a new file (O_EXCL, O_NOFOLLOW).
void write_new_file(const std::filesystem::path& path, std::span<const std::byte> bytes,
                    WriteScope scope);
void write_new_file(const std::filesystem::path& path, std::string_view text, WriteScope scope);

/// Replaces `path` atomically: temporary file in the same directory, fsync, rename, fsync of the
/// directory.
void replace_file(const std::filesystem::path& path, std::string_view text,
                  WriteScope scope = WriteScope::other);

void fsync_directory(const std::filesystem::path& path, WriteScope scope);
/// rename(2) with the fault points pre_rename and post_rename around it.
void rename_path(const std::filesystem::path& from, const std::filesystem::path& to,
                 WriteScope scope);
/// Removes a tree; every unlink passes the fault point `<scope>.unlink`.
void remove_tree(const std::filesystem::path& path, WriteScope scope);
/// Throws Error(write_failed) unless the file system of `directory` has `needed` bytes free.
void require_free_space(const std::filesystem::path& directory, std::uint64_t needed);

std::int64_t bytes_of_file(const std::filesystem::path& path);
/// SHA-256 of a file's bytes, read in blocks (a mapped file that shrinks would kill the process).
std::string sha256_of_file(const std::filesystem::path& path);
/// The same of up to `bytes` bytes from `begin` on; fewer where the file ends before.
std::string sha256_of_block(const std::filesystem::path& path, std::int64_t begin,
                            std::int64_t bytes);

/// Copies a regular file (following links at the source, never at the target) and fsyncs.
void copy_file_checked(const std::filesystem::path& from, const std::filesystem::path& to,
                       WriteScope scope);

namespace posix {
class ClaimFile;
}

/// An open-file-description lock on `path`, held until destruction or process death. Where the file
/// system has no locks (ENOLCK, ENOSYS, EOPNOTSUPP, EINVAL), which is logged, a file `<path>.claim`
/// stands for it: its holder refreshes it every 5 s, and one that was not refreshed for 15 s may be
/// taken over. Both kinds are respected everywhere.
class FileLock {
 public:
  /// Tries for `wait_seconds`; returns nullptr when another process holds it. `owner` is what a
  /// claim file says about this process.
  static std::unique_ptr<FileLock> acquire(const std::filesystem::path& path, double wait_seconds,
                                           const std::string& owner = {});
  /// True when some process holds the lock (does not take it).
  static bool is_held(const std::filesystem::path& path);
  /// Throws Error(cannot_create) when another process took over the claim of this one, which gave
  /// no sign of life for too long.
  void require_held() const;
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  explicit FileLock(int fd);
  explicit FileLock(std::unique_ptr<posix::ClaimFile> claim);
  int fd_ = -1;
  std::unique_ptr<posix::ClaimFile> claim_;
};

}  // namespace espalier
