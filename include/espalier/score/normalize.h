#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "espalier/config/model_config.h"
#include "espalier/config/run_config.h"
#include "espalier/prune/score_table.h"
#include "espalier/prune/widths.h"

namespace espalier {

/// Makes the values of one block (the attention or the MLP of one layer) comparable with those of
/// all others
/// ("block-wise normalisation" of arXiv 2510.18030). E head size, D hidden:
///  - gisp: head / (4 E D), channel / (3 x intermediate size of the dense model), as released;
///  - param_mean: divided by the number of weights summed: query head 4 E D (multi-head) or 2 E D
///  (grouped), KV group
///    (2 heads + 2) E D, channel 3 D; `heads` is the number of query heads of each unit's group;
///  - cost: divided by the parameters that fall with the unit, biases included: channel 3 D, KV
///  group as above, query head 2 E D + its KV head's 2 E D x kv_heads / heads;
///  - block_mean, block_l2: divided by the block's own mean or L2 norm (0 where that is 0);
///  - block_standardize: (value - mean) / deviation with n - 1; 0 for a block of one unit or of
///  equal values;
///  - none.
/// Pure.
std::vector<double> normalized(const ModelConfig& config, Normalization normalization,
                               AttentionUnit unit, UnitKind kind, const std::vector<double>& values,
                               const std::vector<std::int64_t>& heads);

}  // namespace espalier
