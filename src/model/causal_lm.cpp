#include "espalier/model/causal_lm.h"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "espalier/core/error.h"
#include "espalier/model/fused.h"
#include "espalier/model/tensor_ops.h"

namespace espalier {
namespace {

/// Each KV head once per query head that reads it, [B, K, T, E] to [B, H, T, E]. Its gradient is a
/// sum over the group's heads, in the accumulator's width and in one order; that of index_select
/// would be added head by head in the tensor's own type, and on a device in any order.
at::Tensor repeat_groups(const at::Tensor& x_BKTE, const std::vector<std::int64_t>& heads_K) {
  std::vector<at::Tensor> groups;
  const std::vector<at::Tensor> kv_heads = x_BKTE.split(1, 1);
  for (std::size_t k = 0; k < kv_heads.size(); ++k)
    groups.push_back(kv_heads[k].expand({-1, heads_K[k], -1, -1}));
  return at::cat(groups, 1);
}

/// Heads in groups of uneven size as groups of one size, and back: places to index by.
struct EvenGroups {
  std::int64_t size = 0;
  /// [K * size] heads; a place without one repeats another.
  std::vector<std::int64_t> heads;
  /// [H] places.
  std::vector<std::int64_t> places;
};

EvenGroups make_even(const std::vector<std::int64_t>& heads_K) {
  EvenGroups even;
  even.size = *std::max_element(heads_K.begin(), heads_K.end());
  std::int64_t head = 0;
  for (const std::int64_t heads : heads_K) {
    for (std::int64_t i = 0; i < even.size; ++i) {
      if (i < heads) even.places.push_back(static_cast<std::int64_t>(even.heads.size()));
      even.heads.push_back(i < heads ? head++ : 0);
    }
  }
  return even;
}

/// x W^T + b, remembered where its weight may have a gradient.
at::Tensor mapped(TensorRole weight, const at::Tensor& x, const at::Tensor& w, const at::Tensor& b,
                  std::vector<LinearMap>& maps) {
  at::Tensor y = at::linear(x, w, b);
  if (at::GradMode::is_enabled()) maps.push_back({weight, x, y});
  return y;
}

at::Tensor pick_heads(const at::Tensor& x_BHE, const std::vector<std::int64_t>& heads) {
  return x_BHE.index_select(1, at::tensor(heads, at::kLong).to(x_BHE.device()));
}

}  // namespace

at::Tensor& LayerWeights::by_role(TensorRole role) {
  switch (role) {
    case TensorRole::attention_norm:
      return attention_norm_D;
    case TensorRole::q:
      return q_HED;
    case TensorRole::k:
      return k_KED;
    case TensorRole::v:
      return v_KED;
    case TensorRole::o:
      return o_DHE;
    case TensorRole::q_bias:
      return q_bias_HE;
    case TensorRole::k_bias:
      return k_bias_KE;
    case TensorRole::v_bias:
      return v_bias_KE;
    case TensorRole::o_bias:
      return o_bias_D;
    case TensorRole::q_norm:
      return q_norm_E;
    case TensorRole::k_norm:
      return k_norm_E;
    case TensorRole::mlp_norm:
      return mlp_norm_D;
    case TensorRole::gate:
      return gate_FD;
    case TensorRole::up:
      return up_FD;
    case TensorRole::down:
      return down_DF;
    case TensorRole::down_bias:
      return down_bias_D;
    case TensorRole::embedding:
    case TensorRole::final_norm:
    case TensorRole::head:
      break;
  }
  throw Error(ExitCode::internal, "a tensor outside the decoder layers was asked of a layer");
}

const at::Tensor& LayerWeights::by_role(TensorRole role) const {
  return const_cast<LayerWeights*>(this)->by_role(role);
}

CausalLM::CausalLM(ModelConfig config, std::vector<ShardWidths> shards, int tensor_index,
                   ComputeOptions options)
    : config_(std::move(config)),
      shards_(std::move(shards)),
      tensor_index_(tensor_index),
      options_(options),
      layers_(static_cast<std::size_t>(config_.layers)) {}

const LayerWidths& CausalLM::widths(std::int64_t layer) const {
  return shard().widths.layers[static_cast<std::size_t>(layer)];
}

at::Tensor& CausalLM::tensor(const TensorSpec& spec) {
  switch (spec.role) {
    case TensorRole::embedding:
      return embedding_VD_;
    case TensorRole::final_norm:
      return final_norm_D_;
    case TensorRole::head:
      return head_VD_;
    default:
      return layer(spec.layer).by_role(spec.role);
  }
}

at::Tensor CausalLM::embed_partial(const at::Tensor& tokens_BT) const {
  const Range rows = shard().vocabulary;
  if (rows.size() == config_.vocabulary) return at::embedding(embedding_VD_, tokens_BT);
  if (rows.size() == 0)
    return at::zeros({tokens_BT.size(0), tokens_BT.size(1), config_.hidden},
                     embedding_VD_.options());
  const at::Tensor elsewhere_BT = at::logical_or(tokens_BT < rows.begin, tokens_BT >= rows.end);
  const at::Tensor local_BT = (tokens_BT - rows.begin).masked_fill(elsewhere_BT, 0);
  return at::embedding(embedding_VD_, local_BT).masked_fill(elsewhere_BT.unsqueeze(-1), 0);
}

at::Tensor CausalLM::half_input(std::int64_t l, UnitKind half, const at::Tensor& x_BTD) const {
  const LayerWeights& w = layer(l);
  return rms_norm(x_BTD, half == UnitKind::attention ? w.attention_norm_D : w.mlp_norm_D,
                  config_.rms_norm_eps);
}

at::Tensor CausalLM::final_norm(const at::Tensor& x_BTD) const {
  return rms_norm(x_BTD, final_norm_D_, config_.rms_norm_eps);
}

RotaryTable CausalLM::rotary(std::int64_t tokens) const {
  if (!rotary_.cos_TE.defined() || rotary_.cos_TE.size(0) < tokens)
    rotary_ = rotary_table(config_, tokens, options_.dtype, options_.device);
  return {rotary_.cos_TE.narrow(0, 0, tokens), rotary_.sin_TE.narrow(0, 0, tokens)};
}

at::Tensor CausalLM::attention(std::int64_t layer, const at::Tensor& q_BHTE, at::Tensor k_BKTE,
                               at::Tensor v_BKTE, const PackedRows* packed) const {
  const LayerWidths& w = widths(layer);
  const std::int64_t tokens = q_BHTE.size(2);
  const bool grouped = w.query_heads.size() != w.kv_heads.size();
  if (grouped && !w.even_groups(config_)) {
    const std::vector<std::int64_t> heads_K = w.groups(config_);
    k_BKTE = repeat_groups(k_BKTE, heads_K);
    v_BKTE = repeat_groups(v_BKTE, heads_K);
  }
  const bool shared_kv = q_BHTE.size(1) != k_BKTE.size(1);
  const double scale = 1.0 / std::sqrt(static_cast<double>(config_.head_dim));
  std::int64_t window = config_.sliding_window[static_cast<std::size_t>(layer)];
  if (window >= (packed == nullptr ? tokens : packed->positions())) window = 0;
  if (packed == nullptr && window == 0)
    return at::scaled_dot_product_attention(q_BHTE, k_BKTE, v_BKTE, {}, 0.0, /*is_causal=*/true,
                                            scale, shared_kv);
  return at::scaled_dot_product_attention(
      q_BHTE, k_BKTE, v_BKTE, packed == nullptr ? visible(tokens, window) : packed->visible(window),
      0.0, false, scale, shared_kv);
}

at::Tensor CausalLM::visible(std::int64_t tokens, std::int64_t window) const {
  if (window_ == window && visible_TT_.defined() && visible_TT_.size(0) == tokens)
    return visible_TT_;
  const at::Tensor position =
      at::arange(tokens, at::TensorOptions(at::kLong).device(options_.device));
  const at::Tensor distance_TT = position.unsqueeze(1) - position.unsqueeze(0);
  visible_TT_ = at::logical_and(distance_TT >= 0, distance_TT < window);
  window_ = window;
  return visible_TT_;
}

/// With one token a row, the queries of a group see the same slots of one KV head: they go through
/// attention as so many tokens of that head, and no key or value is repeated.
at::Tensor CausalLM::attention(std::int64_t layer, const at::Tensor& q_BH1E,
                               const KvCache& cache) const {
  const LayerWidths& w = widths(layer);
  const std::int64_t B = q_BH1E.size(0), H = q_BH1E.size(1), E = config_.head_dim;
  const auto K = static_cast<std::int64_t>(w.kv_heads.size());
  const bool even = w.even_groups(config_);
  const EvenGroups groups = even ? EvenGroups{H / K, {}, {}} : make_even(w.groups(config_));
  at::Tensor q_BHE = q_BH1E.squeeze(2);
  if (!even) q_BHE = pick_heads(q_BHE, groups.heads);
  const KvCache::Seen seen =
      cache.seen(layer, config_.sliding_window[static_cast<std::size_t>(layer)]);
  at::Tensor a_BHE = at::scaled_dot_product_attention(
                         q_BHE.reshape({B, K, groups.size, E}), seen.k_BKSE, seen.v_BKSE,
                         seen.mask.expand({B, 1, groups.size, seen.mask.size(3)}), 0.0, false,
                         1.0 / std::sqrt(static_cast<double>(E)))
                         .reshape({B, K * groups.size, E});
  if (!even) a_BHE = pick_heads(a_BHE, groups.places);
  return a_BHE.unsqueeze(2);
}

at::Tensor CausalLM::added_once(const at::Tensor& bias_D) const {
  return tensor_index_ == 0 ? bias_D : at::Tensor();
}

HalfOutput CausalLM::no_units(const at::Tensor& x_BTD, const at::Tensor& bias_D) const {
  at::Tensor partial_BTD = at::zeros_like(x_BTD);
  if (const at::Tensor bias = added_once(bias_D); bias.defined()) partial_BTD.add_(bias);
  return {partial_BTD, at::zeros({x_BTD.size(0), x_BTD.size(1), 0}, x_BTD.options()), {}};
}

CausalLM::Projections CausalLM::project(std::int64_t l, const at::Tensor& x_BTD,
                                        const RotaryTable& table) const {
  const LayerWeights& w = layer(l);
  const auto heads = static_cast<std::int64_t>(widths(l).query_heads.size());
  const auto kv_heads = static_cast<std::int64_t>(widths(l).kv_heads.size());
  const std::int64_t B = x_BTD.size(0), T = x_BTD.size(1), E = config_.head_dim;
  const at::Tensor n_BTD = half_input(l, UnitKind::attention, x_BTD);
  std::vector<LinearMap> maps;
  at::Tensor q_BTHE =
      mapped(TensorRole::q, n_BTD, w.q_HED, w.q_bias_HE, maps).view({B, T, heads, E});
  at::Tensor k_BTKE =
      mapped(TensorRole::k, n_BTD, w.k_KED, w.k_bias_KE, maps).view({B, T, kv_heads, E});
  const at::Tensor v_BTKE =
      mapped(TensorRole::v, n_BTD, w.v_KED, w.v_bias_KE, maps).view({B, T, kv_heads, E});
  if (config_.qk_norm) {
    q_BTHE = rms_norm(q_BTHE, w.q_norm_E, config_.rms_norm_eps);
    k_BTKE = rms_norm(k_BTKE, w.k_norm_E, config_.rms_norm_eps);
  }
  return {rotated_heads(q_BTHE, table), rotated_heads(k_BTKE, table), v_BTKE.transpose(1, 2),
          std::move(maps)};
}

HalfOutput CausalLM::attention_output(std::int64_t l, const at::Tensor& a_BHTE,
                                      std::vector<LinearMap> maps) const {
  const at::Tensor gate = a_BHTE.transpose(1, 2).flatten(2);
  at::Tensor partial_BTD =
      mapped(TensorRole::o, gate, layer(l).o_DHE, added_once(layer(l).o_bias_D), maps);
  return {std::move(partial_BTD), gate, std::move(maps)};
}

HalfOutput CausalLM::attention_half(std::int64_t l, const at::Tensor& x_BTD,
                                    const PackedRows* packed) const {
  if (widths(l).query_heads.empty()) return no_units(x_BTD, layer(l).o_bias_D);
  const RotaryTable table =
      packed == nullptr ? rotary(x_BTD.size(1)) : packed->rotary(rotary(packed->positions()));
  Projections p = project(l, x_BTD, table);
  return attention_output(l, attention(l, p.q_BHTE, p.k_BKTE, p.v_BKTE, packed), std::move(p.maps));
}

HalfOutput CausalLM::attention_half(std::int64_t l, const at::Tensor& x_BTD, KvCache& cache) const {
  if (widths(l).query_heads.empty()) return no_units(x_BTD, layer(l).o_bias_D);
  RotaryTable table = rotary(cache.slots());
  if (cache.takes_prompts()) {
    table = rotary(x_BTD.size(1));
  } else {
    const auto of_rows = [&](const at::Tensor& angle_TE) {
      return angle_TE.index_select(0, cache.position_B()).view({-1, 1, 1, config_.head_dim});
    };
    table = {of_rows(table.cos_TE), of_rows(table.sin_TE)};
  }
  const Projections p = project(l, x_BTD, table);
  cache.put(l, p.k_BKTE, p.v_BKTE);
  return attention_output(l,
                          cache.takes_prompts() ? attention(l, p.q_BHTE, p.k_BKTE, p.v_BKTE)
                                                : attention(l, p.q_BHTE, cache),
                          {});
}

HalfOutput CausalLM::mlp_half(std::int64_t l, const at::Tensor& x_BTD) const {
  const LayerWeights& w = layer(l);
  if (widths(l).channels.empty()) return no_units(x_BTD, w.down_bias_D);
  const at::Tensor n_BTD = half_input(l, UnitKind::mlp, x_BTD);
  std::vector<LinearMap> maps;
  const at::Tensor gate = at::silu(mapped(TensorRole::gate, n_BTD, w.gate_FD, {}, maps)) *
                          mapped(TensorRole::up, n_BTD, w.up_FD, {}, maps);
  at::Tensor partial_BTD =
      mapped(TensorRole::down, gate, w.down_DF, added_once(w.down_bias_D), maps);
  return {std::move(partial_BTD), gate, std::move(maps)};
}

void CausalLM::apply(const ModelWidths& kept) {
  std::vector<ShardWidths> after;
  after.reserve(shards_.size());
  for (const ShardWidths& held : shards_) after.push_back(intersect(held, kept));
  const ShardWidths& have = shard();
  const ShardWidths& want = after[static_cast<std::size_t>(tensor_index_)];
  for (const TensorSpec& spec : tensor_catalog(config_)) {
    at::Tensor& t = tensor(spec);
    if (!t.defined()) continue;
    const TensorSlice slice =
        slice_of(spec, config_, have.widths, have.vocabulary, want.widths, want.vocabulary);
    t = take(t, 0, slice.rows);
    if (spec.shape.size() == 2) t = take(t, 1, slice.columns);
  }
  shards_ = std::move(after);
}

std::int64_t CausalLM::weight_bytes() const {
  std::int64_t bytes = 0;
  for (const TensorSpec& spec : tensor_catalog(config_)) {
    const at::Tensor& t = const_cast<CausalLM*>(this)->tensor(spec);
    if (t.defined()) bytes += static_cast<std::int64_t>(t.nbytes());
  }
  return bytes;
}

}  // namespace espalier
