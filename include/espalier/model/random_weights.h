#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

#include "espalier/model/causal_lm.h"
#include "espalier/prune/tensor_catalog.h"
#include "espalier/store/safetensors.h"

namespace espalier {

/// This rank's shard of a model of which there is no checkpoint: weights and biases normal with
/// deviation 0.02, drawn on the device; norms 1. What several ranks hold alike is alike. For
/// measurements: the draw is not the same on other layouts and devices. Not collective.
CausalLM random_causal_lm(const ModelConfig& config, const ModelWidths& widths,
                          const ComputeOptions& options, int tensor_size, int tensor_index);

/// The same as a checkpoint: model.safetensors in `directory`, whose tensors have these widths, as
/// an `exact` export has them. Written step by step, so that ranks can agree in between: a step is
/// one decoder layer, or what lies outside the layers. Drawn on the host, a tensor at a time.
/// Throws Error(write_failed) where there is no room, before anything is written. Not collective.
class RandomCheckpoint {
 public:
  RandomCheckpoint(const ModelConfig& config, const ModelWidths& widths, at::ScalarType dtype,
                   const std::filesystem::path& directory);

  std::int64_t steps() const { return config_.layers + 1; }
  /// One after the other, from 0 on; the last one closes the file.
  void write(std::int64_t step);

 private:
  ModelConfig config_;
  ModelWidths widths_;
  at::ScalarType dtype_;
  std::vector<TensorSpec> specs_;  // in the order of the file
  std::optional<SafetensorsWriter> writer_;
};

}  // namespace espalier
