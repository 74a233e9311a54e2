#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "espalier/comm/runtime.h"
#include "espalier/config/run_config.h"
#include "espalier/pipeline/run_directory.h"
#include "espalier/pipeline/watchdog.h"

namespace espalier {

/// What `espalier run` was asked to do.
struct RunRequest {
  RunConfig config;
  std::filesystem::path run_dir;
  RunDirectory::Options directory;
  /// Compare inputs by size, time and first MiB where that decides.
  bool fast_verify = false;
  /// Refuse inputs that are symbolic links.
  bool strict_paths = false;
  /// Stop in time; 0 = no limit.
  double max_seconds = 0;
  /// Watches as soon as there is a run directory.
  Watchdog* watchdog = nullptr;
};

/// The main job: score, rank, remove, commit, iteration by iteration, then evaluate and export.
/// Continues from the newest valid commit on any number of ranks. Collective over runtime.world().
/// Throws AgreedError, stop::Stopped (after what can be kept was committed) and, for a failure of
/// one rank alone, other exceptions.
void run_pruning(CommRuntime& runtime, const RunRequest& request);

}  // namespace espalier
