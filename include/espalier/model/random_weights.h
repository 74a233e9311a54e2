#pragma once

#include "espalier/model/causal_lm.h"

namespace espalier {

/// This rank's shard of a model of which there is no checkpoint: weights and biases normal with
/// deviation 0.02, drawn on the device; norms 1. What several ranks hold alike is alike. For
/// measurements: the draw is not the same on other layouts and devices. Not collective.
CausalLM random_causal_lm(const ModelConfig& config, const ModelWidths& widths,
                          const ComputeOptions& options, int tensor_size, int tensor_index);

}  // namespace espalier
