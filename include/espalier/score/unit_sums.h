#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "espalier/comm/communicator.h"
#include "espalier/core/error.h"
#include "espalier/score/statistics.h"

namespace espalier {

bool is_scored(const ScoredHalves& scored, std::int64_t layer, UnitKind half);

/// The units of one half in the dense model's numbers: query heads, KV heads for kv_group, or
/// channels.
const std::vector<std::int32_t>& unit_numbers(const LayerWidths& widths, AttentionUnit unit,
                                              UnitKind half);
std::int64_t unit_count(const CausalLM& model, AttentionUnit unit, std::int64_t layer,
                        UnitKind half);

/// [..., heads] -> [..., units]: the heads themselves, or the sum over each kept KV group's heads.
at::Tensor heads_to_units(const CausalLM& model, AttentionUnit unit, std::int64_t layer,
                          const at::Tensor& heads);

/// Sums, per unit of one half, the values that `of_role` gives for every scored tensor (same shape
/// as the weight): rows of q, k, v, gate and up, columns of o and down. Under multi-head attention
/// head h takes k and v rows h. `problems` receives every tensor of the half with a sum that is
/// not finite (bad_content).
std::vector<double> sum_over_unit_tensors(const CausalLM& model, AttentionUnit unit,
                                          std::int64_t layer, UnitKind half,
                                          const std::function<at::Tensor(TensorRole)>& of_role,
                                          Problems& problems);

/// Adds up over the ranks of `data` in one collective. Collective.
void reduce_unit_sums(UnitSums& sums, Communicator& data);

/// Throws Error(bad_content) naming layer, kind, unit and the tensor that reads it for the first
/// value that is not finite; `where` goes into the message.
void require_finite_sums(const CausalLM& model, AttentionUnit unit, const UnitSums& sums,
                         const std::string& where);

}  // namespace espalier
