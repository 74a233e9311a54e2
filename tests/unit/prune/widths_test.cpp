#include "espalier/prune/widths.h"

#include <algorithm>
#include <numeric>

#include <gtest/gtest.h>

#include "espalier/core/error.h"
#include "unit/prune/sample_models.h"

namespace espalier {
namespace {

using testing::Draw;
using testing::drawn_widths;
using testing::shape;
using testing::small_gqa;
using Units = std::vector<std::int32_t>;
using Counts = std::vector<std::int64_t>;

TEST(Widths, DenseHasEveryUnitInOrder) {
  const ModelWidths dense = dense_widths(small_gqa());
  ASSERT_EQ(dense.layers.size(), 3u);
  for (const LayerWidths& layer : dense.layers) {
    EXPECT_EQ(layer.query_heads, (Units{0, 1, 2, 3, 4, 5}));
    EXPECT_EQ(layer.kv_heads, (Units{0, 1}));
    EXPECT_EQ(layer.channels, (Units{0, 1, 2, 3, 4, 5, 6}));
  }
}

TEST(Widths, GroupsAndReaderMapOfUnevenLayer) {
  const ModelConfig config = shape(1, 8, 12, 4, 2, 5, 9);  // three readers per KV head
  const LayerWidths layer{{1, 6, 7, 8, 11}, {0, 2, 3}, {}};
  EXPECT_EQ(kept_kv_heads(config, layer.query_heads), layer.kv_heads);
  EXPECT_EQ(layer.groups(config), (Counts{1, 3, 1}));
  EXPECT_EQ(layer.reader_map(config), (Counts{0, 1, 1, 1, 2}));
  EXPECT_FALSE(layer.even_groups(config));
  EXPECT_TRUE((LayerWidths{{0, 1, 9, 10}, {0, 3}, {}}).even_groups(config));
  EXPECT_TRUE(LayerWidths{}.even_groups(config));
}

TEST(Widths, AQueryHeadWithoutItsKvHeadIsRefused) {
  const ModelConfig config = shape(1, 8, 12, 4, 2, 5, 9);
  const LayerWidths broken{{1, 6}, {0}, {}};
  EXPECT_THROW(broken.reader_map(config), Error);
}

TEST(Shard, DenseTableByHand) {
  // 5 KV groups of 2 heads on 3 ranks: 2, 2, 1 groups; 7 channels: 3, 2, 2; 13 rows: 5, 4, 4.
  const ModelConfig config = shape(1, 8, 10, 5, 2, 7, 13);
  const ModelWidths dense = dense_widths(config);
  const ShardWidths first = shard_of(config, dense, 3, 0);
  EXPECT_EQ(first.widths.layers[0], (LayerWidths{{0, 1, 2, 3}, {0, 1}, {0, 1, 2}}));
  EXPECT_EQ(first.vocabulary, (Range{0, 5}));
  const ShardWidths last = shard_of(config, dense, 3, 2);
  EXPECT_EQ(last.widths.layers[0], (LayerWidths{{8, 9}, {4}, {5, 6}}));
  EXPECT_EQ(last.vocabulary, (Range{9, 13}));
}

TEST(Shard, GroupsAreWeighedByTheirKeptReaders) {
  // Groups of 4, 1, 1, 2 readers on two ranks: the lightest worst rank has 4.
  const ModelConfig config = shape(1, 8, 16, 4, 2, 2, 4);
  const ModelWidths widths{{LayerWidths{{0, 1, 2, 3, 5, 9, 12, 13}, {0, 1, 2, 3}, {0, 1}}}};
  EXPECT_EQ(shard_of(config, widths, 2, 0).widths.layers[0].query_heads, (Units{0, 1, 2, 3}));
  EXPECT_EQ(shard_of(config, widths, 2, 1).widths.layers[0].query_heads, (Units{5, 9, 12, 13}));
  EXPECT_EQ(shard_of(config, widths, 2, 1).widths.layers[0].kv_heads, (Units{1, 2, 3}));
}

TEST(Shard, MoreRanksThanGroupsLeavesSomeWithoutHeads) {
  const ModelConfig config = small_gqa();
  std::size_t empty = 0;
  for (int rank = 0; rank < 7; ++rank)
    empty += shard_of(config, dense_widths(config), 7, rank).widths.layers[0].query_heads.empty();
  EXPECT_EQ(empty, 5u);
}

/// The smallest possible largest share over all contiguous cuts, by trying every cut.
std::int64_t best_worst_share(const Counts& weights, std::size_t from, int parts) {
  if (parts == 1) return std::accumulate(weights.begin() + long(from), weights.end(), 0L);
  std::int64_t best = best_worst_share(weights, from, 1);
  std::int64_t head = 0;
  for (std::size_t to = from; to <= weights.size(); ++to) {
    best = std::min(best, std::max(head, best_worst_share(weights, to, parts - 1)));
    if (to < weights.size()) head += weights[to];
  }
  return best;
}

TEST(Shard, RanksTogetherHoldEveryUnitOnceInOrder) {
  const ModelConfig config = shape(4, 8, 15, 5, 2, 23, 31);
  Draw draw(11);
  for (int round = 0; round < 40; ++round) {
    const ModelWidths widths = drawn_widths(draw, config, dense_widths(config));
    for (int count = 1; count <= 7; ++count) {
      ModelWidths joined{std::vector<LayerWidths>(4)};
      std::vector<std::int64_t> most(4, 0);
      std::int64_t rows = 0;
      for (int rank = 0; rank < count; ++rank) {
        const ShardWidths shard = shard_of(config, widths, count, rank);
        EXPECT_EQ(shard.vocabulary.begin, rows);
        rows = shard.vocabulary.end;
        for (std::size_t i = 0; i < 4; ++i) {
          const LayerWidths& part = shard.widths.layers[i];
          EXPECT_EQ(part.kv_heads, kept_kv_heads(config, part.query_heads));
          most[i] = std::max(most[i], static_cast<std::int64_t>(part.query_heads.size()));
          auto append = [](Units& to, const Units& from) {
            to.insert(to.end(), from.begin(), from.end());
          };
          append(joined.layers[i].query_heads, part.query_heads);
          append(joined.layers[i].kv_heads, part.kv_heads);
          append(joined.layers[i].channels, part.channels);
        }
      }
      EXPECT_EQ(rows, 31);
      EXPECT_EQ(joined, widths);
      for (std::size_t i = 0; i < 4; ++i)
        EXPECT_EQ(most[i], best_worst_share(widths.layers[i].groups(config), 0, count));
    }
  }
}

TEST(Shard, ChannelsAreCutAtMultiples) {
  const ModelConfig config = shape(1, 8, 4, 4, 2, 24, 13);
  const auto sizes = [&](std::int64_t channels, int count, std::int64_t multiple) {
    ModelWidths widths = dense_widths(config);
    widths.layers[0].channels.resize(static_cast<std::size_t>(channels));
    Counts counts;
    Units joined;
    for (int rank = 0; rank < count; ++rank) {
      const Units part = shard_of(config, widths, count, rank, multiple).widths.layers[0].channels;
      counts.push_back(static_cast<std::int64_t>(part.size()));
      joined.insert(joined.end(), part.begin(), part.end());
    }
    EXPECT_EQ(joined, widths.layers[0].channels);
    return counts;
  };
  EXPECT_EQ(sizes(24, 2, 8), (Counts{16, 8}));
  EXPECT_EQ(sizes(24, 3, 4), (Counts{8, 8, 8}));
  EXPECT_EQ(sizes(16, 3, 8), (Counts{8, 8, 0}));
  EXPECT_EQ(sizes(10, 2, 4), (Counts{8, 2}));  // of a model that another rule pruned
  EXPECT_EQ(sizes(0, 2, 4), (Counts{0, 0}));
  EXPECT_EQ(sizes(23, 2, 1), (Counts{12, 11}));
}

TEST(Intersect, EqualsANaiveFilterOfWhatTheShardHeld) {
  const ModelConfig config = shape(3, 8, 12, 4, 2, 17, 9);
  Draw draw(5);
  for (int round = 0; round < 30; ++round) {
    const ModelWidths before = drawn_widths(draw, config, dense_widths(config));
    const ModelWidths after = drawn_widths(draw, config, before);
    const ShardWidths held = shard_of(config, before, 3, round % 3);
    const ShardWidths left = intersect(held, after);
    EXPECT_EQ(left.vocabulary, held.vocabulary);
    auto filtered = [](const Units& from, const Units& kept) {
      Units result;
      for (const std::int32_t unit : from)
        if (std::count(kept.begin(), kept.end(), unit) == 1) result.push_back(unit);
      return result;
    };
    for (std::size_t i = 0; i < 3; ++i) {
      const LayerWidths& mine = held.widths.layers[i];
      EXPECT_EQ(left.widths.layers[i].query_heads,
                filtered(mine.query_heads, after.layers[i].query_heads));
      EXPECT_EQ(left.widths.layers[i].kv_heads,
                kept_kv_heads(config, left.widths.layers[i].query_heads));
      EXPECT_EQ(left.widths.layers[i].channels, filtered(mine.channels, after.layers[i].channels));
    }
  }
}

TEST(Imbalance, ByHand) {
  // Head dim 2, hidden 8: a query head or a KV head is 32 weights, a channel 24.
  const ModelConfig config = shape(1, 8, 4, 2, 2, 3, 4);
  const ModelWidths widths{{LayerWidths{{0, 1, 2}, {0, 1}, {0, 1, 2}}}};
  // Rank 0: heads 0, 1, KV 0, channels 0, 1 = 96 + 48; rank 1: head 2, KV 1, channel 2 = 64 + 24.
  const std::vector<ShardWidths> shards{shard_of(config, widths, 2, 0),
                                        shard_of(config, widths, 2, 1)};
  EXPECT_DOUBLE_EQ(imbalance(config, shards), 144.0 / 116.0);
  EXPECT_DOUBLE_EQ(imbalance(config, {shard_of(config, widths, 1, 0)}), 1.0);
  const ModelWidths nothing{{LayerWidths{}}};
  EXPECT_DOUBLE_EQ(imbalance(config, {shard_of(config, nothing, 1, 0)}), 1.0);
}

}  // namespace
}  // namespace espalier
