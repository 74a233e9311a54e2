#include "espalier/pipeline/source.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/Version.h>
#include <fmt/format.h>

#include "espalier/calib/check_data.h"
#include "espalier/config/foreign_means.h"
#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/core/text.h"
#include "espalier/export/export_model.h"
#include "espalier/model/memory.h"
#include "espalier/model/tensor_ops.h"
#include "espalier/store/files.h"

namespace espalier {
namespace fs = std::filesystem;

Source open_source(const fs::path& directory) {
  ModelConfig config = read_model_config(directory);
  CheckpointReader reader = CheckpointReader::open(directory);
  ModelWidths widths = dense_widths(config);
  std::optional<PruningPlan> plan;
  std::optional<FeatureMeans> means;
  std::vector<std::string> notes = config.notes;
  if (config.exported) {
    ExportedWidths exported = read_exported_widths(directory, config);
    widths = std::move(exported.widths);
    plan = std::move(exported.plan);
    means = std::move(exported.means);
    notes.insert(notes.end(), exported.notes.begin(), exported.notes.end());
  }
  Source source{std::move(config),
                std::move(reader),
                std::move(widths),
                std::move(plan),
                std::move(means),
                std::move(notes),
                {}};
  CheckpointRemarks remarks = check_checkpoint(source.config, source.weights());
  source.notes.insert(source.notes.end(), remarks.notes.begin(), remarks.notes.end());
  source.warnings = std::move(remarks.warnings);
  for (std::string& found : foreign_means(source.config, directory))
    source.warnings.push_back(std::move(found));
  return source;
}

PruningPlan start_plan(const Source& source, AttentionUnit unit) {
  if (!source.config.exported) return dense_plan(source.config, unit);
  if (!source.plan) return plan_of_widths(source.config, source.widths, unit);
  if (source.plan->attention_unit != unit)
    throw Error(ExitCode::config, fmt::format("prune.attention_unit = {}", name_of(unit)),
                fmt::format("the model was pruned with {}", name_of(source.plan->attention_unit)),
                fmt::format("Set prune.attention_unit: {}.", name_of(source.plan->attention_unit)));
  return *source.plan;
}

FeatureMeans start_means(const Source& source) {
  return source.means ? *source.means : no_feature_means(source.config);
}

void require_continuation(const Source& source, const PruningPlan& plan,
                          const std::string& origin) {
  if (!source.config.exported) return;
  const std::string broken = break_of_continuation(start_plan(source, plan.attention_unit), plan);
  if (broken.empty()) return;
  const std::string model = source.reader.directory().string();
  throw Error(ExitCode::bad_content,
              fmt::format("{} does not continue the model {}", origin, model), broken,
              source.plan ? "Use the model that the plan was made from, with or without its "
                            "espalier_plan.h5 as then; or a higher --sparsity."
                          : "Copy espalier_plan.h5 from the export into the model's directory if "
                            "the plan was made with it; or use a higher --sparsity.",
              model);
}

ComputeOptions compute_options(const RunConfig& config, const Source& source,
                               const CommRuntime& runtime) {
  return compute_options(config, stored_type(source.weights()), runtime);
}

ComputeOptions compute_options(const RunConfig& config, at::ScalarType stored,
                               const CommRuntime& runtime) {
  ComputeOptions options;
  options.dtype = config.dtype ? to_scalar_type(*config.dtype) : stored;
  options.channel_multiple = config.prune.width_multiple;
  const bool available = at::globalContext().hasCUDA();
  if (config.device == DeviceChoice::cuda && !available)
    throw Error(ExitCode::unsuitable, "device: cuda, and this process sees no GPU",
                "no driver, no device, or a build without CUDA",
                "Use device: cpu, or the cuda build on a GPU machine.");
  if (available && config.device != DeviceChoice::cpu) {
    const auto devices = static_cast<int>(at::getNumGPUs());
    if (runtime.node_size() > devices && runtime.node_rank() == 0)
      log::warning("{} share {} on this node; one rank per GPU is meant",
                   counted(runtime.node_size(), "rank"), counted(devices, "GPU"));
    options.device =
        at::Device(at::kCUDA, static_cast<at::DeviceIndex>(runtime.node_rank() % devices));
  }
  if (options.dtype == at::kDouble && options.device.is_cuda())
    throw Error(ExitCode::unsuitable, "model.dtype = float64 on a GPU",
                "float64 is for checking on the CPU", "Use device: cpu, or another dtype.");
  at::globalContext().setSDPUseFlash(config.attention != AttentionBackend::math);
  at::globalContext().setSDPUseMemEfficient(config.attention == AttentionBackend::automatic);
  at::globalContext().setSDPUseCuDNN(config.attention == AttentionBackend::automatic);
  at::globalContext().setSDPUseMath(config.attention != AttentionBackend::flash);
  return options;
}

std::int64_t ranks_on_device(at::Device device, const CommRuntime& runtime) {
  const int devices = device.is_cpu() ? 1 : static_cast<int>(at::getNumGPUs());
  return (runtime.node_size() + devices - 1) / devices;
}

std::int64_t spare_memory(const RunConfig& config, const ComputeOptions& options,
                          const CommRuntime& runtime) {
  if (config.recompute == Recompute::all) return 0;
  const std::int64_t mine =
      available_memory(options.device) / ranks_on_device(options.device, runtime);
  return tensors_for_memory(mine);
}

void check_token_files(const RunConfig& config, ConfigUse use, Source& source,
                       const Communicator& world) {
  const std::vector<std::string> notes = check_data(
      config, use, source.config, source.reader.directory(), {world.rank(), world.size()});
  source.notes.insert(source.notes.end(), notes.begin(), notes.end());
}

std::string device_name(const ComputeOptions& options) {
  if (options.device.is_cpu()) return fmt::format("cpu ({})", at::get_cpu_capability());
  return options.device.str();
}

InputFiles model_files(const Source& source) {
  const fs::path& directory = source.reader.directory();
  InputFiles files{{"model/config.json", directory / "config.json"}};
  for (const std::string& name : source.reader.files()) files["model/" + name] = directory / name;
  return files;
}

InputFiles input_files(const RunConfig& config, const Source& source) {
  InputFiles files = model_files(source);
  for (const DomainConfig& domain : config.calibration.domains)
    files["calibration/" + domain.name] = domain.tokens;
  if (config.refit.enabled && config.refit.domains)
    for (const DomainConfig& domain : *config.refit.domains)
      files["refit/" + domain.name] = domain.tokens;
  for (const NamedTokens& data : config.evaluation.perplexity)
    files["evaluation/" + data.name] = data.tokens;
  for (const NamedTokens& data : config.evaluation.multiple_choice)
    files["evaluation/" + data.name] = data.tokens;
  for (const ExactMatchConfig& data : config.evaluation.exact_match)
    files["evaluation/" + data.name] = data.tokens;
  return files;
}

void refuse_links(const RunConfig& config, const Source& source) {
  InputFiles files = input_files(config, source);
  files["model"] = config.model_path;
  for (const fs::path& entry : list_directory(source.reader.directory()))
    files["model/" + entry.filename().string()] = entry;
  Problems problems;
  for (const auto& [part, file] : files) {
    std::error_code failure;
    if (!fs::is_symlink(fs::symlink_status(file, failure))) continue;
    const fs::path target = fs::read_symlink(file, failure);
    problems.add(ExitCode::bad_content,
                 fmt::format("'{}' is a symbolic link to '{}'", line_text(file.string()),
                             line_text(target.string())),
                 "--strict-paths", "Put the file itself there, or leave the option out.");
  }
  problems.throw_if_any();
}

fs::path model_of_run(const RunConfig& config, const fs::path& elsewhere) {
  if (!elsewhere.empty()) return elsewhere;
  if (!path_exists(config.model_path))
    throw Error(
        ExitCode::missing_input, "the run's model is not where it was", {},
        "Put it back there, or a link to it; 'espalier export' takes --model DIR, 'espalier "
        "resume' --set model.path=DIR --allow-change model.path. Its files are recognised "
        "by their content.",
        config.model_path.string());
  return config.model_path;
}

std::string require_same_model(const Source& source, const Commit& commit,
                               Thoroughness thoroughness) {
  Inputs before = recorded_inputs(commit);
  std::erase_if(before, [](const auto& entry) { return !entry.first.starts_with("model/"); });
  const std::unique_ptr<Communicator> alone = make_self_communicator();
  InputCheck check =
      check_inputs(model_files(source), before, thoroughness, {}, *alone, RoundHooks{});
  check.problems.throw_if_any();
  return check.how;
}

}  // namespace espalier
