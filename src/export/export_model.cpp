#include "espalier/export/export_model.h"

#include <numeric>
#include <system_error>

#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/core/hash.h"
#include "espalier/core/json.h"
#include "espalier/core/log.h"
#include "espalier/core/text.h"
#include "espalier/store/files.h"
#include "export_parts.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;
using export_detail::AddedBiases;
using export_detail::StagingDirectory;
using export_detail::TensorJob;

constexpr std::uint64_t kRoomForSmallFiles = std::uint64_t{4} << 20;

/// Everything that is decided before the first byte is written.
struct Preparation {
  std::vector<TensorJob> jobs;
  std::vector<fs::path> copies;
  std::string config_json;
};

DType stored_dtype(const CheckpointReader& source, const ModelConfig& dense) {
  const TensorInfo* info = source.find("model.embed_tokens.weight");
  return info == nullptr ? dense.dtype : info->dtype;
}

void note_uniform(const ModelConfig& dense, const ModelWidths& kept,
                  std::vector<std::string>& notes) {
  const auto heads = static_cast<std::int64_t>(kept.layers.front().query_heads.size());
  if (export_detail::uniform_family(dense, kept) != dense.family)
    notes.push_back(
        fmt::format("Written with model_type mistral: transformers 5 refuses a llama whose hidden "
                    "size {} is no "
                    "multiple of its {} query heads; MistralForCausalLM computes the same.",
                    dense.hidden, heads));
  if (dense.family == ModelFamily::qwen2 && heads * dense.head_dim != dense.hidden)
    notes.push_back(
        "transformers reads head_dim of a qwen2; the native Qwen2 classes of vLLM and llama.cpp do "
        "not and cannot load this checkpoint.");
}

AddedBiases added_biases(ExportFormat format, bool output_bias) {
  if (!output_bias) return AddedBiases::none;
  return format == ExportFormat::uniform ? AddedBiases::all : AddedBiases::output;
}

void note_biases(ExportFormat format, bool computed, std::vector<std::string>& notes) {
  notes.emplace_back(
      computed ? "o_proj and down_proj have biases: what the removed heads and channels gave on "
                 "average over the calibration data (arXiv 2312.11983)."
               : "o_proj and down_proj keep the biases that the source has.");
  if (format == ExportFormat::uniform)
    notes.emplace_back(
        "The biases of q_proj, k_proj, v_proj, gate_proj and up_proj are zero: the stock class has "
        "them all or none.");
}

Preparation prepare(ExportFormat format, const CheckpointReader& source, const ModelConfig& dense,
                    const ModelWidths& held, const ModelWidths& kept, const ExportOptions& options,
                    ExportReport& report) {
  Preparation prepared;
  const DType stored = stored_dtype(source, dense);
  const bool output_bias = options.means.has_value() || dense.output_bias;
  report.output_bias = output_bias;
  if (format == ExportFormat::uniform) {
    prepared.config_json =
        uniform_config_json(dense, kept, stored, options.plan_digest, output_bias);
    note_uniform(dense, kept, report.notes);
  } else {
    prepared.config_json = exact_config_json(dense, kept, stored, options.plan_digest, output_bias);
  }
  if (options.means) require_means(*options.means, dense, held, kept, source.directory().string());
  if (output_bias) note_biases(format, options.means.has_value(), report.notes);
  prepared.jobs =
      export_detail::tensor_jobs(source, dense, held, kept, added_biases(format, output_bias),
                                 options.means ? &*options.means : nullptr, report.notes);
  export_detail::replace_matrices(prepared.jobs, options.replaced);
  for (const auto& [name, reader] : options.replaced) report.replaced.push_back(name);
  prepared.copies = export_detail::files_to_copy(source.directory(), report.notes);
  report.tensors = static_cast<std::int64_t>(prepared.jobs.size());
  for (const TensorJob& job : prepared.jobs) report.weight_bytes += job.bytes;
  report.parameters = count_parameters(dense, kept);
  for (const TensorJob& job : prepared.jobs)
    if (job.made) {
      report.parameters.decoder += job.shape.front();
      report.parameters.total += job.shape.front();
    }
  report.dense_parameters = count_parameters(dense, dense_widths(dense));
  report.model_type = name_of(
      format == ExportFormat::uniform ? export_detail::uniform_family(dense, kept) : dense.family);
  return prepared;
}

