#include "espalier/pipeline/provenance.h"

#include <unistd.h>

#include <cstdlib>
#include <ctime>
#include <fstream>
#include <iterator>

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <torch/headeronly/version.h>

#include "espalier/comm/nccl_calls.h"
#include "espalier/comm/runtime.h"
#include "espalier/core/fault.h"
#include "espalier/core/hash.h"
#include "espalier/core/host.h"
#include "espalier/core/text.h"
#include "espalier/core/version.h"
#include "espalier/store/hdf5_version.h"

namespace espalier {
namespace {

/// The words of this process's command line.
nlohmann::ordered_json command_line() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  nlohmann::ordered_json words = nlohmann::ordered_json::array();
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\0', begin), text.size());
    words.push_back(utf8_text(std::string_view(text).substr(begin, end - begin)));
    begin = end + 1;
  }
  return words;
}

nlohmann::ordered_json selected_environment() {
  nlohmann::ordered_json values = nlohmann::ordered_json::object();
  for (const char* name :
       {"OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "SLURM_JOB_NODELIST",
        "SLURM_RESTART_COUNT", "PBS_JOBID", "LOADEDMODULES", "APPTAINER_CONTAINER"})
    if (const char* value = std::getenv(name)) values[name] = utf8_text(value);
  return values;
}

}  // namespace

nlohmann::ordered_json program_facts() {
  return {{"version", version()},
          {"git", git_hash()},
          {"compiler", compiler()},
          {"libtorch", TORCH_VERSION},
          {"mpi", CommRuntime::library_version()},
          {"nccl", nccl::library_version()},
          {"hdf5", hdf5_library_version()}};
}

nlohmann::ordered_json make_provenance(const RunConfig& config, const Source& source,
                                       const Inputs& inputs, const ProcessGrid& grid,
                                       const std::string& device) {
  nlohmann::ordered_json hosts = nlohmann::ordered_json::array();
  for (const std::string& host : grid.world().gather_text(host_name()))
    hosts.push_back(utf8_text(host));
  nlohmann::ordered_json provenance{
      {"schema", 1},
      {"program", program_facts()},
      {"started", fmt::format("{:%FT%TZ}", fmt::gmtime(std::time(nullptr)))},
      {"command", command_line()},
      {"environment", selected_environment()},
      {"hosts", hosts},
      {"device", device},
      {"layout",
       {{"ranks", grid.world().size()},
        {"tensor", grid.tensor_size()},
        {"data", grid.data_size()}}},
      {"model", utf8_text(source.reader.directory().string())},
      {"config_sha256", sha256_hex(std::string_view(to_yaml(config)))},
      {"seed", config.calibration.seed},
      {"inputs", to_json(inputs)}};
  if (fault::armed()) provenance["fault_injection"] = utf8_text(fault::specification());
  return provenance;
}

}  // namespace espalier
