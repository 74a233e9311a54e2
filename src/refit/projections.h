#pragma once

#include <cstddef>
#include <vector>

#include "espalier/config/model_config.h"
#include "espalier/prune/score_table.h"
#include "espalier/prune/tensor_catalog.h"
#include "espalier/prune/widths.h"

namespace espalier {

/// The projections of a half's input that a refit of all matrices solves, in checkpoint order: q, k
/// and v, or gate and up. None where no unit of the half is left, and none in the first half, where
/// both streams are the embedding.
std::vector<TensorSpec> refitted_projections(const ModelConfig& config, const ModelWidths& kept,
                                             std::size_t layer, UnitKind half);

}  // namespace espalier
