#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "espalier/config/model_config.h"
#include "espalier/prune/widths.h"
#include "espalier/store/tensor_layout.h"

namespace espalier {

/// What the entries along one axis of a tensor belong to.
enum class AxisKind {
  /// Never sliced: hidden size, norms, one head's norm.
  whole,
  /// Query heads x head_dim.
  query,
  /// KV heads x head_dim.
  kv,
  /// MLP channels.
  channel,
  /// Split over tensor ranks, never pruned.
  vocabulary,
};

/// Whether the axis loses entries when units fall.
bool is_pruned(AxisKind kind);
/// Entries along a pruned axis that one unit owns.
std::int64_t unit_width(AxisKind kind, const ModelConfig& config);

/// The part a tensor plays in the decoder.
enum class TensorRole {
  embedding,
  final_norm,
  head,
  attention_norm,
  q,
  k,
  v,
  o,
  q_bias,
  k_bias,
  v_bias,
  o_bias,
  q_norm,
  k_norm,
  mlp_norm,
  gate,
  up,
  down,
  down_bias,
};

/// One tensor of the checkpoint under its Hugging Face name.
struct TensorSpec {
  /// "model.layers.3.self_attn.q_proj.weight"
  std::string name;
  TensorRole role;
  /// -1 outside the decoder layers.
  int layer = -1;
  /// Dense.
  std::vector<std::int64_t> shape;
  /// The second is unused for vectors.
  std::array<AxisKind, 2> axes{AxisKind::whole, AxisKind::whole};
};

/// Every tensor that the dense model needs, in checkpoint order, and output biases where
/// config.output_bias. A tied model has no head.
std::vector<TensorSpec> tensor_catalog(const ModelConfig& config);
/// Those of one decoder layer.
std::vector<TensorSpec> layer_tensors(const ModelConfig& config, int layer);

/// Rows and columns of one tensor; columns is all(1) for vectors.
struct TensorSlice {
  IndexRuns rows;
  IndexRuns columns;
};

/// **The slicing rule.** The part of `spec`, *as held with widths `have`*, that belongs to `want`:
/// the loader (have = the file's widths, want = the rank's shard), the live model (have = the shard
/// before, want = the shard after) and the exporter (have = the file's, want = the plan's) all ask
/// this one function. Vocabulary axes are taken by `want_vocabulary` relative to `have_vocabulary`.
/// Pure.
TensorSlice slice_of(const TensorSpec& spec, const ModelConfig& config, const ModelWidths& have,
                     Range have_vocabulary, const ModelWidths& want, Range want_vocabulary);

/// Shape of `spec` when only `widths` is left.
std::vector<std::int64_t> shape_with(const TensorSpec& spec, const ModelConfig& config,
                                     const ModelWidths& widths);

/// Of a layer that lost all its heads or all its channels. Such a tensor need not be in a
/// checkpoint: transformers leaves it out when it saves one of our exports again.
bool has_no_elements(const std::vector<std::int64_t>& shape);

/// Whether the tensor is a bias of o_proj or down_proj, which only some of our exports have.
bool is_output_bias(TensorRole role);

/// Whether the tensor is a weight that reads the half's normed input: q, k, v, gate, up.
bool is_input_projection(TensorRole role);

/// Parameters of the decoder layers (norms included), of the whole model, for the given widths.
/// A tied head is counted once; output biases, which the unpruned model has not, are not.
struct ParameterCount {
  std::int64_t decoder = 0;
  std::int64_t total = 0;
};
ParameterCount count_parameters(const ModelConfig& config, const ModelWidths& widths);

}  // namespace espalier
