#include "espalier/pipeline/commit.h"

#include <algorithm>
#include <charconv>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "espalier/core/error.h"
#include "espalier/core/fault.h"
#include "espalier/core/hash.h"
#include "espalier/core/json.h"
#include "espalier/score/boundary_files.h"
#include "espalier/store/files.h"
#include "sealed_json.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;
constexpr const char* kManifest = "MANIFEST.json";
constexpr const char* kDamaged =
    "Restore the commit from a copy, or remove it: a run then continues after the one before.";

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

const char* prefix_of(CommitKind kind) { return kind == CommitKind::pass ? "pass-" : "iter-"; }
const char* state_name(CommitKind kind) {
  return kind == CommitKind::pass ? "sums.h5" : "state.h5";
}

const char* word_of(CommitKind kind) {
  return kind == CommitKind::pass ? "paused pass" : "iteration";
}

std::optional<std::int64_t> iteration_of(const std::string& name, CommitKind kind) {
  if (!name.starts_with(prefix_of(kind))) return std::nullopt;
  std::int64_t value = 0;
  const char* end = name.data() + name.size();
  const auto result = std::from_chars(name.data() + 5, end, value);
  if (result.ec != std::errc() || result.ptr != end || value < 0) return std::nullopt;
  // iter-1 and iter-0000001 are not names that a commit is published under.
  if (CommitStore::directory_name(value, kind) != name) return std::nullopt;
  return value;
}

std::string numbers_text(const std::vector<std::int64_t>& numbers) {
  return numbers.empty() ? "none" : fmt::format("{}", fmt::join(numbers, ", "));
}

fs::path temporary_in(const fs::path& directory, std::int64_t iteration, int attempt) {
  return directory / fmt::format(".tmp-{:06}-{}", iteration, attempt);
}

/// What a commit is called while one of its name takes its place.
constexpr const char* kReplaced = ".replaced-";

/// Names of the entries of a directory that is there; none where there is no directory.
std::vector<std::string> names_in(const fs::path& directory) {
  std::vector<std::string> names;
  if (!name_exists(directory)) return names;
  for (const fs::path& entry : list_directory(directory))
    names.push_back(entry.filename().string());
  return names;
}

/// `prefix`N beside `path` with the first N that is free.
fs::path free_name(const fs::path& path, const std::string& prefix) {
  for (int i = 0;; ++i) {
    fs::path name = path.parent_path() / fmt::format("{}{}", prefix, i);
    if (!name_exists(name)) return name;
  }
}

/// Out of sight first: a crash between the two steps leaves only what the next start sweeps.
void discard(const fs::path& path) {
  const fs::path trash = free_name(path, fmt::format(".trash-{}-", path.filename().string()));
  rename_path(path, trash, WriteScope::save);
  remove_tree(trash, WriteScope::save);
}

}  // namespace

Inputs recorded_inputs(const Commit& commit) {
  const std::string origin = CommitStore::directory_name(commit.iteration, commit.kind);
  return inputs_from_json(commit.manifest.value("inputs", nlohmann::ordered_json()),
                          origin + "/" + kManifest);
}

std::vector<std::byte> state_image(const PruningPlan& plan, const ScoreTable& scores,
                                   const std::optional<FeatureMeans>& means) {
  Hdf5Writer file;
  write_plan(file, "", plan);
  write_scores(file, "", scores);
  if (means) write_feature_means(file, "", *means);
  return file.finish();
}

std::string CommitStore::directory_name(std::int64_t iteration, CommitKind kind) {
  return fmt::format("{}{:06}", prefix_of(kind), iteration);
}

fs::path CommitStore::prepare(std::int64_t iteration, int attempt) const {
  fs::path temporary = temporary_in(directory_, iteration, attempt);
  if (name_exists(temporary)) discard(temporary);
  make_directory(temporary);
  return temporary;
}