std::uint64_t bytes_needed(const CheckpointReader& source, const Preparation& prepared,
                           const ExportReport& report) {
  std::uint64_t bytes = report.weight_bytes + kRoomForSmallFiles;
  for (const fs::path& file : prepared.copies) {
    std::error_code failure;
    const std::uintmax_t size = fs::file_size(source.directory() / file, failure);
    if (!failure) bytes += size;
  }
  return bytes;
}

/// Writes the files of an export into the staging directory and records their hashes.
class FileSet {
 public:
  FileSet(StagingDirectory& staging, std::map<std::string, std::string>& sha256)
      : staging_(staging), sha256_(sha256) {}

  void text(const std::string& name, std::string_view content) {
    write_new_file(staging_.path() / name, content, WriteScope::export_model);
    sha256_[name] = sha256_hex(content);
  }
  void bytes(const std::string& name, std::span<const std::byte> content) {
    write_new_file(staging_.path() / name, content, WriteScope::export_model);
    sha256_[name] = sha256_hex(content);
  }
  void copy(const fs::path& from, const fs::path& name) {
    staging_.make_subdirectories(name.parent_path());
    const fs::path to = staging_.path() / name;
    copy_file_checked(from / name, to, WriteScope::export_model);
    sha256_[name.generic_string()] = sha256_of_file(to);
  }

 private:
  StagingDirectory& staging_;
  std::map<std::string, std::string>& sha256_;
};

std::string provenance_text(const ExportOptions& options,
                            const std::map<std::string, std::string>& sha256) {
  nlohmann::ordered_json root = parse_json(options.provenance, export_detail::kProvenanceFile);
  ESPALIER_CHECK(root.is_object(), "provenance.json is one JSON object");
  nlohmann::ordered_json files = nlohmann::ordered_json::object();
  for (const auto& [name, hash] : sha256) files[utf8_text(name)] = hash;
  root["files"] = std::move(files);
  return json_text(root, 2) + "\n";
}

}  // namespace

ExportReport export_model(ExportFormat format, const CheckpointReader& source,
                          const ModelConfig& dense, const ModelWidths& held,
                          const ModelWidths& kept, const ExportOptions& options) {
  ExportReport report;
  const Preparation prepared = prepare(format, source, dense, held, kept, options, report);
  StagingDirectory staging(options.out, options.replace);
  report.directory = staging.destination();
  require_free_space(staging.path(), bytes_needed(source, prepared, report));
  report.sha256 = export_detail::write_weights(source, prepared.jobs, staging.path(), options);
  FileSet files(staging, report.sha256);
  for (const fs::path& name : prepared.copies) {
    if (options.between_tensors) options.between_tensors();
    files.copy(source.directory(), name);
  }
  files.text(export_detail::kConfigFile, prepared.config_json);
  if (format == ExportFormat::exact) files.text(export_detail::kModelingFile, modeling_file_text());
  if (!options.plan_image.empty()) files.bytes(export_detail::kPlanFile, options.plan_image);
  files.text(export_detail::kCardFile,
             export_detail::model_card_text(format, source.directory(), dense, kept, options.card,
                                            report));
  write_new_file(staging.path() / export_detail::kProvenanceFile,
                 std::string_view(provenance_text(options, report.sha256)),
                 WriteScope::export_model);
  staging.publish();
  for (const std::string& note : report.notes) log::info("export: {}", note);
  return report;
}

ExportReport export_exact(const CheckpointReader& source, const ModelConfig& dense,
                          const ModelWidths& held, const ModelWidths& kept,
                          const ExportOptions& options) {
  return export_model(ExportFormat::exact, source, dense, held, kept, options);
}

ExportReport export_uniform(const CheckpointReader& source, const ModelConfig& dense,
                            const ModelWidths& held, const ModelWidths& kept,
                            const ExportOptions& options) {
  return export_model(ExportFormat::uniform, source, dense, held, kept, options);
}

}  // namespace espalier
