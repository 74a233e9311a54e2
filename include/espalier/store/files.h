#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace espalier {

/// Checked file calls with the project's messages. Failures throw Error: missing_input (ENOENT),
/// permission (EACCES, EPERM, EROFS), write_failed (ENOSPC, EDQUOT, EFBIG, EIO, short writes),
/// cannot_create (EEXIST). Each writing step passes the fault point `<scope>.<step>` with the steps
/// open, write, flush, close, fsync, readback, pre_rename, post_rename, fsync_dir, unlink, where
/// scope is "save" for checkpoints and "export" for exports.
enum class WriteScope { save, export_model, other };

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

/// SHA-256 of a file's bytes, read in blocks (a mapped file that shrinks would kill the process).
std::string sha256_of_file(const std::filesystem::path& path);
/// The same of up to `bytes` bytes from `begin` on; fewer where the file ends before.
std::string sha256_of_block(const std::filesystem::path& path, std::int64_t begin,
                            std::int64_t bytes);

/// Copies a regular file (following links at the source, never at the target) and fsyncs.
void copy_file_checked(const std::filesystem::path& from, const std::filesystem::path& to,
                       WriteScope scope);

/// An open-file-description lock on `path`, held until destruction or process death.
class FileLock {
 public:
  /// Tries for `wait_seconds`; returns nullptr when another process holds it.
  static std::unique_ptr<FileLock> acquire(const std::filesystem::path& path, double wait_seconds);
  /// True when some process holds the lock (does not take it).
  static bool is_held(const std::filesystem::path& path);
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  explicit FileLock(int fd) : fd_(fd) {}
  int fd_;
};

}  // namespace espalier
