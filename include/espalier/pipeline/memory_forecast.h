#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "espalier/comm/process_grid.h"
#include "espalier/comm/runtime.h"
#include "espalier/config/run_config.h"
#include "espalier/model/causal_lm.h"
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

  bool fits() const { return available == 0 || need.total() <= available; }
};

/// Of the passes that `use` makes over calibration and evaluation data. Token files that are absent
/// count as rows of the whole micro-batch. `available` and `ranks` are the caller's to fill in.
MemoryForecast forecast_memory(const RunConfig& config, ConfigUse use, const ModelConfig& model,
                               const ModelWidths& widths, const ScoredHalves& scored,
                               at::ScalarType dtype);

/// Of a run that begins with the dense model. Weights and token files need not be there; a dtype
/// `as_stored` is that of config.json.
MemoryForecast forecast_run(const RunConfig& config, const ModelConfig& model);

/// The configuration with `importance.curvature: auto` decided for this pass and these ranks: full
/// where the rank that has least memory has enough for it, else scalar; said in the log. Collective
/// over the world of `grid`.
RunConfig with_curvature(RunConfig config, ConfigUse use, const ModelConfig& model,
                         const ModelWidths& widths, const ScoredHalves& scored,
                         const ComputeOptions& options, const CommRuntime& runtime,
                         const ProcessGrid& grid);

/// Changes of the configuration of which each alone would make it fit, the one that changes least
/// first: a smaller micro-batch, more tensor ranks (as many on a node as now), then what changes
/// the scores: a narrower dtype, sums at the gates instead of gradients of weights. Each leaves
/// room for what is no tensor (memory_for_tensors).
std::vector<std::string> fitting_changes(const MemoryForecast& forecast, const ModelConfig& model);

/// "6.1 GiB a rank: weights 2.1, sums of gradients 2.1, hidden states 1.2, working set 0.7".
std::string memory_text(const MemoryForecast& forecast);
nlohmann::ordered_json to_json(const MemoryForecast& forecast, const ModelConfig& model);

/// Before anything large is made: says what the pass needs and what there is, and refuses what
/// cannot fit on some rank: Error(unsuitable) with the changes that would. Collective over the
/// world of `grid`.
void require_memory(MemoryForecast forecast, const ModelConfig& model,
                    const ComputeOptions& options, const CommRuntime& runtime,
                    const ProcessGrid& grid);

}  // namespace espalier
