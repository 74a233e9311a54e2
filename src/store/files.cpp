#include "espalier/store/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <limits>
#include <optional>
#include <vector>

#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/core/hash.h"
#include "posix.h"

namespace espalier {
namespace {

using posix::Access;

bool is_missing(int number) { return number == ENOENT || number == ENOTDIR; }

/// stat(2) of `path`; nothing when there is no such file. Every other failure is an Error: what
/// cannot be looked at must not be taken for missing.
std::optional<struct stat> facts_of(const std::filesystem::path& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) == 0) return info;
  if (is_missing(errno)) return std::nullopt;
  posix::fail("stat", path, errno, Access::read);
}

void unlink_one(const std::filesystem::path& path, bool is_directory, WriteScope scope) {
  posix::pass_or_fail(scope, "unlink", is_directory ? "rmdir" : "unlink", path);
  const int result = is_directory ? ::rmdir(path.c_str()) : ::unlink(path.c_str());
  if (result != 0 && errno != ENOENT)
    posix::fail(is_directory ? "rmdir" : "unlink", path, errno, Access::write);
}

}  // namespace

bool path_exists(const std::filesystem::path& path) { return facts_of(path).has_value(); }

bool name_exists(const std::filesystem::path& path) {
  struct stat info {};
  if (::lstat(path.c_str(), &info) == 0) return true;
  if (is_missing(errno)) return false;
  posix::fail("lstat", path, errno, Access::read);
}

bool file_exists(const std::filesystem::path& path) {
  const auto facts = facts_of(path);
  return facts && S_ISREG(facts->st_mode);
}

bool directory_exists(const std::filesystem::path& path) {
  const auto facts = facts_of(path);
  return facts && S_ISDIR(facts->st_mode);
}

void make_directories(const std::filesystem::path& path) {
  std::error_code failure;
  std::filesystem::create_directories(path, failure);
  if (failure.value() == ENOTDIR || failure.value() == EEXIST)
    throw Error(ExitCode::cannot_create,
                fmt::format("cannot make the directory {}", posix::shown(path.string())),
                fmt::format("mkdir: {}", failure.message()),
                "A file or a broken link stands in the way: remove it, or choose another place.");
  if (failure) posix::fail("mkdir", path, failure.value(), Access::write);
}

void make_directory(const std::filesystem::path& path) {
  if (::mkdir(path.c_str(), 0777) != 0) posix::fail("mkdir", path, errno, Access::write);
}

void require_writable(const std::filesystem::path& directory) {
  if (::access(directory.c_str(), W_OK | X_OK) != 0)
    posix::fail("access", directory, errno, Access::write);
}

std::vector<std::filesystem::path> list_directory(const std::filesystem::path& path) {
  std::error_code failure;
  std::vector<std::filesystem::path> entries;
  for (std::filesystem::directory_iterator at(path, failure), end; !failure && at != end;
       at.increment(failure))
    entries.push_back(at->path());
  if (failure) posix::fail("readdir", path, failure.value(), Access::read);
  std::sort(entries.begin(), entries.end());
  return entries;
}

void remove_file(const std::filesystem::path& path) {
  if (::unlink(path.c_str()) != 0 && errno != ENOENT)
    posix::fail("unlink", path, errno, Access::write);
}

std::filesystem::path real_path(const std::filesystem::path& path) {
  std::error_code failure;
  std::filesystem::path result = std::filesystem::canonical(path, failure);
  if (failure) posix::fail("realpath", path, failure.value(), Access::read);
  return result;
}

std::string read_file(const std::filesystem::path& path, std::size_t limit) {
  limit = std::min(limit, SIZE_MAX / 4);  // so that limit + 1 below cannot wrap
  const posix::Descriptor file = posix::open_regular(path);
  const std::uint64_t size = posix::size_of_file(file, path);
  if (size > limit)
    throw Error(ExitCode::bad_content,
                fmt::format("{} has {} bytes", posix::shown(path.string()), size),
                fmt::format("at most {} are read here", limit));
  // One byte more than the size tells a file that grew; files of /proc say 0 and are read by
  // blocks.
  std::string text(static_cast<std::size_t>(size) + 1, '\0');
  std::size_t done = 0;
  for (;;) {
    const std::size_t got =
        posix::read_at(file, path, done, std::as_writable_bytes(std::span(text).subspan(done)));
    done += got;
    if (done < text.size()) break;
    if (done > limit)
      throw Error(ExitCode::bad_content,
                  fmt::format("{} grew while it was read", posix::shown(path.string())),
                  fmt::format("at most {} bytes are read here", limit));
    text.resize(std::min(text.size() * 2 + 4096, std::max(limit, text.size()) + 1));
  }
  text.resize(done);
  return text;
}

