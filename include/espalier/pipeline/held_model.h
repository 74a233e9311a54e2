#pragma once

#include <filesystem>
#include <optional>

#include "espalier/calib/layer_rounds.h"
#include "espalier/comm/process_grid.h"
#include "espalier/config/run_config.h"
#include "espalier/model/causal_lm.h"
#include "espalier/model/load.h"
#include "espalier/pipeline/refitting.h"
#include "espalier/pipeline/source.h"

namespace espalier {

/// Where a command without a run directory keeps what it need not hold in memory, if
/// execution.scratch names no place: TMPDIR, or /tmp.
std::filesystem::path temporary_directory();

/// The model that a command works on: all of this rank's shard, or what lies outside the layers and
/// the layers one after the other (execution.order).
class HeldModel {
 public:
  /// Reads what is to be held. `config` has its order and boundaries decided; `scratch` is where
  /// files go that end with the process, if it names no place. Collective over grid.world(); throws
  /// as take_steps does.
  HeldModel(const RunConfig& config, const ProcessGrid& grid, const Source& source,
            const ModelWidths& widths, const ComputeOptions& options,
            const std::filesystem::path& scratch, const RoundHooks& hooks);
  HeldModel(const HeldModel&) = delete;
  HeldModel& operator=(const HeldModel&) = delete;

  CausalLM& model() { return *model_; }
  const CausalLM& model() const { return *model_; }
  /// For passes over the model; nothing where all of it is here.
  const std::optional<LayerByLayer>& layer_by_layer() const { return layer_by_layer_; }
  /// For a refit after which the model is evaluated.
  RefitTarget refit_target();

  /// Before the model's widths change: no layer of a stream is here.
  void let_go();
  /// All of the model from here on. Collective over the world of `grid`.
  void make_whole(const ProcessGrid& grid);

 private:
  std::filesystem::path scratch_;
  bool names_scratch_;
  std::optional<CausalLM> model_;
  std::optional<StreamedLayers> layers_;
  std::optional<LayerByLayer> layer_by_layer_;
};

}  // namespace espalier
