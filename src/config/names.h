#pragma once

#include <utility>
#include <vector>

#include "espalier/config/run_config.h"

namespace espalier::config_detail {

/// The words of a choice, in the order of help and reference.
template <class E>
using Names = std::vector<std::pair<const char*, E>>;

const Names<Objective>& objective_names();
const Names<Criterion>& criterion_names();
const Names<Normalization>& normalization_names();
const Names<Order>& order_names();
const Names<ShrinkTo>& shrink_to_names();
const Names<RefitMatrices>& refit_matrices_names();

}  // namespace espalier::config_detail
