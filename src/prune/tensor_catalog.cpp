#include "espalier/prune/tensor_catalog.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "espalier/core/error.h"

namespace espalier {
namespace {

/// Collects the tensors of one model in checkpoint order.
class CatalogBuilder {
 public:
  explicit CatalogBuilder(const ModelConfig& config) : config_(config) {}

  std::vector<TensorSpec> build() {
    matrix("model.embed_tokens.weight", TensorRole::embedding, AxisKind::vocabulary,
           AxisKind::whole);
    for (int layer = 0; layer < static_cast<int>(config_.layers); ++layer) add_layer(layer);
    layer_ = -1;
    vector("model.norm.weight", TensorRole::final_norm, AxisKind::whole);
    if (!config_.tied_embeddings)
      matrix("lm_head.weight", TensorRole::head, AxisKind::vocabulary, AxisKind::whole);
    return std::move(specs_);
  }
  std::vector<TensorSpec> build_layer(int layer) {
    add_layer(layer);
    return std::move(specs_);
  }

 private:
  void add_layer(int layer) {
    layer_ = layer;
    attention();
    mlp();
  }

  void attention() {
    const std::string attn = fmt::format("model.layers.{}.self_attn.", layer_);
    vector(fmt::format("model.layers.{}.input_layernorm.weight", layer_),
           TensorRole::attention_norm, AxisKind::whole);
    matrix(attn + "q_proj.weight", TensorRole::q, AxisKind::query, AxisKind::whole);
    matrix(attn + "k_proj.weight", TensorRole::k, AxisKind::kv, AxisKind::whole);
    matrix(attn + "v_proj.weight", TensorRole::v, AxisKind::kv, AxisKind::whole);
    matrix(attn + "o_proj.weight", TensorRole::o, AxisKind::whole, AxisKind::query);
    if (config_.qkv_bias) {
      vector(attn + "q_proj.bias", TensorRole::q_bias, AxisKind::query);
      vector(attn + "k_proj.bias", TensorRole::k_bias, AxisKind::kv);
      vector(attn + "v_proj.bias", TensorRole::v_bias, AxisKind::kv);
    }
    if (config_.output_bias) vector(attn + "o_proj.bias", TensorRole::o_bias, AxisKind::whole);
    if (config_.qk_norm) {
      head_norm(attn + "q_norm.weight", TensorRole::q_norm);
      head_norm(attn + "k_norm.weight", TensorRole::k_norm);
    }
  }

  void mlp() {
    const std::string prefix = fmt::format("model.layers.{}.", layer_);
    vector(prefix + "post_attention_layernorm.weight", TensorRole::mlp_norm, AxisKind::whole);
    matrix(prefix + "mlp.gate_proj.weight", TensorRole::gate, AxisKind::channel, AxisKind::whole);
    matrix(prefix + "mlp.up_proj.weight", TensorRole::up, AxisKind::channel, AxisKind::whole);
    matrix(prefix + "mlp.down_proj.weight", TensorRole::down, AxisKind::whole, AxisKind::channel);
    if (config_.output_bias)
      vector(prefix + "mlp.down_proj.bias", TensorRole::down_bias, AxisKind::whole);
  }

  void matrix(std::string name, TensorRole role, AxisKind rows, AxisKind columns) {
    specs_.push_back({std::move(name), role, layer_, {size(rows), size(columns)}, {rows, columns}});
  }

  void vector(std::string name, TensorRole role, AxisKind axis) {
    specs_.push_back({std::move(name), role, layer_, {size(axis)}, {axis, AxisKind::whole}});
  }

  /// One norm that all heads of the layer share: it is as long as a head, and stays when heads
  /// fall.
  void head_norm(std::string name, TensorRole role) {
    specs_.push_back({std::move(name), role, layer_, {config_.head_dim}, {}});
  }

  std::int64_t size(AxisKind kind) const {
    switch (kind) {
      case AxisKind::whole:
        return config_.hidden;
      case AxisKind::query:
        return config_.heads * config_.head_dim;
      case AxisKind::kv:
        return config_.kv_heads * config_.head_dim;
      case AxisKind::channel:
        return config_.channels;
      case AxisKind::vocabulary:
        return config_.vocabulary;
    }
    return 0;
  }