void write_new_file(const std::filesystem::path& path, std::span<const std::byte> bytes,
                    WriteScope scope) {
  posix::OutputFile file(path, scope, bytes.size());
  file.write(bytes);
  file.finish();
}

void write_new_file(const std::filesystem::path& path, std::string_view text, WriteScope scope) {
  write_new_file(path, std::as_bytes(std::span(text)), scope);
}

void replace_file(const std::filesystem::path& path, std::string_view text, WriteScope scope) {
  const std::filesystem::path temporary = posix::temporary_beside(path);
  write_new_file(temporary, text, scope);
  try {
    posix::pass_or_fail(scope, "pre_rename", "rename", path);
    if (::rename(temporary.c_str(), path.c_str()) != 0)
      posix::fail("rename", path, errno, Access::write);
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
  posix::pass_or_fail(scope, "post_rename", "rename", path);
  fsync_directory(posix::directory_of(path), scope);
}

void fsync_directory(const std::filesystem::path& path, WriteScope scope) {
  const posix::Descriptor directory{posix::open_restarted(path, O_RDONLY | O_DIRECTORY)};
  if (directory.get() < 0) posix::fail("open", path, errno, Access::write);
  posix::pass_or_fail(scope, "fsync_dir", "fsync", path);
  if (!posix::synchronised(directory.get())) posix::fail("fsync", path, errno, Access::write);
}

void rename_path(const std::filesystem::path& from, const std::filesystem::path& to,
                 WriteScope scope) {
  posix::pass_or_fail(scope, "pre_rename", "rename", to);
  if (::rename(from.c_str(), to.c_str()) != 0) {
    const int number = errno;
    struct stat info {};
    posix::fail("rename", ::lstat(from.c_str(), &info) != 0 ? from : to, number, Access::write);
  }
  posix::pass_or_fail(scope, "post_rename", "rename", to);
}

void remove_tree(const std::filesystem::path& path, WriteScope scope) {
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0) {
    if (errno == ENOENT) return;
    posix::fail("lstat", path, errno, Access::write);
  }
  const bool is_directory = S_ISDIR(info.st_mode);
  if (is_directory) {
    for (const std::filesystem::path& entry : list_directory(path)) remove_tree(entry, scope);
  }
  unlink_one(path, is_directory, scope);
}

void require_free_space(const std::filesystem::path& directory, std::uint64_t needed) {
  struct statvfs info {};
  if (::statvfs(directory.c_str(), &info) != 0)
    posix::fail("statvfs", directory, errno, Access::write);
  const std::uint64_t free = static_cast<std::uint64_t>(info.f_bavail) * info.f_frsize;
  if (free >= needed) return;
  throw Error(ExitCode::write_failed,
              fmt::format("not enough space for {}: {} bytes are needed, {} bytes are free",
                          posix::shown(directory.string()), needed, free),
              "checked before writing", "Free space, or write elsewhere.");
}

std::int64_t bytes_of_file(const std::filesystem::path& path) {
  return static_cast<std::int64_t>(posix::size_of_file(posix::open_regular(path), path));
}

std::string sha256_of_file(const std::filesystem::path& path) {
  return sha256_of_block(path, 0, std::numeric_limits<std::int64_t>::max());
}

std::string sha256_of_block(const std::filesystem::path& path, std::int64_t begin,
                            std::int64_t bytes) {
  const posix::Descriptor file = posix::open_regular(path);
  Sha256 hash;
  std::vector<std::byte> piece(static_cast<std::size_t>(std::min(bytes, std::int64_t{1} << 20)));
  for (std::int64_t done = 0; done < bytes;) {
    const auto wanted = std::min<std::int64_t>(bytes - done, std::ssize(piece));
    const std::size_t got =
        posix::read_at(file, path, static_cast<std::uint64_t>(begin + done),
                       std::span(piece).first(static_cast<std::size_t>(wanted)));
    if (got == 0) break;
    hash.update(std::span(piece).first(got));
    done += static_cast<std::int64_t>(got);
  }
  return hash.hex();
}

void copy_file_checked(const std::filesystem::path& from, const std::filesystem::path& to,
                       WriteScope scope) {
  const posix::Descriptor source = posix::open_regular(from);
  const std::uint64_t size = posix::size_of_file(source, from);
  posix::OutputFile target(to, scope, size);
  std::vector<std::byte> block(
      static_cast<std::size_t>(std::min<std::uint64_t>(size + 1, posix::kBlock)));
  std::uint64_t offset = 0;
  while (const std::size_t got = posix::read_at(source, from, offset, block)) {
    target.write(std::span(block).first(got));
    offset += got;
  }
  if (offset != size)
    throw Error(ExitCode::bad_content,
                fmt::format("{} changed while it was copied", posix::shown(from.string())),
                fmt::format("{} bytes at first, {} read", size, offset));
  target.finish();
}

}  // namespace espalier
