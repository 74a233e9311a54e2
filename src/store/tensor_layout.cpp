#include "espalier/store/tensor_layout.h"

#include <algorithm>
#include <numeric>

#include <fmt/format.h>

#include "espalier/core/error.h"

namespace espalier {
namespace {

/// How many parts a greedy cut needs when no part may weigh more than `cap` (>= every weight).
std::int64_t parts_needed(std::span<const std::int64_t> weights, std::int64_t cap) {
  std::int64_t parts = 0;
  std::int64_t room = 0;
  bool open = false;
  for (const std::int64_t weight : weights) {
    if (!open || weight > room) {
      ++parts;
      room = cap;
      open = true;
    }
    room -= weight;
  }
  return parts;
}

/// The smallest weight that the heaviest of `count` contiguous parts can have.
std::int64_t lightest_cap(std::span<const std::int64_t> weights, int count) {
  std::int64_t low = *std::max_element(weights.begin(), weights.end());
  std::int64_t high = std::accumulate(weights.begin(), weights.end(), std::int64_t{0});
  while (low < high) {
    const std::int64_t middle = low + (high - low) / 2;
    if (parts_needed(weights, middle) <= count)
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

}  // namespace

IndexRuns IndexRuns::all(std::int64_t n) { return of({0, n}); }

IndexRuns IndexRuns::of(Range range) {
  ESPALIER_CHECK(range.begin >= 0 && range.begin <= range.end,
                 fmt::format("range [{}, {})", range.begin, range.end));
  IndexRuns result;
  result.append(range);
  return result;
}

IndexRuns IndexRuns::of_units(std::span<const std::int32_t> units, std::int64_t width) {
  ESPALIER_CHECK(width >= 0, fmt::format("unit width {}", width));
  IndexRuns result;
  std::int64_t previous = -1;
  for (const std::int32_t unit : units) {
    if (unit <= previous)  // the message is only built when it is needed
      ESPALIER_CHECK(false, fmt::format("unit {} after unit {}: not ascending", unit, previous));
    result.append({unit * width, (unit + std::int64_t{1}) * width});
    previous = unit;
  }
  return result;
}

void IndexRuns::append(Range range) {
  if (range.size() == 0) return;
  size_ += range.size();
  if (!runs_.empty() && runs_.back().end == range.begin)
    runs_.back().end = range.end;
  else
    runs_.push_back(range);
}

Range IndexRuns::envelope() const {
  if (runs_.empty()) return {};
  return {runs_.front().begin, runs_.back().end};
}

bool IndexRuns::is_all(std::int64_t n) const {
  return size_ == n && (n == 0 || envelope() == Range{0, n});
}

IndexRuns IndexRuns::part(Range places) const {
  IndexRuns taken;
  std::int64_t place = 0;
  for (const Range run : runs_) {
    const Range here{std::max(place, places.begin), std::min(place + run.size(), places.end)};
    if (here.begin < here.end)
      taken.append({run.begin + here.begin - place, run.begin + here.end - place});
    place += run.size();
  }
  return taken;
}

std::vector<std::int64_t> IndexRuns::indices() const {
  std::vector<std::int64_t> list;
  list.reserve(static_cast<std::size_t>(size_));
  for (const Range run : runs_)
    for (std::int64_t i = run.begin; i < run.end; ++i) list.push_back(i);
  return list;
}

Range even_cut(std::int64_t n, int count, int index) {
  ESPALIER_CHECK(n >= 0 && count > 0 && index >= 0 && index < count,
                 fmt::format("part {} of {} of {} items", index, count, n));
  const std::int64_t base = n / count;
  const std::int64_t larger = n % count;  // parts that get one item more
  const std::int64_t begin = index * base + std::min<std::int64_t>(index, larger);
  return {begin, begin + base + (index < larger ? 1 : 0)};
}

std::vector<Range> balanced_cut(std::span<const std::int64_t> weights, int count) {
  ESPALIER_CHECK(count > 0, fmt::format("{} parts", count));
  for (const std::int64_t weight : weights)
    ESPALIER_CHECK(weight >= 0, fmt::format("weight {} is negative", weight));
  const auto n = static_cast<std::int64_t>(weights.size());
  std::vector<Range> parts;
  const std::int64_t cap = n == 0 ? 0 : lightest_cap(weights, count);
  std::int64_t next = 0;
  for (int part = 0; part < count; ++part) {
    const std::int64_t begin = next;
    std::int64_t room = cap;
    while (next < n && weights[static_cast<std::size_t>(next)] <= room)
      room -= weights[static_cast<std::size_t>(next++)];
    parts.push_back({begin, next});
  }
  ESPALIER_CHECK(next == n, fmt::format("cut {} of {} items", next, n));
  return parts;
}

std::vector<std::int32_t> positions(std::span<const std::int32_t> wanted,
                                    std::span<const std::int32_t> have) {
  std::vector<std::int32_t> places;
  places.reserve(wanted.size());
  std::size_t at = 0;
  for (const std::int32_t number : wanted) {
    while (at < have.size() && have[at] < number) ++at;
    if (at == have.size() || have[at] != number)
      ESPALIER_CHECK(false,
                     fmt::format("unit {} is not among the {} present", number, have.size()));
    places.push_back(static_cast<std::int32_t>(at));
  }
  return places;
}

}  // namespace espalier
