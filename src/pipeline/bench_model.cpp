#include "bench_model.h"

#include <algorithm>
#include <cctype>
#include <chrono>
#include <filesystem>
#include <limits>
#include <string>
#include <utility>

#include <fmt/format.h>

#include "espalier/core/host.h"
#include "espalier/core/log.h"
#include "espalier/model/random_weights.h"
#include "espalier/store/files.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;

/// A directory that is gone when this is.
class TemporaryDirectory {
 public:
  explicit TemporaryDirectory(fs::path path) : path_(std::move(path)) { make_directory(path_); }
  ~TemporaryDirectory() {
    try {
      remove_tree(path_, WriteScope::other);
    } catch (const std::exception& error) {
      log::warning("random weights are left in {}: {}", path_.string(), error.what());
    }
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

 private:
  fs::path path_;
};

/// Of this job and node alone. Collective.
std::string name_on_this_node(Communicator& world) {
  const std::int64_t now = world.rank() == 0
                               ? std::chrono::system_clock::now().time_since_epoch().count()
                               : std::numeric_limits<std::int64_t>::max();
  std::string host = host_name();
  std::replace_if(
      host.begin(), host.end(), [](unsigned char c) { return std::isalnum(c) == 0; }, '-');
  return fmt::format("espalier-bench-{}-{:x}", host, world.min(now));
}

/// Random weights as a run finds its own: in a file that is read layer by layer. Collective.
Source random_source(const BenchRequest& request, const fs::path& scratch,
                     const ComputeOptions& options, const CommRuntime& runtime, Communicator& world,
                     const RoundHooks& hooks) {
  const fs::path directory = scratch / name_on_this_node(world);
  std::optional<TemporaryDirectory> temporary;
  std::optional<RandomCheckpoint> checkpoint;
  const bool writes = runtime.node_rank() == 0;
  together(world, "load", [&] {
    if (!writes) return;
    temporary.emplace(directory);
    checkpoint.emplace(request.model, request.widths, options.dtype, directory);
  });
  take_steps(
      world, "load", request.model.layers + 1,
      [&](std::int64_t step) {
        if (writes) checkpoint->write(step);
      },
      hooks);
  std::optional<CheckpointReader> reader;
  together(world, "load", [&] { reader.emplace(CheckpointReader::open(directory)); });
  return {request.model, std::move(*reader), request.widths, std::nullopt, std::nullopt, {}, {}};
}

}  // namespace

BenchModel::BenchModel(const BenchRequest& request, const RunConfig& config,
                       const ComputeOptions& options, const CommRuntime& runtime,
                       const ProcessGrid& grid, const RoundHooks& hooks) {
  if (config.order != Order::layer_major) {
    together(grid.world(), "load", [&] {
      whole_.emplace(random_causal_lm(request.model, request.widths, options, grid.tensor_size(),
                                      grid.tensor_index()));
    });
    return;
  }
  const fs::path scratch = config.scratch.value_or(temporary_directory());
  source_.emplace(random_source(request, scratch, options, runtime, grid.world(), hooks));
  held_.emplace(config, grid, *source_, request.widths, options, scratch, hooks);
}

std::optional<LayerByLayer> BenchModel::layer_by_layer() const {
  return held_ ? held_->layer_by_layer() : std::nullopt;
}

StreamedLayers* BenchModel::layers() const {
  return held_ ? held_->layer_by_layer()->layers : nullptr;
}

double BenchModel::reading_seconds() const { return held_ ? layers()->seconds() : 0; }

GemmSweep BenchModel::sweep(std::int64_t rows) const {
  return sweep_gemms(model(), rows, layers());
}

}  // namespace espalier
