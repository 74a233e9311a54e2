#include "bundles.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include <fmt/format.h>

#include "espalier/core/error.h"

namespace espalier {

Bundles::Bundles(const ModelConfig& config, std::vector<Candidate> heads)
    : groups_(config.kv_heads), group_size_(config.group_size()), heads_(std::move(heads)) {
  std::sort(heads_.begin(), heads_.end(), [this](const Candidate& a, const Candidate& b) {
    const std::int64_t group_a = a.unit / group_size_, group_b = b.unit / group_size_;
    return std::tie(a.layer, group_a, a.key, a.unit) < std::tie(b.layer, group_b, b.key, b.unit);
  });
  for (std::int64_t layer = 0; layer <= config.layers; ++layer)
    begin_.push_back(static_cast<std::size_t>(
        std::partition_point(heads_.begin(), heads_.end(),
                             [layer](const Candidate& head) { return head.layer < layer; }) -
        heads_.begin()));
  std::vector<std::int64_t> per_group(static_cast<std::size_t>(config.layers * groups_), 0);
  for (const Candidate& head : heads_)
    ++per_group[static_cast<std::size_t>(head.layer * groups_ + head.unit / group_size_)];
  for (std::size_t i = 0; i < per_group.size(); ++i) {
    const std::size_t layer = i / static_cast<std::size_t>(groups_);
    ESPALIER_CHECK(
        per_group[i] * groups_ == static_cast<std::int64_t>(begin_[layer + 1] - begin_[layer]),
        fmt::format("the groups of layer {} have not as many query heads each", layer));
  }
}

std::size_t Bundles::first_of(const Candidate& bundle, std::int64_t group) const {
  const std::size_t begin = begin_[static_cast<std::size_t>(bundle.layer)];
  const std::size_t end = begin_[static_cast<std::size_t>(bundle.layer) + 1];
  const std::size_t bundles = (end - begin) / static_cast<std::size_t>(groups_);
  return begin + static_cast<std::size_t>(group) * bundles + static_cast<std::size_t>(bundle.unit);
}

std::vector<Candidate> Bundles::heads_of(const Candidate& bundle) const {
  std::vector<Candidate> heads;
  for (std::int64_t group = 0; group < groups_; ++group)
    heads.push_back(heads_[first_of(bundle, group)]);
  return heads;
}

std::vector<Candidate> Bundles::candidates(EntryKey key) const {
  std::vector<Candidate> bundles;
  for (std::size_t layer = 0; layer + 1 < begin_.size(); ++layer) {
    const auto count =
        static_cast<std::int32_t>(begin_[layer + 1] - begin_[layer]) / static_cast<int>(groups_);
    for (std::int32_t j = 0; j < count; ++j) {
      Candidate bundle{0, static_cast<std::int32_t>(layer), j, UnitKind::attention};
      const std::vector<Candidate> heads = heads_of(bundle);
      double sum = 0, highest = heads.front().key;
      for (const Candidate& head : heads) {
        sum += head.key;
        highest = std::max(highest, head.key);
      }
      bundle.key = key == EntryKey::mean ? sum / static_cast<double>(groups_) : highest;
      bundles.push_back(bundle);
    }
  }
  return bundles;
}

}  // namespace espalier
