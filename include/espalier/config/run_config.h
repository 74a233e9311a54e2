#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "espalier/core/dtype.h"
#include "espalier/core/error.h"

namespace espalier {

enum class DeviceChoice { automatic, cpu, cuda };
enum class Objective { causal_lm, sft, margin };
enum class NonFinite { fail, skip_batch };
enum class Combine { pooled, weighted_mean, max, rank_mean, worst_domain };
enum class Adapt { none, loss_gap };
enum class Criterion {
  taylor,
  taylor_gate,
  taylor_gate_sample,
  wanda_sp,
  flap,
  obs,
  magnitude,
  random
};
enum class Normalization { gisp, param_mean, cost, block_mean, block_l2, block_standardize, none };
enum class Reduction { gradients, scores };
enum class Accumulate { automatic, float32, float64, bfloat16 };
enum class AttentionUnit { query_head, equal_per_group, kv_group };
enum class Ranking { global, global_by_kind, local };
enum class Measure { structures, parameters, total_parameters };
enum class ScheduleShape { linear, gisp, cosine, exponential, geometric };
enum class Curvature { automatic, full, scalar };
enum class Compensation { none, mean };
enum class ShrinkTo { dense, obs };
/// What a refit solves: o_proj and down_proj, or before each of these the q, k, v, gate and up of
/// its half too.
enum class RefitMatrices { outputs, all, automatic };
enum class Order { automatic, sample_major, layer_major };
enum class BoundaryStore { automatic, memory, files };
enum class Recompute { automatic, all };
enum class AttentionBackend { automatic, flash, math };
enum class Collectives { automatic, nccl, mpi };
enum class ExportFormat { exact, uniform };

struct DomainConfig {
  std::string name;
  std::filesystem::path tokens;
  /// Absent = all rows.
  std::optional<std::int64_t> sequences;
  double weight = 1.0;
  Objective objective = Objective::causal_lm;
};

struct CalibrationConfig {
  /// The list's key, for messages.
  const char* key = "calibration.domains";
  std::vector<DomainConfig> domains;
  Combine combine = Combine::pooled;
  bool resample = false;
  Adapt adapt = Adapt::none;
  /// Iterations whose overlap of domains is recorded, ascending.
  std::vector<std::int64_t> overlap;
  std::int64_t micro_batch_tokens = 8192;
  NonFinite non_finite = NonFinite::fail;
  std::int64_t max_skipped = 8;
  std::int64_t seed = 0;
};

struct ImportanceConfig {
  Criterion criterion = Criterion::taylor;
  Normalization normalization = Normalization::gisp;
  Reduction reduction = Reduction::gradients;
  Accumulate accumulate = Accumulate::automatic;
  /// Of criterion obs.
  double damping = 0.01;
  Curvature curvature = Curvature::automatic;
};

struct ProtectConfig {
  /// Absent ("auto") = int(0.1 * layers).
  std::optional<std::int64_t> first_layers;
  std::int64_t last_layers = 1;
  std::vector<std::int64_t> layers;
  std::int64_t min_heads = 1;
  std::int64_t min_channels = 1;
};

struct PruneConfig {
  /// `kinds` contains attention.
  bool attention = true;
  /// `kinds` contains mlp.
  bool mlp = true;
  AttentionUnit attention_unit = AttentionUnit::query_head;
  Ranking ranking = Ranking::global;
  std::optional<double> target;
  Measure measure = Measure::structures;
  std::int64_t iterations = 100;
  ScheduleShape shape = ScheduleShape::linear;
  /// Of shape exponential.
  double rate = 3.0;
  ProtectConfig protect;
  /// Channels of a layer fall in blocks of so many.
  std::int64_t width_multiple = 1;
  Compensation compensation = Compensation::none;
};

struct RefitConfig {
  bool enabled = false;
  /// Absent = those of the calibration.
  std::optional<std::vector<DomainConfig>> domains;
  /// Of each domain that does not say it itself; absent = all rows.
  std::optional<std::int64_t> sequences;
  /// `automatic`: by the tokens there are (chosen_matrices in refit/refit.h).
  RefitMatrices matrices = RefitMatrices::automatic;
  /// Absent = by held-out error.
  std::optional<double> ridge;
  ShrinkTo shrink_to = ShrinkTo::dense;
};

struct NamedTokens {
  std::string name;
  std::filesystem::path tokens;
};

struct ExactMatchConfig {
  std::string name;
  std::filesystem::path tokens;
  /// Generated for an answer at most.
  std::int64_t max_new_tokens = 256;
};

struct EvaluationConfig {
  std::int64_t every = 10;
  std::vector<NamedTokens> perplexity;
  std::vector<NamedTokens> multiple_choice;
  std::vector<ExactMatchConfig> exact_match;
};

struct ExportConfig {
  ExportFormat format = ExportFormat::exact;
  std::filesystem::path path;
};

/// The validated configuration: one value, resolved, with absolute paths.
struct RunConfig {
  /// The YAML file.
  std::filesystem::path source;
  std::filesystem::path model_path;
  /// Absent = as_stored.
  std::optional<DType> dtype;
  DeviceChoice device = DeviceChoice::automatic;
  std::int64_t tensor = 1;
  double rebalance = 1.10;
  CalibrationConfig calibration;
  ImportanceConfig importance;
  PruneConfig prune;
  Order order = Order::automatic;
  BoundaryStore boundaries = BoundaryStore::automatic;
  /// Absent = the run directory.
  std::optional<std::filesystem::path> scratch;
  Recompute recompute = Recompute::automatic;
  bool share_prompts = true;
  AttentionBackend attention = AttentionBackend::automatic;
  Collectives collectives = Collectives::automatic;
  EvaluationConfig evaluation;
  RefitConfig refit;
  std::int64_t keep_last = 2;
  std::int64_t keep_every = 10;
  std::vector<ExportConfig> exports;

