#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace espalier {

/// Half-open range of indices [begin, end).
struct Range {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t size() const { return end - begin; }
  friend bool operator==(const Range&, const Range&) = default;
};

/// A sorted set of indices held as disjoint, non-adjacent ranges: what a slice takes of one axis.
class IndexRuns {
 public:
  IndexRuns() = default;
  /// All of [0, n).
  static IndexRuns all(std::int64_t n);
  static IndexRuns of(Range range);
  /// `width` consecutive elements for every unit: unit u covers [u * width, (u + 1) * width).
  /// `units` must be strictly ascending.
  static IndexRuns of_units(std::span<const std::int32_t> units, std::int64_t width);

  const std::vector<Range>& runs() const { return runs_; }
  std::int64_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  /// [first index, last index + 1), or [0, 0) when empty.
  Range envelope() const;
  /// True when this is exactly [0, n).
  bool is_all(std::int64_t n) const;
  /// Those at the places [begin, end) of all in ascending order.
  IndexRuns part(Range places) const;
  /// Every index, ascending.
  std::vector<std::int64_t> indices() const;
  friend bool operator==(const IndexRuns&, const IndexRuns&) = default;

 private:
  void append(Range range);
  std::vector<Range> runs_;
  std::int64_t size_ = 0;
};

/// Part `index` of n items cut into `count` contiguous parts; the first n mod count parts get one
/// more. Parts may be empty. Pure; precondition 0 <= index < count.
Range even_cut(std::int64_t n, int count, int index);

/// Cuts items of the given non-negative weights into `count` contiguous parts so that the heaviest
/// part is as light as possible (among such cuts: the earliest items first, greedily). Returns the
/// `count` ranges of item numbers; parts may be empty. Used for KV groups, weighted by their query
/// heads. Pure.
std::vector<Range> balanced_cut(std::span<const std::int64_t> weights, int count);

/// The place of every wanted number in the ascending list `have`: what a slice of a tensor that
/// already lost units must take. Both lists ascending; throws Error(internal) if one is missing.
std::vector<std::int32_t> positions(std::span<const std::int32_t> wanted,
                                    std::span<const std::int32_t> have);

}  // namespace espalier
