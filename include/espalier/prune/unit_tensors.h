#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "espalier/config/run_config.h"
#include "espalier/prune/score_table.h"
#include "espalier/prune/tensor_catalog.h"

namespace espalier {

/// What falls with a unit: the parts of which tensors, and how many numbers. All of it is read off
/// the axes in the catalog, as the slices themselves are (slice_of); whoever counts weights, prices
/// a unit, sums its scores or balances ranks asks here.

/// The axis that is counted in units: 0 for rows, 1 for columns. The spec is one of a unit's.
std::size_t unit_axis(const TensorSpec& spec);

/// Whether k and v rows fall with each unit of the attention by themselves: KV groups, and query
/// heads of which each has its own. Otherwise they fall with the last head that reads them.
bool carries_kv(const ModelConfig& config, AttentionUnit unit);

/// The matrices of one layer of which each unit of the kind owns a part, in checkpoint order: those
/// whose weights enter its scores. Biases fall too, but are not scored.
std::vector<TensorSpec> unit_matrices(const ModelConfig& config, AttentionUnit unit, UnitKind kind,
                                      int layer);
/// Their roles, which are the same in every layer.
std::vector<TensorRole> unit_roles(const ModelConfig& config, AttentionUnit unit, UnitKind kind);

/// The matrix of one layer that reads the units: o or down, by its columns.
TensorSpec unit_reader(const ModelConfig& config, UnitKind kind, int layer);

/// Numbers that belong to one unit.
struct UnitSizes {
  std::int64_t query_head = 0;
  /// Rows of k and v.
  std::int64_t kv_head = 0;
  std::int64_t channel = 0;

  /// A KV head with `heads` query heads that read it.
  std::int64_t group(std::int64_t heads) const { return heads * query_head + kv_head; }
  /// What is left of a layer, without its norms.
  std::int64_t of(const LayerWidths& layer) const;
};
/// Of matrices alone.
UnitSizes unit_weights(const ModelConfig& config);
/// With biases.
UnitSizes unit_parameters(const ModelConfig& config);

}  // namespace espalier
