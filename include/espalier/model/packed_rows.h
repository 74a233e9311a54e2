#pragma once

#include <map>

#include <ATen/core/Tensor.h>

#include "espalier/model/rotary.h"

namespace espalier {

/// Where tokens stand in rows that hold several sequences with a common begin: the begin once, then
/// what follows it in each sequence, one behind the other. A token stands at its place in its own
/// sequence, and sees of the row what its sequence has before it. So each token is what it is in a
/// row of its own, and the begin is computed once.
class PackedRows {
 public:
  /// int64 [B, T]: the token's place in its sequence; and 0 in the common begin, n in the n-th
  /// sequence behind it. Padding is a sequence of its own.
  PackedRows(at::Tensor position_BT, at::Tensor sequence_BT);

  /// Bool [B, 1, T, T]: whether the token of the third dimension sees that of the fourth, under a
  /// sliding window of so many tokens (0 = none).
  const at::Tensor& visible(std::int64_t window) const;
  /// Positions that a table of angles has to reach.
  std::int64_t positions() const { return positions_; }
  /// Those of the tokens, [B, 1, T, E], of a table of all positions.
  const RotaryTable& rotary(const RotaryTable& table) const;

 private:
  at::Tensor position_BT_, sequence_BT_;
  std::int64_t positions_;
  // Layers share them.
  mutable std::map<std::int64_t, at::Tensor> visible_;
  mutable RotaryTable rotary_;
};

}  // namespace espalier
