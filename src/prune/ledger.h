#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "budget.h"
#include "espalier/prune/plan.h"
#include "espalier/prune/unit_tensors.h"

namespace espalier {

/// What may fall as one entry of a ranking, and what it is ranked by: a unit, or under
/// equal_per_group a bundle of a layer's query heads (bundles.h), whose `unit` is its place among
/// the bundles of the layer.
struct Candidate {
  double key = 0;
  std::int32_t layer = 0;
  std::int32_t unit = 0;
  UnitKind kind = UnitKind::attention;
};

/// The total order (key, layer, kind, unit): attention before MLP.
bool falls_before(const Candidate& a, const Candidate& b);

/// The least that a layer keeps.
struct Floors {
  /// Query heads, also for kv_group; whole bundles stay, so this rounds up under equal_per_group.
  std::int64_t heads = 0;
  std::int64_t channels = 0;
};

/// What a model has lost while entries fall one after the other: counts, parameters, and who still
/// reads which KV head. Every question is answered in constant time. Which heads a bundle holds
/// does not matter here: every group loses one.
class Ledger {
 public:
  /// Starts with what `plan` already removed.
  Ledger(const ModelConfig& config, const PruningPlan& plan, Floors floors);

  /// Units that fall with this entry.
  std::int64_t units_of(const Candidate& entry) const {
    return entry.kind == UnitKind::attention ? entry_ : 1;
  }
  /// False when removing the unit would break a floor.
  bool may_fall(const Candidate& unit) const;
  /// Parameters that go when this unit falls now: the last reader of a KV head takes k and v along.
  std::int64_t cost(const Candidate& unit) const;
  void remove(const Candidate& unit);

  /// Removed so far.
  std::int64_t units(UnitKind kind) const;
  std::int64_t units(UnitKind kind, std::int32_t layer) const;
  /// Removed so far.
  std::int64_t parameters(UnitKind kind) const;
  std::int64_t parameters() const;

 private:
  void replay(UnitKind kind, const UnitMatrix<std::int32_t>& removed_at);
  std::int64_t attention_cost(const Candidate& unit) const;
  void remove_attention(const Candidate& unit);
  std::size_t group_of(const Candidate& head) const;
  bool is_bundled() const { return entry_ > 1; }

  UnitSizes sizes_;
  Floors floors_;
  bool by_group_;
  std::int64_t entry_;  // query heads (KV heads for kv_group) that fall together
  std::int64_t group_size_;
  std::int64_t kv_heads_;
  std::vector<std::int64_t> heads_;                   // kept query heads of each layer
  std::vector<std::int64_t> channels_;                // kept channels of each layer
  std::vector<std::int64_t> readers_;                 // kept query heads of each layer and KV head
  std::array<std::vector<std::int64_t>, 2> removed_;  // units by kind and layer
  std::array<std::int64_t, 2> removed_units_{0, 0};
  std::array<std::int64_t, 2> removed_parameters_{0, 0};
};

}  // namespace espalier
