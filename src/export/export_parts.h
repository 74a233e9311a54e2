#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "espalier/export/export_model.h"
#include "espalier/prune/tensor_catalog.h"

/// The parts that an export is made of; private to this module.
namespace espalier::export_detail {

inline constexpr const char* kPlanFile = "espalier_plan.h5";
inline constexpr const char* kProvenanceFile = "provenance.json";
inline constexpr const char* kModelingFile = "modeling_espalier.py";
inline constexpr const char* kCardFile = "README.md";
inline constexpr const char* kConfigFile = "config.json";

/// A directory that appears under its name only when complete: made as `<out>.tmp-<pid>`, published
/// by one rename, removed when it was not published.
class StagingDirectory {
 public:
  /// Throws Error(cannot_create) when `out` exists, unless it is to be replaced.
  StagingDirectory(const std::filesystem::path& out, bool replace);
  ~StagingDirectory();
  StagingDirectory(const StagingDirectory&) = delete;
  StagingDirectory& operator=(const StagingDirectory&) = delete;

  const std::filesystem::path& path() const { return staging_; }
  /// Where the directory will stand: absolute, without a trailing slash.
  const std::filesystem::path& destination() const { return out_; }
  /// Makes directories below path().
  void make_subdirectories(const std::filesystem::path& relative);
  /// Flushes every directory to disk and renames. What stands there already makes way first, and is
  /// removed afterwards.
  void publish();

 private:
  void exchange(const std::filesystem::path& old);

  bool replace_;
  std::filesystem::path out_;
  std::filesystem::path staging_;
  bool published_ = false;
};

/// Files of the source that an export takes over unchanged, relative, in ascending order:
/// everything but weights in any format, config.json, README.md and what the exporter writes
/// itself. Hidden files and directories, weights of other forms (`original`, `onnx`, ...), and
/// directories that hold another model or a run are left out; so are, with a note, files by which a
/// loader would take the export for something else (adapter_config.json, ...), and what a download
/// left in the place of a file.
std::vector<std::filesystem::path> files_to_copy(const std::filesystem::path& source,
                                                 std::vector<std::string>& notes);

/// A bias that no tensor of the source is: what is stored already, if anything, plus columns of a
/// matrix of the source times the means of what they read, in float64; zero where there is neither.
struct MadeBias {
  std::string stored;
  std::string weight;
  IndexRuns columns;
  std::vector<double> means;
};

/// One tensor of the export: what to read and what it becomes.
struct TensorJob {
  TensorSpec spec;
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
  TensorSlice slice;
  std::uint64_t bytes = 0;
  /// In place of a slice of the source's tensor.
  std::optional<MadeBias> made;
  /// Read from here, whole, in place of the source.
  const CheckpointReader* replacement = nullptr;
};

/// Which biases an export has that the family's checkpoints do not.
enum class AddedBiases {
  none,
  /// Of o_proj and down_proj in every layer.
  output,
  /// Those, and zeros for q, k, v, gate and up: what a stock Llama of attention_bias and mlp_bias
  /// reads.
  all
};

/// The bias of o_proj or down_proj (`bias` says which): what the source has, plus what the units of
/// `held` that are not in `kept` gave on average, where `means` are given. `weight` is the job of
/// the projection's matrix.
TensorJob output_bias_job(const CheckpointReader& source, const ModelConfig& dense,
                          const ModelWidths& held, const ModelWidths& kept, TensorSpec bias,
                          const TensorJob& weight, const FeatureMeans* means);
TensorJob zero_bias_job(const TensorJob& weight);
/// Computes some rows of such a bias. Each is a sum in one order, so that the same source and means
/// give the same bytes. Throws Error(bad_content) where it is not finite in its dtype.
void make_bias(const CheckpointReader& source, const TensorJob& job, const IndexRuns& rows,
               std::span<std::byte> out);

/// Every tensor of the exported model in checkpoint order. Throws as
/// export_exact does; tensors of the source that no job reads get a note.
std::vector<TensorJob> tensor_jobs(const CheckpointReader& source, const ModelConfig& dense,
                                   const ModelWidths& held, const ModelWidths& kept,
                                   AddedBiases biases, const FeatureMeans* means,
                                   std::vector<std::string>& notes);
/// Has the jobs of these names read from elsewhere. Throws Error(bad_content) for a matrix of
/// another dtype or shape than the job's, and for one that no job writes.
void replace_matrices(std::vector<TensorJob>& jobs,
                      const std::map<std::string, const CheckpointReader*>& replaced);

/// Writes model.safetensors, or shards and their index, into `directory`, by the options' sizes;
/// returns the SHA-256 of every file by name.
std::map<std::string, std::string> write_weights(const CheckpointReader& source,
                                                 const std::vector<TensorJob>& jobs,
                                                 const std::filesystem::path& directory,
                                                 const ExportOptions& options);

/// README.md of the export. `report` is complete except for the card's own hash.
std::string model_card_text(ExportFormat format, const std::filesystem::path& source,
                            const ModelConfig& dense, const ModelWidths& kept,
                            const ModelCard& card, const ExportReport& report);

/// The model type that the uniform form is written as.
ModelFamily uniform_family(const ModelConfig& dense, const ModelWidths& kept);

/// "[2, 1, 1]"
std::string list_text(const std::vector<std::int64_t>& values);

}  // namespace espalier::export_detail
