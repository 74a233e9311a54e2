#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "espalier/comm/communicator.h"
#include "espalier/model/causal_lm.h"
#include "espalier/score/statistics.h"

namespace espalier {

/// [layer] -> a value per unit of one kind, in dense order.
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

  /// One kind's values of every rank. Collective over `tensor`.
  std::vector<LayerValues> gathered(const std::vector<UnitSums>& rows, UnitKind kind,
                                    Communicator& tensor) const;
  /// The same with all layers of a row behind one another. Collective over `tensor`.
  std::vector<std::vector<double>> flattened(const std::vector<UnitSums>& rows, UnitKind kind,
                                             Communicator& tensor) const;
  /// The inverse for one row: this rank's units. Throws Error(bad_content) for a row of
  /// another length.
  UnitSums own_part(const std::vector<double>& attention, const std::vector<double>& mlp) const;

 private:
  /// Calls f(shard, its units) for every rank's units of a layer, in dense order.
  template <class F>
  void for_each_shard(std::int64_t layer, UnitKind kind, F&& f) const;

  const CausalLM& model_;
  AttentionUnit unit_;
  ScoredHalves scored_;
};

}  // namespace espalier
