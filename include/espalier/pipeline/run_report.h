#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include <nlohmann/json.hpp>

#include "espalier/comm/process_grid.h"
#include "espalier/pipeline/run_directory.h"
#include "espalier/pipeline/source.h"

namespace espalier {

/// "llama, 32 layers, hidden 4096, 32 query / 32 KV heads of 128, 11008 channels, ...".
std::string model_text(const ModelConfig& config, const ModelWidths& widths);
/// "70.0% of structures (heads and channels) in 112 iterations; 4 layers protected".
std::string target_text(const PruneConfig& prune, const PruneRules& rules);

/// What is about to be done: model, target, layout, how sums of tensors cross ranks (`sums`), data,
/// where it starts.
void print_start(const Source& source, const RunConfig& config, const PruneRules& rules,
                 const PruningPlan& plan, std::int64_t base_iteration, const ProcessGrid& grid,
                 const ComputeOptions& options, const std::string& sums,
                 const RunDirectory& directory);

/// What a terminal shows of an iteration in place of its line: a row under the columns of
/// table_header(), at most 100 characters, and a second one when perplexities were measured. What
/// was removed by the three measures, mean loss, highest loss and its domain, heads and channels
/// kept, time of the iteration, loss tokens per second, peak memory of a rank, time left, and the
/// clock's time at the end ("14:05+1" is tomorrow).
std::string table_row(const nlohmann::ordered_json& row, std::int64_t last_iteration,
                      std::int64_t base_iteration, std::optional<double> eta_seconds);
std::string table_header();

/// One line per iteration, on a terminal a row of the table with the header above every twentieth;
/// returns the estimate of the seconds left, where the row has the time of an iteration.
std::optional<double> print_iteration(const nlohmann::ordered_json& row,
                                      std::int64_t last_iteration, std::int64_t base_iteration);

/// "structures", "decoder parameters" or "all parameters".
const char* measure_text(Measure measure);
/// The value of prune.measure.
const char* measure_key(Measure measure);

/// What was done, on standard output or as a line of the JSON log: parameters, evaluations before
/// and after, and after the refit where there is one, with the geometric mean of several
/// perplexities, what became of the refit's matrices, seconds per phase, the memory that was
/// forecast for a rank (0: nothing was, the model was not loaded) and the most that this attempt's
/// passes came to, where the exports are and how to load them.
void print_end(const Source& source, const RunConfig& config, const PruneRules& rules,
               const PruningPlan& plan, const RunDirectory& directory, double seconds,
               std::int64_t forecast_bytes);

}  // namespace espalier
