#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "espalier/config/model_config.h"

namespace espalier {

/// Names of models whose shapes are known, for messages and help.
std::vector<std::string> known_shapes();

/// The facts of a model of which only the sizes matter: the name of a known one in any case of its
/// letters ("qwen2.5-7b"), or "hidden=1024,channels=2816,layers=8,heads=16,kv_heads=4,
/// vocabulary=8192" and perhaps head_dim (default hidden / heads), of the Llama family with untied
/// embeddings. `layers` cuts or stretches it. A known one is stored in bfloat16, the other in
/// float32. Throws Error(usage) for everything
/// that is wrong in the text, at once.
ModelConfig config_of_shape(const std::string& shape, std::optional<std::int64_t> layers = {});

/// The same model with so many layers, each like its first. An export of ours has widths per layer
/// and is refused (Error(usage)).
ModelConfig with_layers(ModelConfig config, std::int64_t layers);

}  // namespace espalier