void CommitStore::publish(const Commit& commit, int attempt) {
  const std::string name = directory_name(commit.iteration, commit.kind);
  const std::string state = state_name(commit.kind);
  const fs::path final_path = directory_ / name;
  const fs::path temporary = temporary_in(directory_, commit.iteration, attempt);
  require_free_space(directory_, commit.state.size() + commit.state.size() / 5 + (1u << 20));
  if (commit.parts.empty()) prepare(commit.iteration, attempt);
  // Read back and compared before it is closed (store/files.h).
  write_new_file(temporary / state, commit.state, WriteScope::save);
  nlohmann::ordered_json manifest = commit.manifest;
  manifest["iteration"] = commit.iteration;
  manifest["files"] = {
      {state, {{"bytes", commit.state.size()}, {"sha256", sha256_hex(commit.state)}}}};
  for (const CommitPart& part : commit.parts)
    manifest["files"][part.name] = {{"bytes", part.bytes}, {"sha256", part.sha256}};
  fault::hit("save.manifest");
  write_new_file(temporary / kManifest, sealed(std::move(manifest)), WriteScope::save);
  fsync_directory(temporary, WriteScope::save);
  const fs::path replaced = directory_ / (kReplaced + name);
  if (name_exists(final_path)) rename_path(final_path, replaced, WriteScope::save);
  rename_path(temporary, final_path, WriteScope::save);
  if (commit.kind == CommitKind::iteration) good_.insert(commit.iteration);
  fsync_directory(directory_, WriteScope::save);
  if (name_exists(replaced)) remove_tree(replaced, WriteScope::save);
  replace_file(directory_ / "LATEST", name + "\n", WriteScope::save);
}

namespace {

void require_size(const fs::path& path, std::int64_t bytes, const nlohmann::ordered_json& facts) {
  if (bytes == facts.at("bytes").get<std::int64_t>()) return;
  throw Error(ExitCode::bad_content,
              fmt::format("{} bytes, the manifest says {}", bytes, json_text(facts.at("bytes"))),
              {}, kDamaged, path.string());
}

void require_hash(const fs::path& path, const std::string& sha256,
                  const nlohmann::ordered_json& facts) {
  if (sha256 == facts.at("sha256").get<std::string>()) return;
  throw Error(ExitCode::bad_content, "the content does not match its hash", {}, kDamaged,
              path.string());
}

/// Too large to be held.
CommitPart checked_part(const fs::path& path, const nlohmann::ordered_json& facts) {
  CommitPart part{path.filename().string(), bytes_of_file(path), {}};
  require_size(path, part.bytes, facts);
  part.sha256 = sha256_of_file(path);
  require_hash(path, part.sha256, facts);
  return part;
}

Commit read_parts(const fs::path& directory) {
  Commit commit;
  const fs::path manifest_path = directory / kManifest;
  commit.manifest =
      unsealed(read_file(manifest_path, std::size_t{64} << 20), manifest_path.string(), kDamaged);
  const auto& files = commit.manifest.at("files");
  for (const fs::path& entry : list_directory(directory))
    if (entry.filename() != kManifest && !files.contains(entry.filename().string()))
      throw Error(ExitCode::bad_content, "a file that the manifest does not name",
                  "a commit holds nothing else", "Move the file elsewhere.", entry.string());
  for (const auto& [name, facts] : files.items()) {
    const fs::path path = directory / name;
    if (is_boundary_file_name(name)) {
      commit.parts.push_back(checked_part(path, facts));
      continue;
    }
    const std::string bytes = read_file(path);
    require_size(path, std::ssize(bytes), facts);
    require_hash(path, sha256_hex(std::string_view(bytes)), facts);
    for (const CommitKind kind : {CommitKind::iteration, CommitKind::pass}) {
      if (name != state_name(kind)) continue;
      commit.kind = kind;
      const auto view = bytes_of(bytes);
      commit.state.assign(view.begin(), view.end());
    }
  }
  if (commit.state.empty())
    throw Error(ExitCode::bad_content, "the commit has neither state.h5 nor sums.h5", {}, kDamaged,
                directory.string());
  commit.iteration = commit.manifest.at("iteration").get<std::int64_t>();
  for (const CommitKind kind : {CommitKind::iteration, CommitKind::pass}) {
    const std::optional<std::int64_t> named = iteration_of(directory.filename().string(), kind);
    if (named && (*named != commit.iteration || kind != commit.kind))
      throw Error(ExitCode::bad_content,
                  fmt::format("the directory of {} {} holds {} {}", word_of(kind), *named,
                              word_of(commit.kind), commit.iteration),
                  "somebody renamed or copied it", "Give it back its name, or remove it.",
                  directory.string());
  }
  return commit;
}

}  // namespace

