#include "channel_blocks.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include <fmt/format.h>

#include "espalier/core/error.h"

namespace espalier {

ChannelBlocks::ChannelBlocks(std::int64_t multiple, std::vector<Candidate> channels)
    : multiple_(static_cast<std::size_t>(multiple)), channels_(std::move(channels)) {
  std::sort(channels_.begin(), channels_.end(), [](const Candidate& a, const Candidate& b) {
    return std::tie(a.layer, a.key, a.unit) < std::tie(b.layer, b.key, b.unit);
  });
  for (std::size_t i = 0; i < channels_.size(); ++i) {
    const auto layer = static_cast<std::size_t>(channels_[i].layer);
    while (begin_.size() <= layer) begin_.push_back(i);
  }
  begin_.push_back(channels_.size());
  for (std::size_t layer = 0; layer + 1 < begin_.size(); ++layer) {
    const std::size_t count = begin_[layer + 1] - begin_[layer];
    ESPALIER_CHECK(count % multiple_ == 0,
                   fmt::format("{} channels of layer {} are ranked, no multiple of {}", count,
                               layer, multiple_));
  }
}

std::span<const Candidate> ChannelBlocks::channels_of(const Candidate& block) const {
  const std::size_t begin = begin_[static_cast<std::size_t>(block.layer)];
  return std::span(channels_).subspan(begin + static_cast<std::size_t>(block.unit) * multiple_,
                                      multiple_);
}

std::vector<Candidate> ChannelBlocks::candidates(EntryKey key) const {
  std::vector<Candidate> blocks;
  for (std::size_t layer = 0; layer + 1 < begin_.size(); ++layer) {
    const std::size_t count = (begin_[layer + 1] - begin_[layer]) / multiple_;
    for (std::size_t j = 0; j < count; ++j) {
      Candidate block{0, static_cast<std::int32_t>(layer), static_cast<std::int32_t>(j),
                      UnitKind::mlp};
      const std::span<const Candidate> channels = channels_of(block);
      double sum = 0;
      for (const Candidate& channel : channels) sum += channel.key;
      block.key =
          key == EntryKey::mean ? sum / static_cast<double>(multiple_) : channels.back().key;
      blocks.push_back(block);
    }
  }
  return blocks;
}

}  // namespace espalier
