#pragma once

#include <optional>

#include "espalier/calib/layer_rounds.h"
#include "espalier/comm/process_grid.h"
#include "espalier/comm/runtime.h"
#include "espalier/model/causal_lm.h"
#include "espalier/pipeline/bench.h"
#include "espalier/pipeline/held_model.h"
#include "espalier/pipeline/source.h"
#include "gemm_rate.h"

namespace espalier {

/// The model of a bench, of random weights. sample_major: this rank's shard of all of it, made on
/// the device. layer_major: what a run holds in that order, and layers that are read from a file
/// when a pass comes to them. One rank of every node writes that file, with the widths and in the
/// dtype that are measured, to execution.scratch or a temporary directory; it has no name any more
/// once all ranks have opened it.
class BenchModel {
 public:
  /// `config` has its order and boundaries decided. Collective over grid.world(); throws where
  /// there is no room for the file, as take_steps does.
  BenchModel(const BenchRequest& request, const RunConfig& config, const ComputeOptions& options,
             const CommRuntime& runtime, const ProcessGrid& grid, const RoundHooks& hooks);

  const CausalLM& model() const { return held_ ? held_->model() : *whole_; }
  /// For score().
  std::optional<LayerByLayer> layer_by_layer() const;
  /// What reading layers took so far (StreamedLayers::seconds).
  double reading_seconds() const;
  /// sweep_gemms of this model. Not collective.
  GemmSweep sweep(std::int64_t rows) const;

 private:
  StreamedLayers* layers() const;

  std::optional<CausalLM> whole_;
  std::optional<Source> source_;
  std::optional<HeldModel> held_;
};

}  // namespace espalier