  const ModelConfig& config_;
  int layer_ = -1;
  std::vector<TensorSpec> specs_;
};

const LayerWidths& layer_of(const ModelWidths& widths, const TensorSpec& spec) {
  ESPALIER_CHECK(spec.layer >= 0 && static_cast<std::size_t>(spec.layer) < widths.layers.size(),
                 fmt::format("{} in widths of {} layers", spec.name, widths.layers.size()));
  return widths.layers[static_cast<std::size_t>(spec.layer)];
}

const std::vector<std::int32_t>& units_on(AxisKind kind, const LayerWidths& layer) {
  if (kind == AxisKind::query) return layer.query_heads;
  if (kind == AxisKind::kv) return layer.kv_heads;
  return layer.channels;
}

IndexRuns vocabulary_slice(const TensorSpec& spec, Range have, Range want) {
  if (want.size() == 0) return {};
  ESPALIER_CHECK(have.begin <= want.begin && want.end <= have.end,
                 fmt::format("{}: rows [{}, {}) wanted of [{}, {})", spec.name, want.begin,
                             want.end, have.begin, have.end));
  return IndexRuns::of({want.begin - have.begin, want.end - have.begin});
}

}  // namespace

bool is_pruned(AxisKind kind) {
  return kind == AxisKind::query || kind == AxisKind::kv || kind == AxisKind::channel;
}

std::int64_t unit_width(AxisKind kind, const ModelConfig& config) {
  return kind == AxisKind::channel ? 1 : config.head_dim;
}

std::vector<TensorSpec> layer_tensors(const ModelConfig& config, int layer) {
  return CatalogBuilder(config).build_layer(layer);
}

std::vector<TensorSpec> tensor_catalog(const ModelConfig& config) {
  return CatalogBuilder(config).build();
}

TensorSlice slice_of(const TensorSpec& spec, const ModelConfig& config, const ModelWidths& have,
                     Range have_vocabulary, const ModelWidths& want, Range want_vocabulary) {
  const auto along = [&](std::size_t axis) -> IndexRuns {
    if (axis >= spec.shape.size()) return IndexRuns::all(1);
    const AxisKind kind = spec.axes[axis];
    if (kind == AxisKind::vocabulary)
      return vocabulary_slice(spec, have_vocabulary, want_vocabulary);
    if (!is_pruned(kind)) return IndexRuns::all(spec.shape[axis]);
    const std::vector<std::int32_t> places =
        positions(units_on(kind, layer_of(want, spec)), units_on(kind, layer_of(have, spec)));
    return IndexRuns::of_units(places, unit_width(kind, config));
  };
  return {along(0), along(1)};
}

std::vector<std::int64_t> shape_with(const TensorSpec& spec, const ModelConfig& config,
                                     const ModelWidths& widths) {
  std::vector<std::int64_t> shape = spec.shape;
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    const AxisKind kind = spec.axes[axis];
    if (!is_pruned(kind)) continue;
    const auto units = static_cast<std::int64_t>(units_on(kind, layer_of(widths, spec)).size());
    shape[axis] = units * unit_width(kind, config);
  }
  return shape;
}

bool has_no_elements(const std::vector<std::int64_t>& shape) {
  return std::find(shape.begin(), shape.end(), 0) != shape.end();
}

bool is_output_bias(TensorRole role) {
  return role == TensorRole::o_bias || role == TensorRole::down_bias;
}

bool is_input_projection(TensorRole role) {
  return role == TensorRole::q || role == TensorRole::k || role == TensorRole::v ||
         role == TensorRole::gate || role == TensorRole::up;
}

// The norms of a layer without heads or channels stay in the checkpoint, so they are counted.
ParameterCount count_parameters(const ModelConfig& config, const ModelWidths& widths) {
  ParameterCount count;
  for (const TensorSpec& spec : tensor_catalog(config)) {
    if (is_output_bias(spec.role)) continue;
    std::int64_t elements = 1;
    for (const std::int64_t n : shape_with(spec, config, widths)) elements *= n;
    count.total += elements;
    if (spec.layer >= 0) count.decoder += elements;
  }
  return count;
}

}  // namespace espalier
