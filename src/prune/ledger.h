#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "budget.h"
#include "espalier/prune/plan.h"
#include "espalier/prune/unit_tensors.h"

namespace espalier {

/// What may fall as one entry of a ranking, and what it is ranked by: a unit, or under
/// equal_per_group a bundle of a layer's query heads (bundles.h), or under a width_multiple a block
/// of its channels (channel_blocks.h). The `unit` of those is their place among the bundles or
/// blocks of the layer.
struct Candidate {
  double key = 0;
  std::int32_t layer = 0;
  std::int32_t unit = 0;
  UnitKind kind = UnitKind::attention;
};

/// What a bundle or a block is ranked by.
enum class EntryKey {
  /// The mean of its units' keys.
  mean,
  /// The highest of them: where it is complete in a removal order.
  highest
};

/// The total order (key, layer, kind, unit): attention before MLP.
bool falls_before(const Candidate& a, const Candidate& b);

/// The least that a layer keeps.
struct Floors {
  /// Query heads, also for kv_group; whole bundles stay, so this rounds up under equal_per_group.
  std::int64_t heads = 0;
  /// Whole blocks stay, so this rounds up to a multiple of width_multiple.
  std::int64_t channels = 0;
};

/// What a model has lost while entries fall one after the other: counts, parameters, and who still
/// reads which KV head. Every question is answered in constant time. Which units a bundle or a
/// block holds does not matter here: every group loses one head, the layer so many channels.
class Ledger {
 public:
  /// Starts with what `plan` already removed. From then on `width_multiple` channels fall with one
  /// entry.
  Ledger(const ModelConfig& config, const PruningPlan& plan, Floors floors,
         std::int64_t width_multiple = 1);

  /// Units that fall with this entry.
  std::int64_t units_of(const Candidate& entry) const {
    return entry.kind == UnitKind::attention ? entry_ : block_;
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
  void replay_attention(const UnitMatrix<std::int32_t>& removed_at);
  void replay_channels(const UnitMatrix<std::int32_t>& removed_at);
  void lose_channels(std::int64_t layer, std::int64_t count);
  std::int64_t attention_cost(const Candidate& unit) const;
  void lose_attention(const Candidate& unit);
  std::size_t group_of(const Candidate& head) const;
  bool is_bundled() const { return entry_ > 1; }

  UnitSizes sizes_;
  Floors floors_;
  bool by_group_;
  std::int64_t entry_;  // query heads (KV heads for kv_group) that fall together
  std::int64_t block_;  // channels that fall together
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
