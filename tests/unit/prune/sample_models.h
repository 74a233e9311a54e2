#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "espalier/config/model_config.h"
#include "espalier/core/hash.h"
#include "espalier/prune/widths.h"

namespace espalier::testing {

/// Dimensions only; everything that the module `prune` does not read keeps its default.
inline ModelConfig shape(std::int64_t layers, std::int64_t hidden, std::int64_t heads,
                         std::int64_t kv_heads, std::int64_t head_dim, std::int64_t channels,
                         std::int64_t vocabulary) {
  ModelConfig config;
  config.layers = layers;
  config.hidden = hidden;
  config.heads = heads;
  config.kv_heads = kv_heads;
  config.head_dim = head_dim;
  config.channels = channels;
  config.vocabulary = vocabulary;
  config.sha256 = "0123456789abcdef";
  return config;
}

/// 3 layers, grouped KV heads with biases, no power of two among channels and vocabulary.
inline ModelConfig small_gqa() {
  ModelConfig config = shape(3, 10, 6, 2, 4, 7, 13);
  config.family = ModelFamily::qwen2;
  config.qkv_bias = true;
  return config;
}

/// A stream of numbers that is a function of its seed alone.
class Draw {
 public:
  explicit Draw(std::uint64_t seed) : seed_(seed) {}
  double uniform() {
    const std::array<std::uint64_t, 2> words{seed_, count_++};
    return counter_uniform(words);
  }
  /// In [0, n).
  std::int64_t below(std::int64_t n) {
    return static_cast<std::int64_t>(uniform() * static_cast<double>(n));
  }

 private:
  std::uint64_t seed_;
  std::uint64_t count_ = 0;
};

/// Every unit of `units` is kept with probability `share`; may be empty.
inline std::vector<std::int32_t> drawn_units(Draw& draw, const std::vector<std::int32_t>& units,
                                             double share) {
  std::vector<std::int32_t> kept;
  for (const std::int32_t unit : units)
    if (draw.uniform() < share) kept.push_back(unit);
  return kept;
}

/// A random part of `widths`, uneven groups, unread KV heads and empty layers included.
inline ModelWidths drawn_widths(Draw& draw, const ModelConfig& config, const ModelWidths& widths) {
  ModelWidths result;
  for (const LayerWidths& layer : widths.layers) {
    const double share = draw.uniform() < 0.1 ? 0.0 : draw.uniform();
    LayerWidths kept;
    kept.query_heads = drawn_units(draw, layer.query_heads, share);
    kept.kv_heads = kept_kv_heads(config, kept.query_heads);
    kept.channels = drawn_units(draw, layer.channels, share);
    result.layers.push_back(kept);
  }
  return result;
}

}  // namespace espalier::testing
