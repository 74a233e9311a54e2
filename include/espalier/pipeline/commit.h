#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "espalier/core/error.h"
#include "espalier/pipeline/fingerprint.h"
#include "espalier/prune/feature_means.h"
#include "espalier/prune/plan.h"
#include "espalier/prune/score_table.h"

namespace espalier {

/// After an iteration: the plan and its scores (state.h5). Of a pass that was asked to stop: its
/// sums so far (sums.h5), which continue the commit of the iteration before.
enum class CommitKind { iteration, pass };

/// A file of a commit beside its state.
struct CommitPart {
  std::string name;
  std::int64_t bytes = 0;
  std::string sha256;
};

/// What is saved: everything that a run needs to go on, independent of the rank layout. Weights are
/// not part of it, since pruning never edits them (docs/adr/0002-thin-checkpoints.md). What lies
/// between two layers when a pass is paused is large, and written by the ranks that have it.
// NOLINTNEXTLINE(bugprone-exception-escape): moving a JSON value throws nothing.
struct Commit {
  CommitKind kind = CommitKind::iteration;
  std::int64_t iteration = 0;
  /// Bytes of state.h5 or sums.h5.
  std::vector<std::byte> state;
  /// MANIFEST.json.
  nlohmann::ordered_json manifest;
  std::vector<CommitPart> parts{};
};

/// What the commit's run read, as its manifest records it. Throws Error(bad_content) for a record
/// of another version.
Inputs recorded_inputs(const Commit& commit);

/// The bytes of state.h5: plan, scores and, if any, the means of what fell side by side in the root
/// group.
std::vector<std::byte> state_image(const PruningPlan& plan, const ScoreTable& scores,
                                   const std::optional<FeatureMeans>& means = {});

/// Commits of one run directory. Only rank 0 calls these.
class CommitStore {
 public:
  /// `directory` is the run's ckpt/.
  explicit CommitStore(std::filesystem::path directory) : directory_(std::move(directory)) {}

  /// Makes the directory in which others write parts of the next commit to be published, which is
  /// of this iteration. Returns its path.
  std::filesystem::path prepare(std::int64_t iteration, int attempt) const;
  /// Publishes atomically: temporary directory (with parts the one that prepare made), the state
  /// written and read back, MANIFEST.json last, fsync, rename. One of the same name is replaced: it
  /// steps aside, and sweep() gives it back its name should the new one not get it. Throws
  /// write_failed with the state before intact.
  void publish(const Commit& commit, int attempt);
  /// The newest commit that verifies; `rejected` receives a line for every one that is damaged.
  /// Throws what is no damage (is_damage).
  std::optional<Commit> newest_valid(std::vector<std::string>& rejected,
                                     CommitKind kind = CommitKind::iteration) const;
  /// One commit, verified; throws bad_content saying what is wrong, missing_input when there is
  /// none.
  Commit read(std::int64_t iteration, CommitKind kind = CommitKind::iteration) const;
  /// Iterations that have an entry of the kind under exactly the name that publish gives it,
  /// ascending, valid or not. Throws when the directory cannot be listed.
  std::vector<std::int64_t> iterations(CommitKind kind = CommitKind::iteration) const;
  /// Gives everything of the kind that is newer than `iteration` the name rejected-NAME-N, out of
  /// the way of what is written next and for good: damaged, it may still be all that is left of
  /// hours. A line for each.
  std::vector<std::string> set_aside_newer(std::int64_t iteration, CommitKind kind) const;
  std::filesystem::path path_of(std::int64_t iteration, CommitKind kind) const {
    return directory_ / directory_name(iteration, kind);
  }
  /// Removes leftovers of writers that died, and puts back what was about to be replaced.
  void sweep() const;
  /// Keeps the last `keep_last` valid iterations and every `keep_every`-th. Removes what is older
  /// than these, valid or not, and the passes that a valid iteration has overtaken, first out of
  /// sight, then for good. What does not verify counts for nothing: the newest valid commit always
  /// stays. A commit is verified once by each store, those that it published not at all.
  void prune(std::int64_t keep_last, std::int64_t keep_every);

  static std::string directory_name(std::int64_t iteration,
                                    CommitKind kind = CommitKind::iteration);

 private:
  bool is_good(std::int64_t iteration);

  std::filesystem::path directory_;
  std::set<std::int64_t> good_;  // iterations that this store wrote or verified
};

/// Reads and verifies one commit directory: sizes and hashes before any library sees the bytes, the
/// manifest by its own hash. Throws bad_content or missing_input.
Commit read_commit(const std::filesystem::path& directory);
/// Whether what read_commit() threw says something about the content. What may not be read, or
/// cannot be read now, is not damaged: going back would do work again that is there.
bool is_damage(const Error& error);

}  // namespace espalier
