#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "espalier/prune/overlap.h"

namespace espalier {

/// Puts an iteration's overlap into overlap.json (docs/file-formats.md), in the place of an earlier
/// one of the same iteration; the file appears whole. What is no such file, or is of other domains,
/// is replaced. Only rank 0 calls this.
void write_overlap(const std::filesystem::path& file, const std::vector<std::string>& domains,
                   std::int64_t iteration, double target, const Overlap& overlap);

}  // namespace espalier
