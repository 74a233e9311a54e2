#include "bench_facts.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string_view>

#include <ATen/Parallel.h>

#include "espalier/core/host.h"
#include "espalier/core/text.h"
#include "espalier/model/tensor_ops.h"
#include "espalier/pipeline/provenance.h"
#include "espalier/pipeline/source.h"
#include "espalier/prune/tensor_catalog.h"
#include "espalier/store/files.h"

namespace espalier {
namespace {

using Json = nlohmann::ordered_json;

/// The first value of `key` in a file of "key : value" lines; empty where there is none.
std::string value_in(const std::filesystem::path& path, std::string_view key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(key)) continue;
    const std::size_t at = line.find(':');
    const std::size_t begin = at == std::string::npos ? at : line.find_first_not_of(" \t", at + 1);
    if (begin != std::string::npos) return line_text(line.substr(begin));
  }
  return {};
}

std::string machine_name(at::Device device) {
  const char* const gpus = "/proc/driver/nvidia/gpus";
  if (device.is_cuda() && directory_exists(gpus))
    for (const std::filesystem::path& gpu : list_directory(gpus))
      if (const std::string name = value_in(gpu / "information", "Model"); !name.empty())
        return name;
  const std::string cpu = value_in("/proc/cpuinfo", "model name");
  return cpu.empty() ? "unknown" : cpu;
}

}  // namespace

Json bench_machine(const ComputeOptions& options, const std::string& sums, Communicator& world) {
  Json hosts = Json::array();
  for (const std::string& host : world.gather_text(host_name())) {
    Json name = utf8_text(host);
    if (std::find(hosts.begin(), hosts.end(), name) == hosts.end()) hosts.push_back(name);
  }
  return {{"name", machine_name(options.device)},
          {"device", device_name(options)},
          {"threads", at::get_num_threads()},
          {"ranks", world.size()},
          {"hosts", hosts},
          {"sums_of_tensors", sums},
          {"libraries", program_facts()}};
}

Json bench_shape(const BenchRequest& request, const ComputeOptions& options) {
  const ModelConfig& m = request.model;
  const ParameterCount parameters = count_parameters(m, request.widths);
  return {{"name", utf8_text(request.name)},
          {"hidden", m.hidden},
          {"channels", m.channels},
          {"layers", m.layers},
          {"heads", m.heads},
          {"kv_heads", m.kv_heads},
          {"head_dim", m.head_dim},
          {"vocabulary", m.vocabulary},
          {"dtype", std::string(torch_name(to_dtype(options.dtype)))},
          {"parameters", parameters.total},
          {"decoder_parameters", parameters.decoder},
          {"dense", request.widths == dense_widths(m)}};
}

Json to_json(const GemmTotal& gemm, std::int64_t rows) {
  return {{"rows", rows},
          {"flops", gemm.sum.all_flops()},
          {"seconds", gemm.sum.all_seconds()},
          {"processor_seconds", gemm.sum.processor_seconds},
          {"sweeps", gemm.sweeps},
          {"forward_flops_per_s", gemm.sum.flops[0] / gemm.sum.seconds[0]},
          {"input_gradient_flops_per_s", gemm.sum.flops[1] / gemm.sum.seconds[1]},
          {"weight_gradient_flops_per_s", gemm.sum.flops[2] / gemm.sum.seconds[2]}};
}

Json channels_of(const ModelWidths& widths) {
  Json channels = Json::array();
  for (const LayerWidths& layer : widths.layers) channels.push_back(layer.channels.size());
  return channels;
}

}  // namespace espalier
