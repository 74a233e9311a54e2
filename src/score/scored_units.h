#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "espalier/comm/communicator.h"
#include "espalier/model/causal_lm.h"
#include "espalier/score/statistics.h"

namespace espalier {

/// How many numbers a shard's half has.
using NumbersOf = std::function<std::int64_t(const LayerWidths& widths, UnitKind half)>;

/// [layer] -> the numbers of one kind's units, in dense order.
using LayerValues = std::vector<std::vector<double>>;

/// The surviving units over all tensor ranks, and which rank has which: ranks hold contiguous
/// ranges, so units in rank order are in dense order. Refers to the model.
class ScoredUnits {
 public:
  ScoredUnits(const CausalLM& model, AttentionUnit unit, ScoredHalves scored)
      : model_(model), unit_(unit), scored_(std::move(scored)) {}

  bool is_scored(std::int64_t layer, UnitKind kind) const;
  /// Dense numbers of a layer's units.
  std::vector<std::int32_t> numbers(std::int64_t layer, UnitKind kind) const;
  /// Query heads behind each attention unit of a layer.
  std::vector<std::int64_t> heads_per_unit(std::int64_t layer) const;
  /// All units and whether they are scored, in words.
  std::string description() const;

  /// One kind's numbers of every rank. Collective over `tensor`.
  std::vector<LayerValues> gathered(const std::vector<UnitSums>& rows, UnitKind kind,
                                    const NumbersOf& numbers, Communicator& tensor) const;
  /// The same with all layers of a row behind one another. Collective over `tensor`.
  std::vector<std::vector<double>> flattened(const std::vector<UnitSums>& rows, UnitKind kind,
                                             const NumbersOf& numbers, Communicator& tensor) const;
  /// The inverse for one row: this rank's numbers. Throws Error(bad_content) for a row of
  /// another length.
  UnitSums own_part(const std::vector<double>& attention, const std::vector<double>& mlp,
                    const NumbersOf& numbers) const;

 private:
  /// Calls f(shard, its widths of the layer) for every rank, in dense order.
  template <class F>
  void for_each_shard(std::int64_t layer, F&& f) const;

  const CausalLM& model_;
  AttentionUnit unit_;
  ScoredHalves scored_;
};

}  // namespace espalier
