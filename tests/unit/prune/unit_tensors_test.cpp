// What falls with a unit, against the slicing rule: the same numbers, found by taking units away.
#include "espalier/prune/unit_tensors.h"

#include <algorithm>

#include <gtest/gtest.h>

#include "sample_models.h"

namespace espalier {
namespace {

std::vector<ModelConfig> models() {
  std::vector<ModelConfig> configs;
  for (const std::int64_t kv_heads : {1, 2, 6})
    for (const bool bias : {false, true})
      for (const bool norm : {false, true}) {
        ModelConfig config = testing::shape(2, 10, 6, kv_heads, 4, 7, 13);
        config.qkv_bias = bias;
        config.qk_norm = norm;
        configs.push_back(config);
      }
  return configs;
}

/// Elements that a slice of layer 1 keeps, of all its tensors or of its matrices.
std::int64_t elements(const ModelConfig& config, const LayerWidths& layer, bool matrices_only) {
  ModelWidths widths = dense_widths(config);
  widths.layers[1] = layer;
  const Range all{0, config.vocabulary};
  std::int64_t sum = 0;
  for (const TensorSpec& spec : tensor_catalog(config)) {
    if (spec.layer != 1 || (matrices_only && spec.shape.size() != 2)) continue;
    const TensorSlice slice = slice_of(spec, config, dense_widths(config), all, widths, all);
    sum += slice.rows.size() * slice.columns.size();
  }
  return sum;
}

TEST(UnitTensors, SizesAreWhatTheSlicesLose) {
  for (const ModelConfig& config : models())
    for (const bool matrices_only : {false, true}) {
      const UnitSizes sizes = matrices_only ? unit_weights(config) : unit_parameters(config);
      const LayerWidths dense = dense_widths(config).layers[1];
      const std::int64_t whole = elements(config, dense, matrices_only);
      LayerWidths one_less = dense;
      one_less.channels.erase(one_less.channels.begin() + 3);
      EXPECT_EQ(whole - elements(config, one_less, matrices_only), sizes.channel);
      one_less = dense;
      one_less.query_heads.pop_back();
      EXPECT_EQ(whole - elements(config, one_less, matrices_only), sizes.query_head);
      const std::int64_t group = config.group_size();
      one_less.query_heads.resize(static_cast<std::size_t>(config.heads - group));
      one_less.kv_heads.pop_back();
      EXPECT_EQ(whole - elements(config, one_less, matrices_only), sizes.group(group));
      EXPECT_EQ(whole - sizes.of(dense), elements(config, {}, matrices_only)) << "the norms stay";
      EXPECT_EQ(elements(config, one_less, matrices_only) - elements(config, {}, matrices_only),
                sizes.of(one_less));
    }
}

TEST(UnitTensors, MatricesOfAUnitAreThoseOfWhichItOwnsAPart) {
  using Roles = std::vector<TensorRole>;
  const Roles mlp{TensorRole::gate, TensorRole::up, TensorRole::down};
  const Roles with_kv{TensorRole::q, TensorRole::k, TensorRole::v, TensorRole::o};
  const Roles without{TensorRole::q, TensorRole::o};
  for (const ModelConfig& config : models()) {
    const bool grouped = config.is_gqa();
    EXPECT_EQ(unit_roles(config, AttentionUnit::query_head, UnitKind::mlp), mlp);
    EXPECT_EQ(unit_roles(config, AttentionUnit::kv_group, UnitKind::attention), with_kv);
    EXPECT_EQ(unit_roles(config, AttentionUnit::query_head, UnitKind::attention),
              grouped ? without : with_kv);
    EXPECT_EQ(carries_kv(config, AttentionUnit::query_head), !grouped);
    EXPECT_TRUE(carries_kv(config, AttentionUnit::kv_group));
  }
}

TEST(UnitTensors, TheReaderIsTheMatrixWhoseColumnsAreUnits) {
  const ModelConfig config = testing::small_gqa();
  EXPECT_EQ(unit_reader(config, UnitKind::attention, 2).name,
            "model.layers.2.self_attn.o_proj.weight");
  EXPECT_EQ(unit_reader(config, UnitKind::mlp, 0).name, "model.layers.0.mlp.down_proj.weight");
  for (const TensorSpec& spec :
       unit_matrices(config, AttentionUnit::kv_group, UnitKind::attention, 1))
    EXPECT_EQ(unit_axis(spec), spec.role == TensorRole::o ? 1u : 0u) << spec.name;
}

TEST(UnitTensors, ALayersTensorsAreThoseOfTheCatalog) {
  for (const ModelConfig& config : models()) {
    std::vector<TensorSpec> of_layer = tensor_catalog(config);
    std::erase_if(of_layer, [](const TensorSpec& spec) { return spec.layer != 1; });
    const std::vector<TensorSpec> asked = layer_tensors(config, 1);
    ASSERT_EQ(asked.size(), of_layer.size());
    for (std::size_t i = 0; i < asked.size(); ++i) {
      EXPECT_EQ(asked[i].name, of_layer[i].name);
      EXPECT_EQ(asked[i].shape, of_layer[i].shape);
      EXPECT_EQ(asked[i].layer, 1);
    }
  }
}

}  // namespace
}  // namespace espalier
