#include "espalier/pipeline/held_model.h"

#include <cstdlib>

#include "espalier/core/fault.h"
#include "espalier/store/files.h"

namespace espalier {

std::filesystem::path temporary_directory() {
  const char* named = std::getenv("TMPDIR");
  return named != nullptr && *named != '\0' ? named : "/tmp";
}

HeldModel::HeldModel(const RunConfig& config, const ProcessGrid& grid, const Source& source,
                     const ModelWidths& widths, const ComputeOptions& options,
                     const std::filesystem::path& scratch, const RoundHooks& hooks) {
  fault::hit("load.enter");
  const bool whole = config.order != Order::layer_major;
  const std::filesystem::path directory = config.scratch.value_or(scratch);
  std::optional<ModelLoader> loader;
  together(grid.world(), "load", [&] {
    if (!whole && config.boundaries == BoundaryStore::files) require_writable(directory);
    loader.emplace(source.config, widths, source.weights(), options, grid.tensor_size(),
                   grid.tensor_index());
  });
  // The last step is what lies outside the layers.
  const std::int64_t first = whole ? 0 : loader->steps() - 1;
  take_steps(
      grid.world(), "load", loader->steps() - first,
      [&](std::int64_t step) { loader->load(first + step); }, hooks);
  model_.emplace(loader->take());
  fault::hit("load.exit");
  if (whole) return;
  layers_.emplace(*model_, source.weights());
  BoundariesMaker boundaries = [device = options.device] { return boundaries_in_memory(device); };
  if (config.boundaries == BoundaryStore::files)
    boundaries = [directory, device = options.device] {
      return boundaries_in_files(directory, device);
    };
  layer_by_layer_ = {&*layers_, std::move(boundaries)};
}

void HeldModel::let_go() {
  if (layers_) layers_->let_go();
}

void HeldModel::make_whole(const ProcessGrid& grid) {
  if (!layers_) return;
  together(grid.world(), "load", [&] { layers_->hold_all(); });
  layer_by_layer_.reset();
  layers_.reset();
}

}  // namespace espalier
