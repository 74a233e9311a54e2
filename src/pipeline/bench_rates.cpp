#include "bench_rates.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <vector>

#include <ATen/ATen.h>

#include "espalier/model/tensor_ops.h"
#include "gemm_rate.h"
#include "refit_rate.h"

namespace espalier {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

/// Sizes at which sums over ranks are timed.
constexpr std::array<std::int64_t, 4> kCollectiveBytes{
    std::int64_t{4} << 10, std::int64_t{64} << 10, std::int64_t{1} << 20, std::int64_t{16} << 20};
constexpr int kCollectiveRounds = 5;
/// The arithmetic of a refit is timed on so large a matrix at most, and so long.
constexpr std::int64_t kMostRefitInputs = 2048;
constexpr double kRefitSeconds = 0.1;

/// The median of this rank's sums of so many bytes.
double seconds_of_sum(std::int64_t bytes, RankGroup& group, at::Device device) {
  at::Tensor values = at::zeros({bytes / 4}, at::TensorOptions(at::kFloat).device(device));
  std::vector<double> seconds;
  for (int round = 0; round <= kCollectiveRounds; ++round) {
    group.control().barrier();
    const Clock::time_point begin = Clock::now();
    all_reduce_sum(values, group.reducer());
    synchronize(device);
    if (round > 0)  // the first one connects
      seconds.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

}  // namespace

Json refit_rates(const ModelConfig& model, const ComputeOptions& options, std::int64_t tokens,
                 Communicator& world) {
  RefitRates rates;
  world.barrier();
  together(world, "refit", [&] {
    rates =
        time_refit(std::clamp<std::int64_t>(model.channels / 2, 1, kMostRefitInputs),
                   std::min(model.hidden, kMostRefitInputs), std::max<std::int64_t>(tokens / 2, 1),
                   options.dtype, options.device, kRefitSeconds);
  });
  std::array<double, 4> all{rates.sums_flops / rates.sums_seconds,
                            rates.solving_flops / rates.solving_seconds,
                            rates.sums_flops / rates.sums_processor_seconds,
                            rates.solving_flops / rates.solving_processor_seconds};
  world.all_reduce_sum(std::span<double>(all));
  return {{"inputs", rates.inputs},
          {"outputs", rates.outputs},
          {"rows", rates.rows},
          {"sums_flops_per_s", all[0]},
          {"solving_flops_per_s", all[1]},
          {"sums_flops_per_processor_s", all[2]},
          {"solving_flops_per_processor_s", all[3]}};
}

Json collective_times(const ProcessGrid& grid, at::Device device) {
  Json list = Json::array();
  const auto add = [&](const char* name, RankGroup& group) {
    if (group.size() == 1) return;
    for (const std::int64_t bytes : kCollectiveBytes)
      list.push_back({{"group", name},
                      {"ranks", group.size()},
                      {"bytes", bytes},
                      {"seconds", grid.world().max(seconds_of_sum(bytes, group, device))}});
  };
  add("tensor", grid.tensor());
  add("data", grid.data());
  return list;
}

}  // namespace espalier
