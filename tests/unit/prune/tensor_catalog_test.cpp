#include "espalier/prune/tensor_catalog.h"

#include <algorithm>
#include <set>

#include <gtest/gtest.h>

#include "espalier/core/error.h"
#include "unit/prune/sample_models.h"

namespace espalier {
namespace {

using testing::Draw;
using testing::drawn_widths;
using testing::shape;
using testing::small_gqa;
using Shape = std::vector<std::int64_t>;

const TensorSpec& find(const std::vector<TensorSpec>& specs, const std::string& name) {
  const auto found =
      std::find_if(specs.begin(), specs.end(), [&](const auto& spec) { return spec.name == name; });
  if (found == specs.end()) throw std::out_of_range(name);
  return *found;
}

TEST(Catalog, Qwen2NamesShapesAndAxes) {
  const std::vector<TensorSpec> specs = tensor_catalog(small_gqa());
  EXPECT_EQ(specs.size(), 3u + 3u * 12u);
  EXPECT_EQ(find(specs, "model.embed_tokens.weight").shape, (Shape{13, 10}));
  EXPECT_EQ(find(specs, "lm_head.weight").shape, (Shape{13, 10}));
  EXPECT_EQ(find(specs, "model.norm.weight").shape, (Shape{10}));
  const std::string layer = "model.layers.2.";
  EXPECT_EQ(find(specs, layer + "self_attn.q_proj.weight").shape, (Shape{24, 10}));
  EXPECT_EQ(find(specs, layer + "self_attn.k_proj.weight").shape, (Shape{8, 10}));
  EXPECT_EQ(find(specs, layer + "self_attn.v_proj.weight").shape, (Shape{8, 10}));
  EXPECT_EQ(find(specs, layer + "self_attn.q_proj.bias").shape, (Shape{24}));
  EXPECT_EQ(find(specs, layer + "self_attn.k_proj.bias").shape, (Shape{8}));
  EXPECT_EQ(find(specs, layer + "self_attn.v_proj.bias").shape, (Shape{8}));
  EXPECT_EQ(find(specs, layer + "mlp.gate_proj.weight").shape, (Shape{7, 10}));
  EXPECT_EQ(find(specs, layer + "mlp.up_proj.weight").shape, (Shape{7, 10}));
  EXPECT_EQ(find(specs, layer + "input_layernorm.weight").shape, (Shape{10}));
  EXPECT_EQ(find(specs, layer + "post_attention_layernorm.weight").shape, (Shape{10}));
  const TensorSpec& o = find(specs, layer + "self_attn.o_proj.weight");
  EXPECT_EQ(o.shape, (Shape{10, 24}));
  EXPECT_EQ(o.layer, 2);
  EXPECT_EQ(o.role, TensorRole::o);
  EXPECT_EQ(o.axes[0], AxisKind::whole);
  EXPECT_EQ(o.axes[1], AxisKind::query);
  const TensorSpec& down = find(specs, layer + "mlp.down_proj.weight");
  EXPECT_EQ(down.shape, (Shape{10, 7}));
  EXPECT_EQ(down.axes[1], AxisKind::channel);
}

TEST(Catalog, NamesAreUniqueAndFollowTheFamily) {
  ModelConfig config = shape(2, 8, 4, 2, 6, 5, 11);
  config.qk_norm = true;
  config.tied_embeddings = true;
  const std::vector<TensorSpec> specs = tensor_catalog(config);
  std::set<std::string> names;
  for (const TensorSpec& spec : specs) names.insert(spec.name);
  EXPECT_EQ(names.size(), specs.size());
  EXPECT_EQ(find(specs, "model.layers.1.self_attn.q_norm.weight").shape, (Shape{6}));
  EXPECT_EQ(find(specs, "model.layers.1.self_attn.k_norm.weight").shape, (Shape{6}));
  EXPECT_EQ(names.count("lm_head.weight"), 0u);
  EXPECT_EQ(names.count("model.layers.0.self_attn.q_proj.bias"), 0u);
}

TEST(Catalog, OutputBiasesAreWholeAndNoParametersOfTheUnprunedModel) {
  const ModelConfig plain = small_gqa();
  ModelConfig config = plain;
  config.output_bias = true;
  const std::vector<TensorSpec> specs = tensor_catalog(config);
  EXPECT_EQ(specs.size(), tensor_catalog(plain).size() + 2 * 3);
  for (const char* name :
       {"model.layers.1.self_attn.o_proj.bias", "model.layers.1.mlp.down_proj.bias"}) {
    const TensorSpec& bias = find(specs, name);
    EXPECT_TRUE(is_output_bias(bias.role));
    EXPECT_EQ(bias.shape, (Shape{10}));
    EXPECT_EQ(shape_with(bias, config, ModelWidths{std::vector<LayerWidths>(3)}), (Shape{10}));
  }
  EXPECT_FALSE(is_output_bias(find(specs, "model.layers.1.self_attn.q_proj.bias").role));
  const ModelWidths all = dense_widths(config);
  EXPECT_EQ(count_parameters(config, all).total, count_parameters(plain, all).total);
  EXPECT_EQ(count_parameters(config, all).decoder, count_parameters(plain, all).decoder);
}

struct Known {
  const char* name;
  ModelConfig config;
  std::int64_t total;
};

std::vector<Known> known_models() {
  ModelConfig qwen7 = shape(28, 3584, 28, 4, 128, 18944, 152064);
  ModelConfig qwen32 = shape(64, 5120, 40, 8, 128, 27648, 152064);
  qwen7.qkv_bias = qwen32.qkv_bias = true;
  ModelConfig qwen3_small = shape(28, 1024, 16, 8, 128, 3072, 151936);
  ModelConfig qwen3_32 = shape(64, 5120, 64, 8, 128, 25600, 151936);
  qwen3_small.qk_norm = qwen3_32.qk_norm = true;
  qwen3_small.tied_embeddings = true;
  return {{"Qwen2.5-7B", qwen7, 7615616512},
          {"Qwen2.5-32B", qwen32, 32763876352},
          {"Llama-2-7B", shape(32, 4096, 32, 32, 128, 11008, 32000), 6738415616},
          {"Llama-3-8B", shape(32, 4096, 32, 8, 128, 14336, 128256), 8030261248},
          {"Mistral-7B-v0.3", shape(32, 4096, 32, 8, 128, 14336, 32768), 7248023552},
          {"Qwen3-0.6B", qwen3_small, 596049920},
          {"Qwen3-32B", qwen3_32, 32762123264}};
}

TEST(ParameterCount, EqualsThePublishedTotals) {
  for (const Known& known : known_models()) {
    const ParameterCount count = count_parameters(known.config, dense_widths(known.config));
    EXPECT_EQ(count.total, known.total) << known.name;
    const ModelConfig& c = known.config;
    const std::int64_t ends = c.vocabulary * c.hidden * (c.tied_embeddings ? 1 : 2) + c.hidden;
    EXPECT_EQ(count.decoder, known.total - ends) << known.name;
  }
}

TEST(ParameterCount, EmptyLayerKeepsItsNorms) {
  ModelConfig config = shape(1, 8, 4, 2, 6, 5, 11);
  config.qk_norm = true;
  const ModelWidths empty{{LayerWidths{}}};
  EXPECT_EQ(count_parameters(config, empty).decoder, 8 + 8 + 6 + 6);
  EXPECT_EQ(count_parameters(config, empty).total, 28 + 8 + 2 * 8 * 11);
}

TEST(ParameterCount, OneHeadOneChannelByHand) {
  const ModelConfig config = small_gqa();  // hidden 10, head_dim 4, biases
  const ModelWidths dense = dense_widths(config);
  const std::int64_t before = count_parameters(config, dense).decoder;
  ModelWidths less = dense;
  less.layers[1].query_heads = {0, 1, 2, 4, 5};
  EXPECT_EQ(before - count_parameters(config, less).decoder, 2 * 4 * 10 + 4);
  less.layers[1].query_heads = {0, 1, 2};
  less.layers[1].kv_heads = {0};
  EXPECT_EQ(before - count_parameters(config, less).decoder, 3 * 84 + 84 + 4);
  less = dense;
  less.layers[0].channels = {1, 2, 3, 4, 5, 6};
  EXPECT_EQ(before - count_parameters(config, less).decoder, 30);
}

// --- the slicing rule against an oracle that labels every entry of the dense tensor
// -----------------

using Labels =
    std::vector<std::pair<std::int64_t, std::int64_t>>;  // dense (row, column), row-major

std::vector<std::int64_t> kept_entries(AxisKind kind, std::int64_t dense, const ModelConfig& config,
                                       const LayerWidths& layer, Range vocabulary) {
  std::vector<std::int64_t> kept;
  for (std::int64_t i = 0; i < dense; ++i) {
    auto in = [&](const std::vector<std::int32_t>& units, std::int64_t unit) {
      return std::count(units.begin(), units.end(), static_cast<std::int32_t>(unit)) > 0;
    };
    const bool stays = kind == AxisKind::whole     ? true
                       : kind == AxisKind::query   ? in(layer.query_heads, i / config.head_dim)
                       : kind == AxisKind::kv      ? in(layer.kv_heads, i / config.head_dim)
                       : kind == AxisKind::channel ? in(layer.channels, i)
                                                   : vocabulary.begin <= i && i < vocabulary.end;
    if (stays) kept.push_back(i);
  }
  return kept;
}

Labels oracle(const TensorSpec& spec, const ModelConfig& config, const ModelWidths& widths,
              Range vocabulary) {
  const LayerWidths none;
  const LayerWidths& layer =
      spec.layer < 0 ? none : widths.layers[static_cast<std::size_t>(spec.layer)];
  Labels labels;
  const std::int64_t columns = spec.shape.size() > 1 ? spec.shape[1] : 1;
  for (std::int64_t row : kept_entries(spec.axes[0], spec.shape[0], config, layer, vocabulary))
    for (std::int64_t column : kept_entries(spec.axes[1], columns, config, layer, vocabulary))
      labels.emplace_back(row, column);
  return labels;
}

Labels taken(const Labels& from, std::int64_t columns, const TensorSlice& slice) {
  Labels labels;
  for (std::int64_t row : slice.rows.indices())
    for (std::int64_t column : slice.columns.indices())
      labels.push_back(from.at(static_cast<std::size_t>(row * columns + column)));
  return labels;
}

std::int64_t columns_of(const Shape& shape) { return shape.size() > 1 ? shape[1] : 1; }

ModelConfig with_everything() {
  ModelConfig config = shape(3, 9, 12, 4, 3, 11, 17);
  config.qkv_bias = config.qk_norm = true;
  return config;
}

TEST(Slice, DenseToAToBEqualsDenseToBAndTheOracle) {
  const ModelConfig config = with_everything();
  const ModelWidths dense = dense_widths(config);
  const Range all{0, 17};
  Draw draw(21);
  for (int round = 0; round < 25; ++round) {
    const ModelWidths a = drawn_widths(draw, config, dense);
    const ModelWidths pruned = drawn_widths(draw, config, a);
    const int count = 1 + round % 7;
    const ShardWidths b = shard_of(config, pruned, count, static_cast<int>(draw.below(count)));
    for (const TensorSpec& spec : tensor_catalog(config)) {
      const Labels whole = oracle(spec, config, dense, all);
      const Labels via =
          taken(whole, columns_of(spec.shape), slice_of(spec, config, dense, all, a, all));
      EXPECT_EQ(via, oracle(spec, config, a, all)) << spec.name;
      const Labels then = taken(via, columns_of(shape_with(spec, config, a)),
                                slice_of(spec, config, a, all, b.widths, b.vocabulary));
      EXPECT_EQ(then, oracle(spec, config, b.widths, b.vocabulary)) << spec.name;
      EXPECT_EQ(then, taken(whole, columns_of(spec.shape),
                            slice_of(spec, config, dense, all, b.widths, b.vocabulary)))
          << spec.name;
    }
  }
}

TEST(Slice, LiveShardToSmallerShard) {
  const ModelConfig config = with_everything();
  const ModelWidths dense = dense_widths(config);
  Draw draw(22);
  for (int rank = 0; rank < 3; ++rank) {
    const ShardWidths before = shard_of(config, dense, 3, rank);
    const ShardWidths after = intersect(before, drawn_widths(draw, config, dense));
    for (const TensorSpec& spec : tensor_catalog(config)) {
      const Labels held = oracle(spec, config, before.widths, before.vocabulary);
      const Labels left = taken(
          held, columns_of(shape_with(spec, config, before.widths)),
          slice_of(spec, config, before.widths, before.vocabulary, after.widths, after.vocabulary));
      EXPECT_EQ(left, oracle(spec, config, after.widths, after.vocabulary)) << spec.name;
    }
  }
}

TEST(Slice, WhatIsNotThereIsRefused) {
  const ModelConfig config = small_gqa();
  const ModelWidths dense = dense_widths(config);
  ModelWidths less = dense;
  less.layers[0].channels = {0, 2};
  const std::vector<TensorSpec> specs = tensor_catalog(config);
  const TensorSpec& gate = find(specs, "model.layers.0.mlp.gate_proj.weight");
  EXPECT_THROW(slice_of(gate, config, less, {0, 13}, dense, {0, 13}), Error);
  const TensorSpec& head = find(specs, "lm_head.weight");
  EXPECT_THROW(slice_of(head, config, dense, {0, 5}, dense, {4, 6}), Error);
}

}  // namespace
}  // namespace espalier
