#pragma once

#include <cstdint>

#include <nlohmann/json.hpp>

#include "espalier/comm/process_grid.h"
#include "espalier/config/model_config.h"
#include "espalier/model/causal_lm.h"

namespace espalier {

/// What a refit of half the channels does beside its passes, all ranks together; `tokens` are of a
/// micro-batch, half of which are of each fold. Collective over `world`.
nlohmann::ordered_json refit_rates(const ModelConfig& model, const ComputeOptions& options,
                                   std::int64_t tokens, Communicator& world);

/// Sums of several sizes over the tensor and the data group, where these have several ranks.
/// Collective over the world of `grid`.
nlohmann::ordered_json collective_times(const ProcessGrid& grid, at::Device device);

}  // namespace espalier
