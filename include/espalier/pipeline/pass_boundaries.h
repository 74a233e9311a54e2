#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <vector>

#include "espalier/comm/communicator.h"
#include "espalier/core/dtype.h"
#include "espalier/pipeline/commit.h"
#include "espalier/score/boundary_files.h"

namespace espalier {

/// What lies between two layers of a run's paused passes, in files beside their sums: of the pass
/// that is gone on with, which every rank reads, and of the one that is paused now, of which every
/// rank writes its share.
class PassBoundaries {
 public:
  PassBoundaries(Communicator& world, DType dtype) : world_(world), dtype_(dtype) {}

  /// Opens those of a commit; false, and a warning, where not every rank sees it. Throws as
  /// BoundaryFiles does. Collective.
  bool open(const std::filesystem::path& commit, std::int64_t micro_batches);
  /// The pass has gone on from what was opened.
  void close() { files_.reset(); }

  /// Recalls from what is open. Keeps in the directory that `prepare`, called by rank 0 alone,
  /// makes for the commit to come.
  BoundaryKeeper keeper(std::function<std::filesystem::path()> prepare);
  /// What was kept, for the commit; rank 0 has that of all.
  std::vector<CommitPart> take_parts();

 private:
  bool is_seen_by_all(const std::filesystem::path& place, const char* phase);
  bool keep(const std::vector<StandingBatch>& share,
            const std::function<std::filesystem::path()>& prepare);

  Communicator& world_;
  DType dtype_;
  std::optional<BoundaryFiles> files_;
  std::vector<CommitPart> parts_;
};

}  // namespace espalier