  /// Where each resolved value came from: "default", "file:line", "--set", "environment".
  std::map<std::string, std::string> origin;
  /// Notes (numbered and printed; never an error).
  std::vector<std::string> notes;
};

/// The data of the refit as a calibration: its own domains or the calibration's, with the rows of
/// each as refit.sequences says; drawn once, with the calibration's seed and micro-batches.
CalibrationConfig refit_data(const RunConfig& config);

/// The word of the configuration for a value.
const char* name_of(Objective value);
const char* name_of(Criterion value);
const char* name_of(Normalization value);
const char* name_of(Order value);
const char* name_of(ShrinkTo value);
const char* name_of(RefitMatrices value);
/// The criterion of that name, if there is one.
std::optional<Criterion> criterion_named(std::string_view name);

/// What the caller needs; decides which keys are required (`prune.target` for run).
enum class ConfigUse { run, score, eval, print };

/// What is wrong with the model in a directory that exists.
using ModelCheck = std::function<Problems(const std::filesystem::path& directory)>;

/// Reads, overrides (--set a.b=c) and validates. Where a file is missing or may not be read,
/// `check_model` says what is wrong with the model too. Every problem at once, with line and
/// column, Error(config); a file that is absent is missing_input. Hostile YAML (aliases, depth,
/// size, duplicate keys) is refused before it is walked.
RunConfig read_run_config(const std::filesystem::path& file,
                          const std::vector<std::string>& overrides, ConfigUse use,
                          const ModelCheck& check_model = {});

/// The complete YAML that reproduces the configuration, every key written, paths absolute.
std::string to_yaml(const RunConfig& config);

/// One configuration key as the schema knows it.
struct KeyInfo {
  /// "importance.criterion".
  std::string key;
  /// "string", "integer", "number", "boolean", "list of ...".
  std::string type;
  /// As YAML; "(required)" where there is none.
  std::string default_value;
  /// Permitted values of an enumeration.
  std::vector<std::string> values;
  /// One or two sentences, with the unit and the paper where one defines it.
  std::string meaning;
  /// May differ when a run is resumed.
  bool free_at_resume = false;
};
/// Every key, in the order of reference.yaml.
const std::vector<KeyInfo>& config_keys();
/// The text of configs/reference.yaml, generated from config_keys().
std::string reference_yaml();

/// Keys whose values differ and that are frozen at resume: key, old value, new value.
struct ConfigDifference {
  std::string key, before, after;
};
std::vector<ConfigDifference> frozen_differences(const RunConfig& before, const RunConfig& after);

}  // namespace espalier
