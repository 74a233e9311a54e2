#pragma once

#include <cstdint>

#include <nlohmann/json.hpp>

#include "espalier/comm/process_grid.h"
#include "espalier/pipeline/run_directory.h"
#include "espalier/pipeline/source.h"

namespace espalier {

/// The part of a metrics row that the plan alone determines.
nlohmann::ordered_json iteration_row(std::int64_t iteration, int attempt, const ModelConfig& config,
                                     const PruneRules& rules, const PruningPlan& plan);

/// What is about to be done: model, target, layout, data, where it starts.
void print_start(const Source& source, const RunConfig& config, const PruneRules& rules,
                 const PruningPlan& plan, std::int64_t base_iteration, const ProcessGrid& grid,
                 const ComputeOptions& options, const RunDirectory& directory);

/// One line per iteration; returns the estimate of the seconds left.
double print_iteration(const nlohmann::ordered_json& row, std::int64_t last_iteration,
                       std::int64_t base_iteration);

/// "structures", "decoder parameters" or "all parameters".
const char* measure_text(Measure measure);

/// What was done, on standard output or as a line of the JSON log: parameters and perplexities
/// before and after, seconds per phase, where the exports are and how to load them.
void print_end(const Source& source, const RunConfig& config, const PruneRules& rules,
               const PruningPlan& plan, const RunDirectory& directory, double seconds);

}  // namespace espalier
