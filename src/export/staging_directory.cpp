#include <unistd.h>

#include <system_error>

#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/store/files.h"
#include "export_parts.h"

namespace espalier::export_detail {
namespace {

namespace fs = std::filesystem;

fs::path without_trailing_slash(const fs::path& path) {
  const fs::path normal = fs::absolute(path).lexically_normal();
  return normal.has_filename() ? normal : normal.parent_path();
}

bool is_there(const fs::path& path) {
  std::error_code failure;
  return fs::exists(fs::symlink_status(path, failure));
}

void require_absent(const fs::path& out) {
  if (!is_there(out)) return;
  throw Error(ExitCode::cannot_create, fmt::format("{} exists", out.string()),
              "an export makes its directory itself and never writes over anything",
              "Choose another place, or remove it first.");
}

[[noreturn]] void cannot_make(const fs::path& path, const std::error_code& failure) {
  ExitCode code = ExitCode::cannot_create;
  if (failure == std::errc::permission_denied || failure == std::errc::operation_not_permitted ||
      failure == std::errc::read_only_file_system)
    code = ExitCode::permission;
  if (failure == std::errc::no_space_on_device || failure == std::errc::io_error)
    code = ExitCode::write_failed;
  throw Error(code, fmt::format("cannot make the directory {}", path.string()), failure.message(),
              "Choose a place that can be written.");
}

void make_directories(const fs::path& path) {
  std::error_code failure;
  fs::create_directories(path, failure);
  if (failure) cannot_make(path, failure);
}

}  // namespace

StagingDirectory::StagingDirectory(const fs::path& out, bool replace)
    : replace_(replace),
      out_(without_trailing_slash(out)),
      staging_(out_.parent_path() /
               fmt::format("{}.tmp-{}", out_.filename().string(), ::getpid())) {
  if (!replace_) require_absent(out_);
  make_directories(out_.parent_path());
  // Only an earlier process of the same number can have left it.
  if (is_there(staging_)) remove_tree(staging_, WriteScope::export_model);
  std::error_code failure;
  fs::create_directory(staging_, failure);
  if (failure) cannot_make(staging_, failure);
}

StagingDirectory::~StagingDirectory() {
  if (published_) return;
  try {
    remove_tree(staging_, WriteScope::export_model);
  } catch (const std::exception& error) {
    log::warning("an unfinished export is left in {}: {}", staging_.string(), error.what());
  }
}

void StagingDirectory::make_subdirectories(const fs::path& relative) {
  if (!relative.empty()) make_directories(staging_ / relative);
}

void StagingDirectory::publish() {
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(staging_))
    if (entry.is_directory()) fsync_directory(entry.path(), WriteScope::export_model);
  fsync_directory(staging_, WriteScope::export_model);
  if (!replace_) require_absent(out_);
  const fs::path old =
      out_.parent_path() / fmt::format("{}.trash-{}", out_.filename().string(), ::getpid());
  const bool has_old = is_there(out_);
  if (has_old)
    exchange(old);
  else
    rename_path(staging_, out_, WriteScope::export_model);
  published_ = true;
  fsync_directory(out_.parent_path(), WriteScope::export_model);
  if (has_old) remove_tree(old, WriteScope::export_model);
}

void StagingDirectory::exchange(const fs::path& old) {
  // Only an earlier process of the same number can have left it.
  if (is_there(old)) remove_tree(old, WriteScope::export_model);
  rename_path(out_, old, WriteScope::export_model);
  try {
    rename_path(staging_, out_, WriteScope::export_model);
  } catch (...) {
    std::error_code ignored;
    if (!is_there(out_)) fs::rename(old, out_, ignored);
    throw;
  }
}

}  // namespace espalier::export_detail
