#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ledger.h"

namespace espalier {

/// The entries that a ranking under prune.width_multiple m has in place of single channels: in each
/// layer the j-th m lowest channels form block j, which falls whole, so that a layer of a multiple
/// of m stays one. Keys of a layer's blocks never descend with j; ties fall by j.
class ChannelBlocks {
 public:
  /// `channels` are single channels in any order; their number in each layer is a multiple of
  /// `multiple` (checked).
  ChannelBlocks(std::int64_t multiple, std::vector<Candidate> channels);

  /// Their `unit` is j.
  std::vector<Candidate> candidates(EntryKey key) const;
  /// The channels of one of those, with their own keys, ascending.
  std::span<const Candidate> channels_of(const Candidate& block) const;

 private:
  std::size_t multiple_;
  /// By layer, key, number.
  std::vector<Candidate> channels_;
  /// Where the channels of each layer begin in `channels_`.
  std::vector<std::size_t> begin_;
};

}  // namespace espalier
