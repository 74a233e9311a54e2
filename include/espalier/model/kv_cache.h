#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

namespace espalier {

/// Keys and values of all tokens that the rows of a batch have been through, layer by layer, of the
/// KV heads that this rank holds. Slot s of a row is its position s: prompts are padded on the
/// right, so a padded token lies behind every token that looks back at it, and no row needs an
/// offset. What a padded token leaves is zero.
///
/// A forward pass first takes all prompts, then a token of each row at a time: every layer with
/// heads puts its keys and values and reads, then advance() moves all rows on. Not collective.
class KvCache {
 public:
  /// For prompts of so many tokens each, and up to `slots` tokens of a row in all.
  KvCache(std::vector<std::int64_t> prompt_tokens, std::int64_t slots, std::int64_t layers,
          at::Device device);

  std::int64_t rows() const { return static_cast<std::int64_t>(position_.size()); }
  std::int64_t slots() const { return slots_; }
  /// The pass under way takes the prompts from position 0 on.
  bool takes_prompts() const { return takes_prompts_; }
  /// [B] int64: where the token of each row stands that the pass takes, after the prompts.
  const at::Tensor& position_B() const { return position_B_; }
  /// [B] int64: the place, in what the pass takes, of each row's last token.
  at::Tensor last_B() const;

  /// Keeps what a layer computed: [B, K, T, E] of the prompts, then [B, K, 1, E].
  void put(std::int64_t layer, const at::Tensor& k, const at::Tensor& v);

  /// What the tokens under way may see of a layer.
  struct Seen {
    at::Tensor k_BKSE, v_BKSE;
    /// Boolean [B, 1, 1, S].
    at::Tensor mask;
  };
  /// All slots up to the longest row's token, or those from the earliest on that a sliding window
  /// still reaches (0 = no window).
  Seen seen(std::int64_t layer, std::int64_t window) const;

  /// The tokens of the pass are behind every layer.
  void advance();
  /// Lets go of all rows but these, ascending.
  void keep(const std::vector<std::int64_t>& rows);

 private:
  struct Layer {
    at::Tensor k_BKSE, v_BKSE;
  };
  void set_position(std::vector<std::int64_t> position);

  std::int64_t slots_;
  bool takes_prompts_ = true;
  at::Device device_;
  std::vector<std::int64_t> position_;  // while prompts are taken: tokens of each
  at::Tensor position_B_;
  std::vector<Layer> layers_;
  mutable at::Tensor mask_;  // the last one asked for: layers share it
  mutable std::int64_t window_ = -1;
};

/// Elements of the keys and values of one token in a layer of so many KV heads.
inline std::int64_t cached_per_token(std::int64_t kv_heads, std::int64_t head_dim) {
  return 2 * kv_heads * head_dim;
}

}  // namespace espalier
