#pragma once

#include <cstdint>
#include <functional>
#include <span>
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

/// Rows of so many entries that are summed in float64 at once, and the bytes that takes.
std::int64_t input_sums_rows(std::int64_t entries);
std::int64_t input_sums_bytes(std::int64_t rows, std::int64_t entries);

enum class ColumnNorm { absolute, squared };
/// Per entry at the gate of this rank's half, the sum over its column of o_proj or down_proj of |w|
/// or of w^2.
std::vector<double> column_sums(const CausalLM& model, std::int64_t layer, UnitKind half,
                                ColumnNorm norm);

/// Numbers of a half's entries added up over each unit's.
std::vector<double> entries_to_units(const CausalLM& model, AttentionUnit unit, std::int64_t layer,
                                     UnitKind half, const std::vector<double>& entries);

/// Some rows (axis 0) or columns (axis 1) of a matrix.
struct Lines {
  std::int64_t axis;
  Range range;
  /// Shares the storage.
  at::Tensor of(const at::Tensor& weight) const;
};
/// One value for each number of these lines of a weight, in their shape.
using ValuesOfWeight = std::function<at::Tensor(TensorRole, const Lines&)>;

/// Sums in float64, per unit of one half, the values of every scored tensor: rows of q, k, v, gate
/// and up, columns of o and down. Under multi-head attention head h takes k and v rows h. Asks for
/// some lines at a time, so that nothing of a tensor's size lies beside it. `problems` receives
/// every tensor of the half with a sum that is not finite (bad_content).
std::vector<double> sum_over_unit_tensors(const CausalLM& model, AttentionUnit unit,
                                          std::int64_t layer, UnitKind half,
                                          const ValuesOfWeight& values_of, Problems& problems);

/// Adds every row up over the ranks of `data`, all in one collective. Collective.
void reduce_unit_sums(std::span<UnitSums> rows, Communicator& data);

/// Throws Error(bad_content) naming layer, kind, unit (or the entry of the half where there are
/// several values a unit) and the tensor that reads it for the first value that is not finite;
/// `where` goes into the message.
void require_finite_sums(const CausalLM& model, AttentionUnit unit, const UnitSums& sums,
                         const std::string& where);

}  // namespace espalier
