#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "espalier/comm/communicator.h"
#include "espalier/eval/evaluation.h"
#include "espalier/prune/plan.h"
#include "espalier/score/score.h"

namespace espalier {

/// The part of a metrics row that the plan alone determines.
nlohmann::ordered_json iteration_row(std::int64_t iteration, int attempt, const ModelConfig& config,
                                     const PruneRules& rules, const PruningPlan& plan);

/// Of a scoring pass, the largest of all ranks.
struct PassFacts {
  double imbalance = 0;
  std::int64_t peak_bytes = 0, weight_bytes = 0, statistics_bytes = 0;
  /// Of a pass that went layer by layer.
  std::optional<std::int64_t> boundary_bytes;
  std::int64_t read_bytes = 0, repeated_halves = 0;
};
/// Puts an iteration's part into its row: how units were chosen, and the pass that scored them with
/// the counters of each group of ranks.
void add_step(nlohmann::ordered_json& row, const Advance& step);
void add_pass(nlohmann::ordered_json& row, const ScorePass& pass, const PassFacts& facts,
              const std::map<std::string, CommCounters>& communication);

/// Puts the evaluations of the state into its row: {kind: {name: facts}}, of a perplexity its value
/// alone.
void add_evaluations(nlohmann::ordered_json& row, const std::vector<TaskOutcome>& outcomes);

}  // namespace espalier
