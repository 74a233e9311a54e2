#pragma once

#include <functional>
#include <string>
#include <vector>

#include "espalier/comm/process_grid.h"
#include "espalier/model/causal_lm.h"
#include "espalier/store/safetensors.h"

namespace espalier {

/// Where weights come from: a checkpoint and the widths that its tensors have (dense, or those of
/// one of our `exact` exports), in the dense model's numbers.
struct WeightSource {
  const CheckpointReader* reader = nullptr;
  ModelWidths widths;
};

/// Compares names, shapes and dtypes of the checkpoint with what config.json promises; lists
/// everything that is wrong at once (bad_content), with the nearest names. A tensor without
/// elements may be absent. Returns notes (extra tensors, an lm_head in a tied file).
std::vector<std::string> check_checkpoint(const ModelConfig& config, const WeightSource& source);

/// The dtype that `as_stored` means: that of the embedding in the file.
at::ScalarType stored_type(const WeightSource& source);

/// Called between tensors with bytes read and bytes to read on this rank; may throw to stop.
using LoadProgress = std::function<void(std::int64_t done, std::int64_t total)>;

/// Reads this rank's slices, casts to options.dtype and moves to options.device. Every weight must
/// be finite: otherwise bad_content naming tensor, layer and rank. Not collective; wrap in
/// `together`.
CausalLM load_causal_lm(const ModelConfig& config, const ModelWidths& widths,
                        const WeightSource& source, const ComputeOptions& options, int tensor_size,
                        int tensor_index, const LoadProgress& progress);

/// When the widest rank carries more than `limit` times the mean, cuts anew and reads the layers
/// whose shard changed from the source; returns true if it did. Not collective, the same decision
/// on every rank.
bool rebalance(CausalLM& model, const WeightSource& source, double limit);

}  // namespace espalier
