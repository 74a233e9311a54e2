#pragma once

#include <cstdint>
#include <filesystem>

#include "espalier/config/model_config.h"
#include "espalier/prune/widths.h"

namespace espalier {

/// What a plan.h5 of the model leaves, or a JSON list of the channels of each layer: [2001, 1987,
/// ...], all heads kept. Throws Error(bad_content) for anything else.
ModelWidths read_widths(const std::filesystem::path& path, const ModelConfig& model);

/// The same with every layer's channels at the nearest multiple (the higher one of two; at least
/// one multiple where any channel is left, and not above the dense model's). Which channels they
/// are does not matter to a bench.
ModelWidths with_rounded_channels(ModelWidths widths, const ModelConfig& model,
                                  std::int64_t multiple);

}  // namespace espalier
