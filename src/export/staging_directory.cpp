#include <unistd.h>

#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/core/paths.h"
#include "espalier/store/files.h"
#include "export_parts.h"

namespace espalier::export_detail {
namespace {

namespace fs = std::filesystem;

void require_absent(const fs::path& out) {
  if (!name_exists(out)) return;
  throw Error(ExitCode::cannot_create, fmt::format("{} exists", out.string()),
              "an export makes its directory itself and never writes over anything",
              "Choose another place, or remove it first.");
}

/// Flushes `directory` and all below it, the innermost first.
void fsync_tree(const fs::path& directory) {
  for (const fs::path& entry : list_directory(directory))
    if (directory_exists(entry)) fsync_tree(entry);
  fsync_directory(directory, WriteScope::export_model);
}

}  // namespace

StagingDirectory::StagingDirectory(const fs::path& out, bool replace)
    : replace_(replace),
      out_(absolute_path(out)),
      staging_(out_.parent_path() /
               fmt::format("{}.tmp-{}", out_.filename().string(), ::getpid())) {
  if (!replace_) require_absent(out_);
  make_directories(out_.parent_path());
  // Only an earlier process of the same number can have left it.
  if (name_exists(staging_)) remove_tree(staging_, WriteScope::export_model);
  make_directory(staging_);
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
  fsync_tree(staging_);
  if (!replace_) require_absent(out_);
  const fs::path old =
      out_.parent_path() / fmt::format("{}.trash-{}", out_.filename().string(), ::getpid());
  const bool has_old = name_exists(out_);
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
  if (name_exists(old)) remove_tree(old, WriteScope::export_model);
  rename_path(out_, old, WriteScope::export_model);
  try {
    rename_path(staging_, out_, WriteScope::export_model);
  } catch (...) {
    std::error_code failure;
    if (!name_exists(out_)) fs::rename(old, out_, failure);
    throw;
  }
}

}  // namespace espalier::export_detail
