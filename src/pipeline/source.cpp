#include "espalier/pipeline/source.h"

#include <sys/stat.h>

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/Version.h>
#include <fmt/format.h>

#include "espalier/comm/process_grid.h"
#include "espalier/core/error.h"
#include "espalier/core/hash.h"
#include "espalier/core/log.h"
#include "espalier/export/export_model.h"
#include "espalier/model/memory.h"
#include "espalier/model/tensor_ops.h"
#include "espalier/store/files.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;

std::string quick_fingerprint(const fs::path& path) {
  struct stat facts {};
  if (::stat(path.c_str(), &facts) != 0)
    throw Error(ExitCode::missing_input, "the file is gone", {}, {}, path.string());
  return fmt::format("size {} mtime {}.{:09}", facts.st_size, facts.st_mtim.tv_sec,
                     facts.st_mtim.tv_nsec);
}

const char* name_of(AttentionUnit unit) {
  return unit == AttentionUnit::kv_group ? "kv_group" : "query_head";
}

}  // namespace

Source open_source(const fs::path& directory) {
  ModelConfig config = read_model_config(directory);
  CheckpointReader reader = CheckpointReader::open(directory);
  ModelWidths widths = dense_widths(config);
  std::optional<PruningPlan> plan;
  std::vector<std::string> notes = config.notes;
  if (config.exported) {
    ExportedWidths exported = read_exported_widths(directory, config);
    widths = std::move(exported.widths);
    plan = std::move(exported.plan);
    notes.insert(notes.end(), exported.notes.begin(), exported.notes.end());
  }
  Source source{std::move(config), std::move(reader), std::move(widths), std::move(plan),
                std::move(notes)};
  const std::vector<std::string> found = check_checkpoint(source.config, source.weights());
  source.notes.insert(source.notes.end(), found.begin(), found.end());
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
  ComputeOptions options;
  options.dtype = config.dtype ? to_scalar_type(*config.dtype) : stored_type(source.weights());
  const bool available = at::globalContext().hasCUDA();
  if (config.device == DeviceChoice::cuda && !available)
    throw Error(ExitCode::unsuitable, "device: cuda, and this process sees no GPU",
                "no driver, no device, or a build without CUDA",
                "Use device: cpu, or the cuda build on a GPU machine.");
  if (available && config.device != DeviceChoice::cpu) {
    const auto devices = static_cast<int>(at::getNumGPUs());
    if (runtime.node_size() > devices && runtime.node_rank() == 0)
      log::warning("{} ranks share {} GPUs on this node; one rank per GPU is meant",
                   runtime.node_size(), devices);
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

std::int64_t spare_memory(const RunConfig& config, const ComputeOptions& options,
                          const CommRuntime& runtime) {
  if (config.recompute == Recompute::all) return 0;
  const int devices = options.device.is_cpu() ? 1 : static_cast<int>(at::getNumGPUs());
  const std::int64_t sharing = (runtime.node_size() + devices - 1) / devices;
  return available_memory(options.device) / 4 * 3 / sharing;
}

std::string device_name(const ComputeOptions& options) {
  if (options.device.is_cpu()) return fmt::format("cpu ({})", at::get_cpu_capability());
  return options.device.str();
}

std::vector<fs::path> input_files(const RunConfig& config, const Source& source) {
  std::vector<fs::path> files{source.reader.directory() / "config.json"};
  for (const std::string& name : source.reader.files())
    files.push_back(source.reader.directory() / name);
  for (const DomainConfig& domain : config.calibration.domains) files.push_back(domain.tokens);
  return files;
}

InputHashes hash_inputs(const std::vector<fs::path>& files, bool fast, Communicator& world) {
  std::string mine;
  together(world, "hash inputs", [&] {
    for (std::size_t i = static_cast<std::size_t>(world.rank()); i < files.size();
         i += static_cast<std::size_t>(world.size()))
      mine += fmt::format("{}\n{}\n", files[i].string(),
                          fast ? quick_fingerprint(files[i]) : sha256_of_file(files[i]));
  });
  InputHashes hashes;
  for (const std::string& text : world.gather_text(mine)) {
    std::size_t begin = 0;
    while (begin < text.size()) {
      const std::size_t middle = text.find('\n', begin), end = text.find('\n', middle + 1);
      hashes[text.substr(begin, middle - begin)] = text.substr(middle + 1, end - middle - 1);
      begin = end + 1;
    }
  }
  return hashes;
}

void require_unchanged(const InputHashes& before, const InputHashes& now) {
  Problems problems;
  for (const auto& [file, hash] : before) {
    const auto found = now.find(file);
    // A run may continue with other evaluation data or other paths; only files of the same name are
    // compared.
    if (found == now.end() || found->second == hash) continue;
    // A full hash and a quick fingerprint cannot be compared.
    if (hash.starts_with("size ") != found->second.starts_with("size ")) continue;
    problems.add(
        ExitCode::bad_content,
        fmt::format("the input changed since the run began: was {}, is {}", hash, found->second),
        "weights are read again from the source when a run continues",
        "Restore the file, or start a new run.", file);
  }
  problems.throw_if_any();
}

}  // namespace espalier
