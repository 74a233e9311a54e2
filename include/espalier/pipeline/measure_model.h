#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "espalier/comm/runtime.h"
#include "espalier/config/run_config.h"

namespace espalier {

/// Which model `score` and `eval` look at: the configuration's or a directory (dense or exported),
/// as a plan file leaves it; or as a run left it after an iteration (absent = its newest valid
/// commit), in which case it must be the model that the run began with.
struct ModelChoice {
  std::filesystem::path model;
  /// A plan.h5; empty = nothing removed.
  std::filesystem::path plan;
  std::filesystem::path run_dir;
  std::optional<std::int64_t> iteration;
};

/// Throws cannot_create where an output is there already, or could not be written: looked at before
/// the work, since it must not be found after an hour.
void require_new_output(const std::filesystem::path& path);
/// Writes it whole, with directories above it that are missing. Throws as above.
void write_new_output(const std::filesystem::path& path, std::string_view bytes);

/// `espalier score`: one scoring pass over the calibration data; prunes nothing and ignores
/// protection. Rank 0 writes scores.h5 (docs/file-formats.md). Collective; throws as run_pruning
/// does, cannot_create when `out` exists.
void score_model(CommRuntime& runtime, const RunConfig& config, const ModelChoice& choice,
                 const std::filesystem::path& out);

struct EvalRequest {
  ModelChoice choice;
  /// eval.json; empty = only printed.
  std::filesystem::path out;
  /// HDF5 file for logits of the first rows; empty = none.
  std::filesystem::path logits;
  /// Rows of each evaluation file whose logits are written.
  std::int64_t logit_rows = 1;
  /// JSON lines, one for each item of each evaluation that has items; empty = none.
  std::filesystem::path items;
};
/// `espalier eval`: the configuration's evaluations. Returns what eval.json holds, the same on
/// every rank. Collective.
nlohmann::ordered_json evaluate_model(CommRuntime& runtime, const RunConfig& config,
                                      const EvalRequest& request);

struct CurveRequest {
  /// A finished or stopped run.
  std::filesystem::path run;
  /// Where its model is now; empty = where it was.
  std::filesystem::path model;
  /// At least one.
  std::vector<double> sparsities;
  /// What they count; empty = the run's measure.
  std::optional<Measure> measure;
  /// FILE.json; FILE.csv lies beside it. Empty = only printed.
  std::filesystem::path out;
  /// Each size is refitted first, as `export --refit` does; each is loaded anew.
  bool refit = false;
};
/// `espalier eval RUN --sparsity`: the configuration's evaluations on the plans that `export RUN
/// --sparsity` would write, smallest sparsity first. The model is loaded once and sliced further:
/// each plan holds the one before. The numbers are those of evaluate_model on such an export, to
/// the bit for the same layout and dtype. The files are written after every size. Returns what the
/// JSON file holds, the same on every rank. Collective; throws as evaluate_model does, config with
/// the range when a sparsity is not in the family.
nlohmann::ordered_json evaluate_family(CommRuntime& runtime, const RunConfig& config,
                                       const CurveRequest& request);

}  // namespace espalier
