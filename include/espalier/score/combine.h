#pragma once

#include <vector>

#include "espalier/config/run_config.h"

namespace espalier {

/// One score per unit from rows of normalised scores, a row per domain with its weight (which need
/// not add up to 1). Rows of weight 0 take no part. For u over all units that were scored:
///  - pooled: the only row, whatever its weight;
///  - weighted_mean: sum_d w_d s_d(u) / sum_d w_d (arXiv 2601.02674);
///  - max: max_d s_d(u);
///  - rank_mean: sum_d w_d r_d(u) / sum_d w_d, r_d(u) the rank of s_d(u) among the row's, from 1
///  for
///    the lowest; equal scores share the mean of their ranks;
///  - worst_domain: max_d s_d(u) / mean_v s_d(v); 0 for a row of mean 0; infinite scores are
///  not in the mean and stay infinite.
/// Pure. Throws Error(internal) when rows and weights do not match.
std::vector<double> combined_scores(const std::vector<std::vector<double>>& rows,
                                    const std::vector<double>& weights, Combine combine);

}  // namespace espalier
