#include "espalier/pipeline/pass_boundaries.h"

#include <sstream>
#include <utility>

#include <fmt/format.h>

#include "espalier/comm/agreement.h"
#include "espalier/core/log.h"
#include "espalier/core/paths.h"
#include "espalier/store/files.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;

std::string text_of(const CommitPart& part) {
  return fmt::format("{} {} {}", part.name, part.bytes, part.sha256);
}
CommitPart part_of(const std::string& text) {
  CommitPart part;
  std::istringstream words(text);
  words >> part.name >> part.bytes >> part.sha256;
  return part;
}

}  // namespace

bool PassBoundaries::open(const fs::path& commit, std::int64_t micro_batches) {
  if (!is_seen_by_all(commit, "resume")) {
    if (world_.rank() == 0)
      log::warning("the paused pass is done anew: not every rank sees {}", commit.string());
    return false;
  }
  together(world_, "resume", [&] { files_.emplace(commit, micro_batches); });
  return true;
}

bool PassBoundaries::is_seen_by_all(const fs::path& place, const char* phase) {
  std::int64_t sees = 0;
  together(world_, phase, [&] { sees = directory_exists(place) ? 1 : 0; });
  return world_.min(sees) != 0;
}

BoundaryKeeper PassBoundaries::keeper(std::function<fs::path()> prepare) {
  BoundaryKeeper keeper;
  keeper.keep = [this, prepare = std::move(prepare)](const std::vector<StandingBatch>& share) {
    return keep(share, prepare);
  };
  if (files_) keeper.recall = [this](std::int64_t number) { return files_->read(number); };
  return keeper;
}

bool PassBoundaries::keep(const std::vector<StandingBatch>& share,
                          const std::function<fs::path()>& prepare) {
  std::string place;
  together(world_, "save", [&] {
    if (world_.rank() == 0) place = absolute_path(prepare()).string();
  });
  place = world_.broadcast_text(place, 0);
  if (!is_seen_by_all(place, "save")) {
    if (world_.rank() == 0)
      log::warning("the pass cannot be paused: not every rank sees {}", place);
    return false;
  }
  std::string mine;
  together(world_, "save", [&] {
    if (share.empty()) return;
    const std::string name = boundary_file_name(world_.rank());
    const BoundaryFile file = write_boundaries(fs::path(place) / name, share, dtype_);
    mine = text_of({name, file.bytes, file.sha256});
  });
  parts_.clear();
  for (const std::string& text : world_.gather_text(mine))
    if (!text.empty()) parts_.push_back(part_of(text));
  return true;
}

std::vector<CommitPart> PassBoundaries::take_parts() { return std::exchange(parts_, {}); }

}  // namespace espalier
