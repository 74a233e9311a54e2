#include "espalier/prune/widths.h"

#include <algorithm>
#include <functional>
#include <iterator>
#include <numeric>

#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/prune/unit_tensors.h"

namespace espalier {
namespace {

using Units = std::vector<std::int32_t>;

Units first_units(std::int64_t n) {
  Units units(static_cast<std::size_t>(n));
  std::iota(units.begin(), units.end(), 0);
  return units;
}

Units part_of(const Units& units, Range part) {
  return Units(units.begin() + part.begin, units.begin() + part.end);
}

Units common(const Units& a, const Units& b) {
  Units both;
  std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(both));
  return both;
}

/// Query heads lie in the order of their KV heads, so a range of KV heads is a range of query
/// heads.
Range readers_of(const std::vector<std::int64_t>& groups, Range kv_heads) {
  const auto first = groups.begin();
  const std::int64_t begin = std::accumulate(first, first + kv_heads.begin, std::int64_t{0});
  return {begin, std::accumulate(first + kv_heads.begin, first + kv_heads.end, begin)};
}

/// Of `channels` in blocks of `multiple`.
Range cut_of_channels(std::int64_t channels, int count, int index, std::int64_t multiple) {
  const Range blocks = even_cut((channels + multiple - 1) / multiple, count, index);
  return {std::min(blocks.begin * multiple, channels), std::min(blocks.end * multiple, channels)};
}

LayerWidths shard_of_layer(const ModelConfig& config, const LayerWidths& layer, int count,
                           int index, std::int64_t multiple) {
  const std::vector<std::int64_t> groups = layer.groups(config);
  const Range kv_heads = balanced_cut(groups, count)[static_cast<std::size_t>(index)];
  const auto channels = static_cast<std::int64_t>(layer.channels.size());
  return {part_of(layer.query_heads, readers_of(groups, kv_heads)),
          part_of(layer.kv_heads, kv_heads),
          part_of(layer.channels, cut_of_channels(channels, count, index, multiple))};
}

}  // namespace

std::vector<std::int64_t> LayerWidths::groups(const ModelConfig& config) const {
  std::vector<std::int64_t> sizes(kv_heads.size(), 0);
  for (const std::int64_t place : reader_map(config)) ++sizes[static_cast<std::size_t>(place)];
  return sizes;
}

std::vector<std::int64_t> LayerWidths::reader_map(const ModelConfig& config) const {
  const std::int64_t group = config.group_size();
  std::vector<std::int64_t> map;
  map.reserve(query_heads.size());
  std::size_t place = 0;
  for (const std::int32_t head : query_heads) {
    const std::int64_t kv_head = head / group;
    while (place < kv_heads.size() && kv_heads[place] < kv_head) ++place;
    if (place == kv_heads.size() || kv_heads[place] != kv_head)
      ESPALIER_CHECK(false,
                     fmt::format("query head {} reads KV head {}, which is gone", head, kv_head));
    map.push_back(static_cast<std::int64_t>(place));
  }
  return map;
}

bool LayerWidths::even_groups(const ModelConfig& config) const {
  const std::vector<std::int64_t> sizes = groups(config);
  return std::adjacent_find(sizes.begin(), sizes.end(), std::not_equal_to<>()) == sizes.end();
}

ModelWidths dense_widths(const ModelConfig& config) {
  const LayerWidths layer{first_units(config.heads), first_units(config.kv_heads),
                          first_units(config.channels)};
  return {std::vector<LayerWidths>(static_cast<std::size_t>(config.layers), layer)};
}

std::vector<std::int32_t> kept_kv_heads(const ModelConfig& config,
                                        const std::vector<std::int32_t>& query_heads) {
  Units kv_heads;
  for (const std::int32_t head : query_heads) {
    const auto kv_head = static_cast<std::int32_t>(head / config.group_size());
    if (kv_heads.empty() || kv_heads.back() != kv_head) kv_heads.push_back(kv_head);
  }
  return kv_heads;
}

ShardWidths shard_of(const ModelConfig& config, const ModelWidths& widths, int count, int index,
                     std::int64_t multiple) {
  ESPALIER_CHECK(count > 0 && index >= 0 && index < count && multiple > 0,
                 fmt::format("shard {} of {} in multiples of {}", index, count, multiple));
  ShardWidths shard;
  shard.widths.layers.reserve(widths.layers.size());
  for (const LayerWidths& layer : widths.layers)
    shard.widths.layers.push_back(shard_of_layer(config, layer, count, index, multiple));
  shard.vocabulary = even_cut(config.vocabulary, count, index);
  return shard;
}

ShardWidths intersect(const ShardWidths& held, const ModelWidths& kept) {
  ESPALIER_CHECK(held.widths.layers.size() == kept.layers.size(),
                 fmt::format("a shard of {} layers and widths of {}", held.widths.layers.size(),
                             kept.layers.size()));
  ShardWidths result;
  result.vocabulary = held.vocabulary;
  for (std::size_t i = 0; i < kept.layers.size(); ++i) {
    const LayerWidths& before = held.widths.layers[i];
    const LayerWidths& after = kept.layers[i];
    result.widths.layers.push_back({common(before.query_heads, after.query_heads),
                                    common(before.kv_heads, after.kv_heads),
                                    common(before.channels, after.channels)});
  }
  return result;
}

double imbalance(const ModelConfig& config, const std::vector<ShardWidths>& shards) {
  ESPALIER_CHECK(!shards.empty(), "imbalance of no shard");
  const UnitSizes sizes = unit_weights(config);
  std::int64_t widest = 0;
  std::int64_t all = 0;
  for (std::size_t layer = 0; layer < shards.front().widths.layers.size(); ++layer) {
    std::int64_t widest_here = 0;
    for (const ShardWidths& shard : shards) {
      const std::int64_t weights = sizes.of(shard.widths.layers.at(layer));
      widest_here = std::max(widest_here, weights);
      all += weights;
    }
    widest += widest_here;
  }
  if (all == 0) return 1.0;  // nothing left: nothing to balance
  return static_cast<double>(widest) * static_cast<double>(shards.size()) /
         static_cast<double>(all);
}

}  // namespace espalier
