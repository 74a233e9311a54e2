#pragma once

#include <cstdint>
#include <vector>

#include "espalier/config/model_config.h"
#include "espalier/store/tensor_layout.h"

namespace espalier {

/// What is left of one decoder layer, in the dense model's numbers, each list strictly ascending.
/// Invariant: kv_heads are exactly the KV heads that some kept query head reads (query head h reads
/// KV head h / group_size); see kept_kv_heads.
struct LayerWidths {
  std::vector<std::int32_t> query_heads;
  std::vector<std::int32_t> kv_heads;
  std::vector<std::int32_t> channels;
  friend bool operator==(const LayerWidths&, const LayerWidths&) = default;

  /// Query heads per kept KV head, in the order of kv_heads.
  std::vector<std::int64_t> groups(const ModelConfig& config) const;
  /// For each kept query head the place of its KV head in kv_heads.
  std::vector<std::int64_t> reader_map(const ModelConfig& config) const;
  /// All groups have the same number of query heads (true for an empty layer).
  bool even_groups(const ModelConfig& config) const;
};

/// Widths of all layers of a model, of a file, or of one rank's shard.
struct ModelWidths {
  std::vector<LayerWidths> layers;
  friend bool operator==(const ModelWidths&, const ModelWidths&) = default;
};

ModelWidths dense_widths(const ModelConfig& config);

/// The KV heads that the given query heads read.
std::vector<std::int32_t> kept_kv_heads(const ModelConfig& config,
                                        const std::vector<std::int32_t>& query_heads);

/// A tensor-parallel rank's share: contiguous in dense order, so that any rank count works.
struct ShardWidths {
  /// The units this rank holds.
  ModelWidths widths;
  /// The rows of the embedding and of the head it holds.
  Range vocabulary;
  friend bool operator==(const ShardWidths&, const ShardWidths&) = default;
};

/// Cuts `widths` for tensor rank `index` of `count`: KV groups so that the largest number of query
/// heads on a rank is smallest, channels in blocks of `multiple` and vocabulary evenly (the first n
/// mod count ranks get one more; a block that is not full is the last). A rank may get no head or
/// no channel. Pure.
ShardWidths shard_of(const ModelConfig& config, const ModelWidths& widths, int count, int index,
                     std::int64_t multiple = 1);

/// Which of `kept` a rank still holds when it held `held`: the intersection. Used when units fall
/// without moving the cut. Pure.
ShardWidths intersect(const ShardWidths& held, const ModelWidths& kept);

/// Sum over layers of the widest rank's linear weights / sum over layers of the mean; 1 = balanced.
/// `shards` are all tensor ranks' shards in order.
double imbalance(const ModelConfig& config, const std::vector<ShardWidths>& shards);

}  // namespace espalier
