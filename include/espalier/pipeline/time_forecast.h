#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "espalier/config/model_config.h"
#include "espalier/config/run_config.h"
#include "espalier/pipeline/run_outline.h"

namespace espalier {

/// How long the refit at the end of a run would take (refit/flops.h): both streams at the rate of
/// the passes, sums and solving at the rates that the bench measured for these. Reading the dense
/// layers and writing the new matrices are not in it.
struct RefitTime {
  double streams_seconds = 0;
  double sums_seconds = 0;
  double solving_seconds = 0;
  /// Of one data rank's replica, over all ranks.
  double streams_flops = 0;
  double sums_flops = 0;
  /// On the rank that solves most.
  double solving_flops = 0;
  /// Of the matrices, in the stored dtype, if all are refitted.
  std::int64_t written_bytes = 0;

  double seconds() const { return streams_seconds + sums_seconds + solving_seconds; }
};

/// How long a run would take by arithmetic and a measured rate: FLOP of the linear maps
/// (score/linear_flops.h) of every iteration, over the FLOP/s at which a bench made a pass of the
/// same criterion. In it is scoring, for obs the ordering after every pass, perplexity and multiple
/// choice, and the refit; loading, saving, exports and generated answers are not.
///
/// Layer by layer every half that is differentiated runs forward twice, and layers are read: twice
/// in a pass, once for an evaluation, for as long as the bench waited for each number.
struct TimeForecast {
  Order order = Order::sample_major;
  std::int64_t iterations = 0;
  /// Scoring alone.
  double first_seconds = 0;
  double last_seconds = 0;
  double scoring_seconds = 0;
  /// Of obs, after all passes: at the rate of solving a refit, sublayers dealt to all ranks.
  double ordering_seconds = 0;
  /// Of the first pass, on the rank that orders most.
  double first_ordering_flops = 0;
  /// States that are evaluated, the one before the first iteration and the refitted one among them.
  std::int64_t evaluations = 0;
  double evaluation_seconds = 0;
  /// In scoring and evaluations: for reading layers.
  double load_seconds = 0;
  std::optional<RefitTime> refit;
  /// Of the first iteration, over all ranks, recomputed forwards included.
  double first_flops = 0;
  /// What a rank was measured at.
  double flops_per_s = 0;
  /// "taylor at 150.2 GFLOP/s a rank on ...".
  std::string basis;
  std::vector<std::string> notes;

  double seconds() const {
    return scoring_seconds + ordering_seconds + evaluation_seconds + (refit ? refit->seconds() : 0);
  }
};

/// Of a run on the dense model with so many ranks. Widths shrink by the schedule as if every layer
/// that may lose units lost the same share of each kind, which is what can be known before. Data
/// ranks wait for the one with most micro-batches. `execution.recompute: auto` repeats as large a
/// share as the bench did. `auto` of execution.order counts as sample_major. A pass in the run's
/// order is taken before one in the other, which a note then names.
///
/// Throws Error: bad_content when `bench` is not what `espalier bench --out` writes, config when it
/// has no pass of this criterion or a token file is not there, with what to do.
TimeForecast forecast_time(const RunConfig& config, const ModelConfig& model,
                           const RunOutline& outline, std::int64_t ranks,
                           const std::filesystem::path& bench);

nlohmann::ordered_json to_json(const TimeForecast& time);
/// Lines for people, the first of which begins with "time".
std::string time_text(const TimeForecast& time);

}  // namespace espalier
