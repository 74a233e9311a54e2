#pragma once

#include <filesystem>
#include <string>

#include "espalier/config/model_config.h"
#include "espalier/prune/widths.h"
#include "support/temporary_directory.h"

namespace espalier::testing {

/// A small decoder of the given family whose sizes divide by nothing convenient.
ModelConfig small_config(ModelFamily family);

/// Writes model.safetensors with seeded weights (float32) for the config's dense shape; norms are
/// not 1, biases not 0.
void write_random_checkpoint(const ModelConfig& config, const std::filesystem::path& directory,
                             std::uint64_t seed);

/// Widths drawn by seed: uneven groups, KV heads that nobody reads, one layer without heads, one
/// without channels.
ModelWidths random_widths(const ModelConfig& config, std::uint64_t seed);

}  // namespace espalier::testing
