#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "espalier/comm/communicator.h"
#include "espalier/config/model_config.h"
#include "espalier/config/run_config.h"
#include "espalier/model/kv_cache.h"
#include "espalier/model/packed_rows.h"
#include "espalier/model/rotary.h"
#include "espalier/model/weight_gradient.h"
#include "espalier/prune/score_table.h"
#include "espalier/prune/tensor_catalog.h"
#include "espalier/prune/widths.h"
#include "espalier/store/safetensors.h"

// Shape suffixes: B sequences, T tokens, D hidden, H query heads of this rank, K KV heads of this
// rank, E head size, F channels of this rank, V vocabulary rows of this rank.

namespace espalier {

/// The tensors of one decoder layer that this rank holds. Absent ones (biases, per-head norms) are
/// undefined.
struct LayerWeights {
  at::Tensor attention_norm_D;
  /// Projections, [rows, columns] as in the checkpoint.
  at::Tensor q_HED, k_KED, v_KED, o_DHE;
  at::Tensor q_bias_HE, k_bias_KE, v_bias_KE;
  /// Whole on every tensor rank; added by the first.
  at::Tensor o_bias_D, down_bias_D;
  at::Tensor q_norm_E, k_norm_E;
  at::Tensor mlp_norm_D;
  at::Tensor gate_FD, up_FD, down_DF;

  /// The member that plays `role`.
  at::Tensor& by_role(TensorRole role);
  const at::Tensor& by_role(TensorRole role) const;
};

/// What one half of a decoder layer computes on this rank, before the sum over tensor ranks.
struct HalfOutput {
  /// To be summed over tensor ranks and added to the residual.
  at::Tensor partial_BTD;
  /// Input of o_proj [B, T, H*E], or of down_proj [B, T, F]: where units are gated.
  at::Tensor gate;
  /// Of all linear maps, when gradients are on; else empty.
  std::vector<LinearMap> maps{};
};

/// Numerical choices of a pass. The attention back end is LibTorch's own, chosen for the process.
struct ComputeOptions {
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
  /// Of channels at which tensor ranks are cut (prune.width_multiple).
  std::int64_t channel_multiple = 1;
};

/// This rank's shard of a decoder (Llama, Mistral, Qwen2, Qwen3 shapes): weights by layer, widths
/// by layer. Weights are frozen; `apply` only removes units. Numerics follow transformers: RMSNorm,
/// logits and loss in float32 for 16-bit weights and in float64 under float64.
class CausalLM {
 public:
  CausalLM(ModelConfig config, std::vector<ShardWidths> shards, int tensor_index,
           ComputeOptions options);

  const ModelConfig& config() const { return config_; }
  const ComputeOptions& options() const { return options_; }
  /// What this rank holds.
  const ShardWidths& shard() const { return shards_[static_cast<std::size_t>(tensor_index_)]; }
  const LayerWidths& widths(std::int64_t layer) const;
  /// What every tensor rank holds, in rank order (known everywhere, since cuts are pure).
  const std::vector<ShardWidths>& shards() const { return shards_; }
  int tensor_index() const { return tensor_index_; }
  std::int64_t layers() const { return config_.layers; }

  LayerWeights& layer(std::int64_t l) { return layers_[static_cast<std::size_t>(l)]; }
  const LayerWeights& layer(std::int64_t l) const { return layers_[static_cast<std::size_t>(l)]; }
  /// Whether the weights of a layer are here; a pass that goes layer by layer holds few at a time.
  bool has_layer(std::int64_t l) const { return layer(l).attention_norm_D.defined(); }
  void drop_layer(std::int64_t l) { layer(l) = {}; }
  /// The tensor that plays `spec`'s role.
  at::Tensor& tensor(const TensorSpec& spec);

  /// Rows of the embedding for tokens of this rank's vocabulary, zero elsewhere: [B, T, D] to be
  /// summed over tensor ranks. Not collective.
  at::Tensor embed_partial(const at::Tensor& tokens_BT) const;
  /// Attention half: norm, q/k/v, rotary, softmax attention, o. Rows are sequences, or packed ones.
  /// Differentiable; not collective.
  HalfOutput attention_half(std::int64_t layer, const at::Tensor& x_BTD,
                            const PackedRows* packed = nullptr) const;
  /// The same for tokens that look back into a cache, which also keeps their keys and values: whole
  /// prompts, then [B, 1, D] a token of each row. Not differentiable; not collective.
  HalfOutput attention_half(std::int64_t layer, const at::Tensor& x_BTD, KvCache& cache) const;
  /// MLP half: norm, down(silu(gate) * up). Differentiable; not collective.
  HalfOutput mlp_half(std::int64_t layer, const at::Tensor& x_BTD) const;
  /// What the input projections of a half read: its norm of the residual, [B, T, D].
  at::Tensor half_input(std::int64_t layer, UnitKind half, const at::Tensor& x_BTD) const;
  at::Tensor final_norm(const at::Tensor& x_BTD) const;
  /// Rows of the output projection this rank holds, [V, D]: the embedding itself when tied.
  const at::Tensor& head_VD() const { return config_.tied_embeddings ? embedding_VD_ : head_VD_; }

  /// Removes what `kept` no longer has from this rank's tensors that are here, in place: the cut
  /// between ranks stays. Not collective, but every tensor rank must call it with the same widths.
  void apply(const ModelWidths& kept);
  /// Replaces the cut between ranks; the caller then loads the layers whose shard changed
  /// (model/load.h).
  void set_shards(std::vector<ShardWidths> shards) { shards_ = std::move(shards); }

  /// Bytes of the parameters that are here.
  std::int64_t weight_bytes() const;

 private:
  /// Queries, keys and values of the rank's heads, [B, H or K, T, E], rotated.
  struct Projections {
    at::Tensor q_BHTE, k_BKTE, v_BKTE;
    std::vector<LinearMap> maps;
  };

  Projections project(std::int64_t layer, const at::Tensor& x_BTD, const RotaryTable& table) const;
  /// What attention gave, [B, H, T, E], through o_proj.
  HalfOutput attention_output(std::int64_t layer, const at::Tensor& a_BHTE,
                              std::vector<LinearMap> maps) const;
  /// Of a half without units on this rank: the bias alone, if any.
  HalfOutput no_units(const at::Tensor& x_BTD, const at::Tensor& bias_D) const;
  /// The bias on the one tensor rank that adds it to its part of a sum, undefined on the others.
  at::Tensor added_once(const at::Tensor& bias_D) const;
  at::Tensor attention(std::int64_t layer, const at::Tensor& q_BHTE, at::Tensor k_BKTE,
                       at::Tensor v_BKTE, const PackedRows* packed = nullptr) const;
  /// One token of each row, looking back into the cache.
  at::Tensor attention(std::int64_t layer, const at::Tensor& q_BH1E, const KvCache& cache) const;
  /// Angles of positions 0 .. tokens - 1.
  RotaryTable rotary(std::int64_t tokens) const;
  /// Which tokens a token sees under a sliding window.
  at::Tensor visible(std::int64_t tokens, std::int64_t window) const;

  ModelConfig config_;
  std::vector<ShardWidths> shards_;
  int tensor_index_;
  ComputeOptions options_;
  std::vector<LayerWeights> layers_;
  at::Tensor embedding_VD_, final_norm_D_, head_VD_;
  mutable RotaryTable rotary_;     // for the longest sequence seen; rebuilt when a longer one comes
  mutable at::Tensor visible_TT_;  // the last one asked for: layers share it
  mutable std::int64_t window_ = 0;  // its window
};

}  // namespace espalier
