#include "espalier/pipeline/collectives.h"

#include <algorithm>

#include <fmt/format.h>

#include "espalier/comm/agreement.h"
#include "espalier/comm/nccl_reducer.h"
#include "espalier/core/error.h"
#include "espalier/core/log.h"

namespace espalier {
namespace {

constexpr double kDeadlineSeconds = 600;
constexpr double kTimesHangTimeout = 4;
constexpr const char* kOverMpi = "MPI, in host memory";
constexpr const char* kAlone = "nothing: there is one rank";

std::optional<int> gpu_of(const ComputeOptions& options) {
  if (!options.device.is_cuda()) return std::nullopt;
  return static_cast<int>(options.device.index());
}

Error refusal(const std::string& why) {
  return Error(ExitCode::unsuitable, "execution.collectives = nccl, and NCCL cannot be used", why,
               "Use execution.collectives: auto or mpi; or the cuda build, with one rank per GPU.");
}

}  // namespace

double collective_deadline(std::optional<double> hang_timeout) {
  if (!hang_timeout) return kDeadlineSeconds;
  if (*hang_timeout == 0) return 0;
  return std::max(kDeadlineSeconds, kTimesHangTimeout * *hang_timeout);
}

std::string connect_collectives(const RunConfig& config, const ComputeOptions& options,
                                const ProcessGrid& grid, std::optional<double> hang_timeout) {
  const bool alone = grid.world().size() == 1;
  if (config.collectives == Collectives::mpi) return alone ? kAlone : kOverMpi;
  const std::optional<int> gpu = gpu_of(options);
  const std::string why = nccl::obstacle(nccl::library(), grid.world(), gpu);
  if (!why.empty()) {
    together(grid.world(), "connect the GPUs", [&] {
      if (config.collectives == Collectives::nccl) throw refusal(why);
    });
    if (gpu && !alone && grid.is_root())
      log::warning("sums of tensors go through host memory, not over NCCL ({})", why);
    return alone ? kAlone : kOverMpi;
  }
  nccl::connect(*nccl::library(), grid, {*gpu, collective_deadline(hang_timeout)});
  return alone ? kAlone : fmt::format("NCCL {}, in GPU memory", nccl::library_version());
}

}  // namespace espalier
