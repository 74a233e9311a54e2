#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "espalier/comm/runtime.h"
#include "espalier/config/model_config.h"
#include "espalier/config/run_config.h"
#include "espalier/model/load.h"
#include "espalier/pipeline/commit.h"
#include "espalier/pipeline/fingerprint.h"
#include "espalier/prune/feature_means.h"
#include "espalier/prune/plan.h"
#include "espalier/store/safetensors.h"

namespace espalier {

/// A checkpoint directory, opened and checked: dense, or one of our `exact` exports.
struct Source {
  /// The dense model's facts.
  ModelConfig config;
  CheckpointReader reader;
  /// Of the tensors in the files.
  ModelWidths widths;
  /// Of an exact export that still carries one.
  std::optional<PruningPlan> plan;
  /// Of what that plan compensates for.
  std::optional<FeatureMeans> means;
  std::vector<std::string> notes;
  std::vector<std::string> warnings;

  WeightSource weights() const { return {&reader, widths}; }
};

/// Reads config.json and all headers, compares shapes; every problem at once. Not collective.
Source open_source(const std::filesystem::path& directory);

/// The plan a run on this source starts from: dense, the export's own, or, where another tool saved
/// the export without its plan, plan_of_widths. Throws Error(config) when the export was pruned
/// with another attention unit.
PruningPlan start_plan(const Source& source, AttentionUnit unit);

/// The means that a run on this source starts with: the export's own, so that they stay known where
/// a plan of several runs is exported from the model that the first one pruned.
FeatureMeans start_means(const Source& source);

/// Throws Error(bad_content) unless `plan` (of `origin`, as a message names it) continues the plan
/// that the source starts from: otherwise its units are others than the source's tensors hold.
void require_continuation(const Source& source, const PruningPlan& plan, const std::string& origin);

/// dtype and device of the computation on this rank: with CUDA one GPU per rank of the node. Throws
/// Error(unsuitable) when `device: cuda` finds no GPU.
ComputeOptions compute_options(const RunConfig& config, const Source& source,
                               const CommRuntime& runtime);
/// The same for weights that are stored as `stored`.
ComputeOptions compute_options(const RunConfig& config, at::ScalarType stored,
                               const CommRuntime& runtime);

/// Ranks of this node that compute on one device: all of them on a CPU.
std::int64_t ranks_on_device(at::Device device, const CommRuntime& runtime);

/// Memory on this rank's device that a pass may take to save arithmetic: tensors_for_memory of what
/// is available now, shared with the ranks on the same device; 0 with execution.recompute: all. To
/// be called once what the pass needs in any case is allocated.
std::int64_t spare_memory(const RunConfig& config, const ComputeOptions& options,
                          const CommRuntime& runtime);

/// check_data() of the token files that `use` reads, this rank's share of their rows; its notes
/// join the source's. Not collective: within together(), all ranks know what any of them found.
void check_token_files(const RunConfig& config, ConfigUse use, Source& source,
                       const Communicator& world);

/// Names the device: "cpu (AVX2)", "cuda:0 (NVIDIA ...)".
std::string device_name(const ComputeOptions& options);

/// The files that the model is read from, by part (pipeline/fingerprint.h).
InputFiles model_files(const Source& source);
/// Those, and every token file of the configuration.
InputFiles input_files(const RunConfig& config, const Source& source);

/// Throws Error(bad_content) naming every symbolic link among the model's directory, what lies in
/// it and the token files, and where each leads.
void refuse_links(const RunConfig& config, const Source& source);

/// Where the model of a run with this configuration is: `elsewhere` if it is given. Throws
/// Error(missing_input) where it is no more.
std::filesystem::path model_of_run(const RunConfig& config,
                                   const std::filesystem::path& elsewhere = {});

/// Compares the model's files with what a commit of a run on it recorded. Throws Error(bad_content)
/// for weights that are others; returns how they were compared, in words. One process alone.
std::string require_same_model(const Source& source, const Commit& commit,
                               Thoroughness thoroughness);

}  // namespace espalier
