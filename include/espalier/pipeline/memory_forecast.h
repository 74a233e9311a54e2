#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "espalier/comm/process_grid.h"
#include "espalier/comm/runtime.h"
#include "espalier/config/run_config.h"
#include "espalier/model/causal_lm.h"
#include "espalier/refit/memory_need.h"
#include "espalier/score/memory_need.h"

namespace espalier {

/// What the largest pass of a command needs on each rank, beside what a rank has.
struct MemoryForecast {
  /// The pass that needs most.
  PassShape pass;
  /// Of the fullest tensor rank.
  MemoryNeed need;
  /// Bytes for one rank; 0 = unknown, nothing is refused.
  std::int64_t available = 0;
  /// Tokens of the longest row: the smallest micro-batch.
  std::int64_t sequence = 1;
  /// Of the whole job.
  std::int64_t ranks = 1;
  /// Of all micro-batches of a data rank.
  std::int64_t boundary_tokens = 0;
  /// `execution.recompute: auto`.
  bool keeps_graphs = false;

  /// What a process will have taken at the height of the pass, with the graphs that it will keep
  /// where `available` is known: on a CPU of resident memory, on a GPU of tensors.
  std::int64_t expected() const;
  bool fits() const { return available == 0 || need.total() <= available; }
};

/// Of the passes that `use` makes over calibration and evaluation data. Token files that are absent
/// count as rows of the whole micro-batch. `auto` of order, boundaries and curvature counts as
/// sample_major, memory and scalar. `available` and `ranks` are the caller's to fill in.
MemoryForecast forecast_memory(const RunConfig& config, ConfigUse use, const ModelConfig& model,
                               const ModelWidths& widths, const ScoredHalves& scored,
                               at::ScalarType dtype, std::int64_t data_ranks);

/// What a choice depends on beside the configuration.
struct MemoryQuestion {
  ConfigUse use = ConfigUse::run;
  ModelConfig model;
  ModelWidths widths;
  ScoredHalves scored;
  at::ScalarType dtype = at::kFloat;
  std::int64_t data_ranks = 1;
  /// Bytes for one rank; 0 = unknown, and then everything fits.
  std::int64_t available = 0;
  /// What a refit at the end will find (widths_at_refit); none: there will be no refit.
  std::optional<ModelWidths> left{};
};

/// A configuration with execution.order, execution.boundaries and importance.curvature decided.
struct MemoryChoice {
  RunConfig config;
  MemoryForecast forecast;
  /// What was looked at, in words; where something fits, the last one is what was chosen.
  std::vector<std::string> tried;
  /// With room for what is no tensor (memory_for_tensors).
  bool fits = false;
};

/// Of a run with a refit and a target; not more than an expectation, as expected_widths.
std::optional<ModelWidths> widths_at_refit(const RunConfig& config, const ModelConfig& model);

/// The first of what `auto` leaves open in which the passes fit, and the refit: full curvature
/// before scalar, then sample_major before layer_major, then boundaries in memory before files.
/// Where the refit has no room in any, the first in which the passes fit; where these do not, what
/// needs least. Pure but for the token files.
MemoryChoice choose_for_memory(const RunConfig& config, const MemoryQuestion& question);
/// "layer_major, boundaries in memory (2.1 GiB, its refit 2.3): 4.0 GiB a rank would not hold
/// sample_major (9.8 GiB)"; empty where the first one fits.
std::string choice_text(const MemoryChoice& choice);
/// The same for the rank that has least memory, with dtype, data ranks and what is available filled
/// in; said in the log. Collective over the world of `grid`.
MemoryChoice choose_for_memory(const RunConfig& config, MemoryQuestion question,
                               const ComputeOptions& options, const CommRuntime& runtime,
                               const ProcessGrid& grid);

/// Of a run that begins with the dense model. Weights and token files need not be there; a dtype
/// `as_stored` is that of config.json.
MemoryChoice forecast_run(const RunConfig& config, const ModelConfig& model,
                          std::int64_t data_ranks, std::int64_t available);

/// Of the refit at the end of a run, on the widths that are expected (pipeline/run_outline.h).
/// Token files and an order that is `auto` as in forecast_memory.
RefitNeed forecast_refit(const RunConfig& config, const ModelConfig& model,
                         const ModelWidths& expected, at::ScalarType dtype,
                         std::int64_t data_ranks);
/// "3.1 GiB a rank: a dense layer 0.9, streams 1.0, sums and solving 1.2; beside what is left of
/// the model, 7.4".
std::string refit_text(const RefitNeed& need);
nlohmann::ordered_json to_json(const RefitNeed& need);

/// Changes of the configuration of which each alone would make it fit, the one that changes least
/// first: a smaller micro-batch, more tensor ranks (as many on a node as now), then what changes
/// the scores: a narrower dtype, sums at the gates instead of gradients of weights. Each leaves
/// room for what is no tensor (memory_for_tensors).
std::vector<std::string> fitting_changes(const MemoryForecast& forecast, const ModelConfig& model);

/// Fills in what `available` leaves for graphs, beside the weights. For `recompute: auto`.
void expect_graphs(MemoryForecast& forecast, const ModelConfig& model);

/// "6.1 GiB a rank: weights 2.1, sums of gradients 2.1, hidden states 1.2, working set 0.7".
std::string memory_text(const MemoryForecast& forecast);
/// "; expected 8.4 with graphs that are kept and the program"; empty where nothing comes beside.
std::string expected_text(const MemoryForecast& forecast);
nlohmann::ordered_json to_json(const MemoryForecast& forecast, const ModelConfig& model);

/// Before anything large is made: says what the pass needs and what there is, and refuses what
/// cannot fit on some rank: Error(unsuitable) with the changes that would. Returns what is expected
/// of a rank. Collective over the world of `grid`.
std::int64_t require_memory(MemoryForecast forecast, const ModelConfig& model,
                            const ComputeOptions& options, const CommRuntime& runtime,
                            const ProcessGrid& grid);

}  // namespace espalier
