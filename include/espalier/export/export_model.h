#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "espalier/config/model_config.h"
#include "espalier/config/run_config.h"
#include "espalier/prune/feature_means.h"
#include "espalier/prune/plan.h"
#include "espalier/prune/score_table.h"
#include "espalier/prune/widths.h"
#include "espalier/store/safetensors.h"

namespace espalier {

/// What the model card (README.md of the export) says besides what the exporter knows itself.
struct ModelCard {
  /// Name or hub id of the unpruned model; empty = taken from the source directory.
  std::string base_model;
  /// Rows of the card's table, e.g. {"Decoder parameters", "1.2 M of 3.0 M"}.
  std::vector<std::pair<std::string, std::string>> facts;
  /// Markdown appended to the card; may be empty.
  std::string text;
};

/// Where an export goes and what goes into it besides the weights.
struct ExportOptions {
  /// Must not exist; parents are made.
  std::filesystem::path out;
  /// `out` may exist, and goes once the new is whole.
  bool replace = false;
  /// A tensor larger than this gets its own file.
  std::uint64_t max_shard_bytes = 5'000'000'000;
  /// Rows of a tensor are read and written in parts of so many bytes (or one row); two parts are
  /// held, one being read and one being written.
  std::size_t part_bytes = std::size_t{32} << 20;
  /// What the features that fall gave on average: then o_proj and down_proj get biases, in the
  /// dtype of their weights, which stand for what was removed from `held` to `kept`. They are added
  /// to those that the source has; what it lost before is none of their business.
  std::optional<FeatureMeans> means;
  /// Matrices that stand in the place of the source's, by name: where each is read from, in the
  /// shape and dtype that it is written with. The readers outlive the export.
  std::map<std::string, const CheckpointReader*> replaced;
  /// Bytes of espalier_plan.h5, see plan_image_of.
  std::vector<std::byte> plan_image;
  /// config.json repeats it; empty = left out.
  std::string plan_digest;
  /// Text of provenance.json, one JSON object; the exporter adds the key `files`: SHA-256 of every
  /// other file.
  std::string provenance = "{}";
  ModelCard card;
  /// Called before each tensor and between the parts of large ones, by the thread that exports. May
  /// throw to stop the export: nothing is left behind.
  std::function<void()> between_tensors;
};

/// What was written.
struct ExportReport {
  std::filesystem::path directory;
  std::int64_t tensors = 0;
  std::uint64_t weight_bytes = 0;
  /// Of the exported model, biases included.
  ParameterCount parameters;
  /// Of the unpruned model.
  ParameterCount dense_parameters;
  /// Of the written config.json.
  std::string model_type;
  /// o_proj and down_proj have biases.
  bool output_bias = false;
  /// Names of the matrices that are not the source's.
  std::vector<std::string> replaced;
  /// Of every file but provenance.json, by name.
  std::map<std::string, std::string> sha256;
  /// Things a user should know, one sentence each.
  std::vector<std::string> notes;
};

/// An HDF5 image of `plan` and, if any, the means of what fell: the contents of espalier_plan.h5.
std::vector<std::byte> plan_image_of(const PruningPlan& plan,
                                     const std::optional<FeatureMeans>& means = {});

/// Writes `source` (whose tensors have the widths `held`: dense_widths(dense), or those of the
/// exact export it is) with the widths `kept`, in the `exact` form: true shapes per layer, the
/// unpruned model's config.json with the key `espalier`, and the modelling file that stock
/// transformers needs with trust_remote_code. Tensors without elements (of a layer that lost all
/// heads or channels) are stored with a zero dimension: a stock class that is given the checkpoint
/// stops at their size, and would draw random weights in their place if they were absent.
///
/// The stored dtype and bits of every tensor are kept. All other files of the source are copied,
/// except weights, config.json and README.md. Streams: two parts of the weights are held. Reading,
/// hashing and writing go on at once, on up to three threads. The directory appears, complete and
/// flushed to disk, by one rename from `<out>.tmp-<pid>`; on any error nothing of it is left. With
/// `replace` the directory before is then renamed to
/// `<out>.trash-<pid>` first and removed afterwards: a process that dies in between leaves both
/// whole, under these names.
///
/// Not collective: one process alone. Throws Error: cannot_create when `out` exists; bad_content
/// when a tensor is missing or has other shapes than `held` says (all at once); write_failed,
/// permission from the file system; internal when `kept` is not inside `held`.
ExportReport export_exact(const CheckpointReader& source, const ModelConfig& dense,
                          const ModelWidths& held, const ModelWidths& kept,
                          const ExportOptions& options);

/// As export_exact, in the `uniform` form: a plain checkpoint that stock transformers loads, with
/// explicit head_dim, num_attention_heads, num_key_value_heads and intermediate_size. Llama whose
/// hidden size is no multiple of the heads that are left is written as `mistral` (transformers 5
/// refuses the llama type then; same arithmetic). Throws Error(config) by require_uniform before
/// anything is written.
ExportReport export_uniform(const CheckpointReader& source, const ModelConfig& dense,
                            const ModelWidths& held, const ModelWidths& kept,
                            const ExportOptions& options);

/// One of the two above.
ExportReport export_model(ExportFormat format, const CheckpointReader& source,
                          const ModelConfig& dense, const ModelWidths& held,
                          const ModelWidths& kept, const ExportOptions& options);

/// Throws Error(config), naming the layer, the reason and the form that would work, unless all
/// layers of `kept` have the same non-zero numbers of query heads, KV heads and channels, with
/// groups of one size. Pure.
void require_uniform(const ModelConfig& dense, const ModelWidths& kept);

/// config.json of an export, made from the text of the source's: every key that is not about the
/// pruned shape is kept; rope and dtype stand in the spellings of transformers 4 and 5 both.
/// `stored` is the dtype of the weights, used when the source's config.json names none. With
/// `output_bias` o_proj and down_proj carry biases. Pure.
std::string exact_config_json(const ModelConfig& dense, const ModelWidths& kept, DType stored,
                              std::string_view plan_digest, bool output_bias = false);
std::string uniform_config_json(const ModelConfig& dense, const ModelWidths& kept, DType stored,
                                std::string_view plan_digest, bool output_bias = false);

/// Throws Error(config) where the stock class of this family has no biases on o_proj and down_proj:
/// only Llama's has. Pure.
void require_output_biases(ModelFamily family);

/// The bias of the layer's o_proj or down_proj that an export from `held` to `kept` has with these
/// means, as its dtype holds it. Throws as export_model does. Not collective.
std::vector<double> exported_bias(const CheckpointReader& source, const ModelConfig& dense,
                                  const ModelWidths& held, const ModelWidths& kept,
                                  std::int64_t layer, UnitKind kind, const FeatureMeans& means);

/// The bundled modelling file, as copied into every exact export.
std::string_view modeling_file_text();

/// What an exact export holds.
struct ExportedWidths {
  ModelWidths widths;
  /// From espalier_plan.h5. Absent when the directory has no such file (the export was saved again
  /// by another tool): `widths` then number the units of each layer by their places, which is
  /// enough to run the model and to prune it further.
  std::optional<PruningPlan> plan;
  /// From espalier_plan.h5, of what it compensates for.
  std::optional<FeatureMeans> means;
  /// Things a user should know.
  std::vector<std::string> notes;
};

/// Reads the widths of the exact export in `directory`, whose config.json is `config`.
/// Precondition: config.exported. Throws Error(bad_content) when espalier_plan.h5 is damaged, or
/// says other widths than config.json, naming the layer and both.
ExportedWidths read_exported_widths(const std::filesystem::path& directory,
                                    const ModelConfig& config);

/// dense_widths, or those of the exact export that the directory is.
ModelWidths widths_of_source(const std::filesystem::path& directory, const ModelConfig& config);

}  // namespace espalier
