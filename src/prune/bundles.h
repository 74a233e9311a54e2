#pragma once

#include <cstdint>
#include <vector>

#include "ledger.h"

namespace espalier {

/// The entries that a ranking under equal_per_group has in place of single query heads: in each
/// layer the j-th lowest heads of all groups form bundle j, which falls whole. Keys of a layer's
/// bundles never descend with j, since the heads of each group ascend; ties fall by j.
class Bundles {
 public:
  /// `heads` are single heads in any order; in each layer every group has as many of them
  /// (checked).
  Bundles(const ModelConfig& config, std::vector<Candidate> heads);

  /// Their `unit` is j.
  std::vector<Candidate> candidates(EntryKey key) const;
  /// The heads of one of those, with their own keys, by group.
  std::vector<Candidate> heads_of(const Candidate& bundle) const;

 private:
  std::size_t first_of(const Candidate& bundle, std::int64_t group) const;

  std::int64_t groups_;
  std::int64_t group_size_;
  /// By layer, group, key, number.
  std::vector<Candidate> heads_;
  /// Where each layer begins in `heads_`, and the end: [layers + 1].
  std::vector<std::size_t> begin_;
};

}  // namespace espalier
