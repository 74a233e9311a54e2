#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "espalier/config/run_config.h"

namespace espalier {

/// Everything the command line can say; each command reads its own part.
struct CommandOptions {
  /// First positional argument: CONFIG, DIR, ...
  std::string path;
  std::string run_dir;
  std::string out;
  std::string model;
  std::string plan;
  std::string logits;
  std::string items;
  std::string resume = "auto";
  std::string format = "exact";
  std::string measure;
  std::string explain;
  std::string shape;
  std::string dtype;
  std::string recompute;
  std::string collectives;
  std::string bench;
  std::string widths;
  std::vector<std::string> set;
  std::vector<std::string> allow_change;
  std::vector<std::string> criteria;
  std::vector<std::string> orders;
  std::optional<std::int64_t> tensor;
  std::optional<std::int64_t> iteration;
  std::optional<std::int64_t> layers;
  std::optional<std::int64_t> sequences;
  std::optional<std::int64_t> sequence_tokens;
  std::optional<std::int64_t> micro_batch_tokens;
  std::optional<std::int64_t> tokens;
  std::optional<std::int64_t> ranks;
  std::optional<std::int64_t> width_multiple;
  std::optional<double> sparsity;
  std::vector<double> sparsities;
  std::optional<double> hang_timeout;
  std::optional<double> max_hours;
  std::optional<double> memory;
  std::int64_t logit_rows = 1;
  std::int64_t repeats = 3;
  double lock_wait = 30;
  bool fast_verify = false;
  bool strict_paths = false;
  bool no_compensation = false;
  bool refit = false;
  bool no_refit = false;
  bool deep = false;
  bool json = false;
  bool exit_code = false;
  bool follow = false;
  bool print = false;
  bool schema = false;
  bool reference = false;
  bool list_faults = false;
  std::string log_level = "info";
  std::string log_format = "text";
  bool quiet = false;
};

/// What --measure says; empty = nothing.
std::optional<Measure> measure_of(const std::string& name);

/// A command returns the process's exit code, or throws Error.
using Command = int (*)(const CommandOptions&);

// Commands that work on any number of ranks.
int command_run(const CommandOptions& options);
int command_resume(const CommandOptions& options);
int command_score(const CommandOptions& options);
int command_eval(const CommandOptions& options);
/// One process unless the export is refitted.
int command_export(const CommandOptions& options);
int command_bench(const CommandOptions& options);

// Commands of one process, which never touch MPI.
int command_plan(const CommandOptions& options);
int command_inspect(const CommandOptions& options);
int command_config(const CommandOptions& options);
int command_verify(const CommandOptions& options);
int command_status(const CommandOptions& options);
int command_stop(const CommandOptions& options);
int command_doctor(const CommandOptions& options);

}  // namespace espalier
