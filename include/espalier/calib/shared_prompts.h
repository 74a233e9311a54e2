#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "espalier/calib/token_file.h"
#include "espalier/model/blockwise.h"

namespace espalier {

/// Rows of whole items as a batch of one packed row each: the tokens that an item's options begin
/// with in common, as far as none of them is predicted from, then what each option has behind them.
/// begins[i] is the first row of item i; weights and `predictions` as in make_batch, with the same
/// predictions in the same order. Nothing where the packed rows, padded to one length, are no
/// fewer tokens than the plain ones.
std::optional<TokenBatch> share_prompts(const TokenRows& rows, std::span<const std::size_t> begins,
                                        std::span<const double> row_weights, at::Device device,
                                        std::vector<std::int64_t>& predictions);

}  // namespace espalier
