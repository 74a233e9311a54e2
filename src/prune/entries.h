#pragma once

#include <optional>
#include <vector>

#include "bundles.h"
#include "channel_blocks.h"
#include "espalier/prune/plan.h"

namespace espalier {

/// What is ranked under some rules: single units, and in their place bundles of query heads
/// (equal_per_group) and blocks of channels (width_multiple).
class Entries {
 public:
  /// `heads` and `channels` are single units in any order.
  Entries(const ModelConfig& config, const PruneRules& rules, AttentionUnit unit, EntryKey key,
          std::vector<Candidate> heads, std::vector<Candidate> channels);

  /// All of them, in the total order.
  const std::vector<Candidate>& ranked() const { return ranked_; }
  /// The units of `entries`, in the same order: bundles become their heads, by group, and blocks
  /// their channels, ascending.
  std::vector<Candidate> units_of(const std::vector<Candidate>& entries) const;

 private:
  void append_units(const Candidate& entry, std::vector<Candidate>& units) const;

  std::optional<Bundles> bundles_;
  std::optional<ChannelBlocks> blocks_;
  std::vector<Candidate> ranked_;
};

}  // namespace espalier
