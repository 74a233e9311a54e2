#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "espalier/calib/calibration.h"
#include "espalier/calib/layer_rounds.h"
#include "espalier/calib/rounds.h"
#include "espalier/comm/process_grid.h"
#include "espalier/config/run_config.h"
#include "espalier/prune/feature_means.h"
#include "espalier/prune/plan.h"
#include "espalier/score/boundary_files.h"
#include "espalier/score/paused_pass.h"
#include "espalier/score/statistics.h"

namespace espalier {

/// Everything a scoring pass depends on besides the model and the data.
struct ScoreRequest {
  ImportanceConfig importance;
  Combine combine = Combine::pooled;
  AttentionUnit unit = AttentionUnit::query_head;
  /// Halves that need a score; nothing below the lowest of them is differentiated.
  ScoredHalves scored;
  /// Of criterion random.
  std::int64_t seed = 0;
  std::int64_t iteration = 0;
  /// Micro-batches that may be left out; 0 = none.
  std::int64_t max_skipped = 0;
  /// Memory this rank may use to save arithmetic; 0 = none.
  std::int64_t spare_bytes = 0;
  /// The model's layers, of which few are here at a time; without it the whole model is here, and
  /// each micro-batch goes through all of it. The scores are the same, bit for bit.
  std::optional<LayerByLayer> layer_by_layer;
  /// Continued when it is of the same work and went on in the same order, else left alone.
  std::optional<PausedPass> paused;
  /// Layer by layer: without it a stop loses the pass.
  BoundaryKeeper boundaries;
  /// Also score every domain alone, where no further pass is needed for it.
  bool each_domain = false;
  /// Also give the means of what o_proj and down_proj read; the criterion must sum them.
  bool means = false;
  /// Compute the prompt of an item once for all its options, where the criterion allows it.
  bool share_prompts = true;
  /// The criterion's statistics.
  StatisticsMaker make = make_statistics;
};

/// What score() takes for a curvature that nobody decided: full.
Curvature with_matrices(Curvature curvature);
/// ScoreRequest::max_skipped of a configuration.
std::int64_t max_skipped(const CalibrationConfig& config);
/// Every half of every layer.
ScoredHalves all_halves(const ModelConfig& config);
/// The halves that can still lose a unit: listed kinds, unprotected layers.
ScoredHalves prunable_halves(const ModelConfig& config, const PruneRules& rules);

/// A micro-batch whose loss or gradient was not finite, and that was left out.
struct SkippedBatch {
  std::string domain;
  /// Of the domain's file.
  std::vector<std::int64_t> rows;
};

struct ScorePass {
  /// The same on every rank.
  ScoreTable table;
  /// With each_domain, a table of each domain alone, normalised like the other; empty where the
  /// criterion's sums do not tell domains apart and are pooled. The same on every rank.
  std::vector<ScoreTable> of_domains;
  /// With means: of the features of every scored half's surviving units, over the tokens of all
  /// domains as `pooled` counts them, whatever `combine` is. The same on every rank.
  std::optional<FeatureMeans> means;
  /// calibrate, reduce.
  std::map<std::string, double> seconds;
  /// Accumulators on this rank.
  std::int64_t statistics_bytes = 0;
  /// Layer by layer: what micro-batches between layers took at most on this rank.
  std::int64_t boundary_bytes = 0;
  /// Whether the paused pass was of this work.
  bool continued = false;
  /// Of table.tokens, those of the paused pass; layer by layer, the layers that it had finished, of
  /// all traversals.
  std::int64_t continued_tokens = 0;
  std::int64_t continued_layers = 0;
  /// The same on every rank.
  std::vector<SkippedBatch> skipped;
  /// Most halves that ran forward twice in a micro-batch.
  std::int64_t repeated_halves = 0;
};

/// A hash of all that makes sums of a pass comparable beside weights and token files, which are the
/// caller's concern: criterion, reduction, accumulator, dtype, combination, iteration, scored
/// units, and domains (name, weight, objective, rows) as micro-batches cut them. Not what comes
/// after the sums: normalisation, ranking, layout.
std::string work_of(const CausalLM& model, const Calibration& data, const ScoreRequest& request);

/// Scores the model's surviving units on the calibration data. Collective over grid.world(); every
/// rank gets the whole table, bit for bit the same. Units are gathered over tensor ranks,
/// statistics summed over data ranks: one collective for the gate criteria, one per weight tensor
/// for `taylor`. Throws AgreedError(bad_content) naming tensor, layer and rank for values that are
/// not finite, unless they are of at most request.max_skipped micro-batches: then the pass begins
/// anew as if the sequences of these had not been drawn, with a warning that names them. When a
/// rank was asked to stop, Paused where something can be kept, else stop::Stopped. Micro-batch by
/// micro-batch that is where the criterion's sums are small, as long as nothing was skipped; layer
/// by layer, with request.boundaries, once a layer is finished: a stop then takes effect when all
/// micro-batches are through the layer at hand.
ScorePass score(const CausalLM& model, Calibration data, const ScoreRequest& request,
                const ProcessGrid& grid, const RoundHooks& hooks);

}  // namespace espalier