Commit read_commit(const fs::path& directory) {
  try {
    return read_parts(directory);
  } catch (const nlohmann::json::exception& error) {
    throw Error(ExitCode::bad_content, "the manifest is incomplete", error.what(), {},
                (directory / kManifest).string());
  }
}

bool is_damage(const Error& error) {
  return error.code() != ExitCode::permission && error.code() != ExitCode::unsuitable &&
         error.code() != ExitCode::write_failed;
}

std::vector<std::int64_t> CommitStore::iterations(CommitKind kind) const {
  std::vector<std::int64_t> found;
  for (const std::string& name : names_in(directory_))
    if (const auto iteration = iteration_of(name, kind)) found.push_back(*iteration);
  std::sort(found.begin(), found.end());
  return found;
}

Commit CommitStore::read(std::int64_t iteration, CommitKind kind) const {
  const fs::path path = directory_ / directory_name(iteration, kind);
  if (!name_exists(path))
    throw Error(
        ExitCode::missing_input, fmt::format("there is no commit of iteration {}", iteration),
        "old commits are removed, see checkpoint.keep_last and keep_every",
        fmt::format("Name one of those that are there: {}.", numbers_text(iterations(kind))),
        directory_.string());
  return read_commit(path);
}

std::optional<Commit> CommitStore::newest_valid(std::vector<std::string>& rejected,
                                                CommitKind kind) const {
  std::vector<std::int64_t> all = iterations(kind);
  for (auto it = all.rbegin(); it != all.rend(); ++it) {
    try {
      return read(*it, kind);
    } catch (const Error& error) {
      if (!is_damage(error)) throw;
      rejected.push_back(
          fmt::format("{} is not used: {}", directory_name(*it, kind), error.what()));
    }
  }
  return std::nullopt;
}

std::vector<std::string> CommitStore::set_aside_newer(std::int64_t iteration,
                                                      CommitKind kind) const {
  std::vector<std::string> lines;
  for (const std::int64_t newer : iterations(kind)) {
    if (newer <= iteration) continue;
    const std::string name = directory_name(newer, kind);
    const fs::path aside = free_name(directory_ / name, fmt::format("rejected-{}-", name));
    rename_path(directory_ / name, aside, WriteScope::save);
    lines.push_back(fmt::format("{} is set aside as {}: look at it, then remove it",
                                (directory_ / name).string(), aside.filename().string()));
  }
  if (!lines.empty()) fsync_directory(directory_, WriteScope::save);
  return lines;
}

void CommitStore::sweep() const {
  for (const std::string& name : names_in(directory_)) {
    if (!name.starts_with(kReplaced)) continue;
    const fs::path final_path = directory_ / name.substr(std::string_view(kReplaced).size());
    if (name_exists(final_path))
      remove_tree(directory_ / name, WriteScope::save);
    else
      rename_path(directory_ / name, final_path, WriteScope::save);
  }
  for (const std::string& name : names_in(directory_))
    if (name.starts_with(".tmp-") || name.starts_with(".trash-") ||
        name.starts_with(".LATEST.tmp-"))
      remove_tree(directory_ / name, WriteScope::save);
}

bool CommitStore::is_good(std::int64_t iteration) {
  if (good_.contains(iteration)) return true;
  try {
    read(iteration);
  } catch (const Error&) {
    return false;  // newest_valid says why when a run starts
  }
  good_.insert(iteration);
  return true;
}

void CommitStore::prune(std::int64_t keep_last, std::int64_t keep_every) {
  const std::vector<std::int64_t> all = iterations();
  std::int64_t kept = 0;
  std::optional<std::int64_t> newest_good;
  for (auto it = all.rbegin(); it != all.rend(); ++it) {
    if (kept < std::max<std::int64_t>(keep_last, 1)) {
      if (!is_good(*it)) continue;
      if (kept++ == 0) newest_good = *it;
    } else if (keep_every == 0 || *it % keep_every != 0) {
      discard(directory_ / directory_name(*it));
    }
  }
  if (!newest_good) return;
  for (const std::int64_t pass : iterations(CommitKind::pass))
    if (pass <= *newest_good) discard(directory_ / directory_name(pass, CommitKind::pass));
}

}  // namespace espalier
