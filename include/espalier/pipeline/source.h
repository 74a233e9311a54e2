#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "espalier/comm/runtime.h"
#include "espalier/config/model_config.h"
#include "espalier/config/run_config.h"
#include "espalier/model/load.h"
#include "espalier/prune/plan.h"
#include "espalier/store/safetensors.h"

namespace espalier {

/// A checkpoint directory, opened and checked: dense, or one of our `exact` exports.
struct Source {
  ModelConfig config;  ///< the dense model's facts
  CheckpointReader reader;
  ModelWidths widths;               ///< of the tensors in the files
  std::optional<PruningPlan> plan;  ///< of an exact export that still carries one
  std::vector<std::string> notes;

  WeightSource weights() const { return {&reader, widths}; }
};

/// Reads config.json and all headers, compares shapes; every problem at once. Not collective.
Source open_source(const std::filesystem::path& directory);

/// The plan a run on this source starts from: dense, the export's own, or, where another tool saved
/// the export without its plan, plan_of_widths. Throws Error(config) when the export was pruned
/// with another attention unit.
PruningPlan start_plan(const Source& source, AttentionUnit unit);

/// Throws Error(bad_content) unless `plan` (of `origin`, as a message names it) continues the plan
/// that the source starts from: otherwise its units are others than the source's tensors hold.
void require_continuation(const Source& source, const PruningPlan& plan, const std::string& origin);

/// dtype and device of the computation on this rank: with CUDA one GPU per rank of the node. Throws
/// Error(unsuitable) when `device: cuda` finds no GPU.
ComputeOptions compute_options(const RunConfig& config, const Source& source,
                               const CommRuntime& runtime);

/// Memory on this rank's device that a pass may take to save arithmetic: three quarters of what is
/// available now, shared with the ranks on the same device; 0 with execution.recompute: all. To be
/// called once what the pass needs in any case is allocated.
std::int64_t spare_memory(const RunConfig& config, const ComputeOptions& options,
                          const CommRuntime& runtime);

/// Names the device: "cpu (AVX2)", "cuda:0 (NVIDIA ...)".
std::string device_name(const ComputeOptions& options);

/// Hashes of input files by path. `fast` takes size, time and the first bytes instead of the whole
/// content.
using InputHashes = std::map<std::string, std::string>;
/// Each file is hashed by one rank. Collective over `world`; the same map on every rank.
InputHashes hash_inputs(const std::vector<std::filesystem::path>& files, bool fast,
                        Communicator& world);
/// Weight shards and config.json of the model, and every token file of the configuration.
std::vector<std::filesystem::path> input_files(const RunConfig& config, const Source& source);
/// Throws Error(bad_content) with file, old and new hash for every input that changed.
void require_unchanged(const InputHashes& before, const InputHashes& now);

}  // namespace espalier
