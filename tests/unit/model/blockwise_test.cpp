#include <cmath>
#include <cstdlib>
#include <map>

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "espalier/core/fault.h"
#include "espalier/score/statistics.h"
#include "espalier/score/unit_sums.h"
#include "model_case.h"

namespace espalier {
namespace {

using testing::ModelCase;

/// Keeps everything the backward pass offers.
class Recorder final : public BackwardObserver {
 public:
  explicit Recorder(const CausalLM& model) : model_(model) {}
  bool wants_gate(std::int64_t, UnitKind) const override { return true; }
  std::vector<TensorRole> wants_weights(std::int64_t layer, UnitKind half) const override {
    std::vector<TensorRole> roles;
    const std::vector<TensorRole> candidates =
        half == UnitKind::attention
            ? std::vector<TensorRole>{TensorRole::q,     TensorRole::k,      TensorRole::v,
                                      TensorRole::o,     TensorRole::v_bias, TensorRole::q_bias,
                                      TensorRole::k_bias}
            : std::vector<TensorRole>{TensorRole::gate, TensorRole::up, TensorRole::down};
    for (const TensorRole role : candidates)
      if (model_.layer(layer).by_role(role).defined() &&
          model_.layer(layer).by_role(role).numel() > 0)
        roles.push_back(role);
    return roles;
  }
  void observe(std::int64_t layer, UnitKind half, const HalfGradients& g) override {
    gates[{layer, half}] = (g.gate * g.gate_gradient).sum(at::IntArrayRef{0, 1});
    for (const WeightGradient& gradient : g.weight_gradients)
      weights[{layer, gradient.role}] = gradient.product();
  }
  // Signed sums over tokens, per entry.
  std::map<std::pair<std::int64_t, UnitKind>, at::Tensor> gates;
  std::map<std::pair<std::int64_t, TensorRole>, at::Tensor> weights;  // gradients

 private:
  const CausalLM& model_;
};

double max_difference(const at::Tensor& a, const at::Tensor& b) {
  return a.numel() == 0 ? 0.0 : (a - b).abs().max().item<double>();
}

/// Largest absolute value anywhere, the scale of rounding.
double scale_of(const Recorder& r) {
  double scale = 0;
  for (const auto& [key, t] : r.gates)
    if (t.numel() > 0) scale = std::max(scale, t.abs().max().item<double>());
  return scale;
}

at::Tensor weight_sum(const CausalLM& model, const Recorder& r, std::int64_t l, TensorRole role,
                      std::int64_t dim) {
  return (model.layer(l).by_role(role) * r.weights.at({l, role})).sum(dim);
}

class Blockwise : public ::testing::TestWithParam<ModelFamily> {};

TEST_P(Blockwise, GateSumsAreCentralDifferences) {
  RankGroup& world = testing::world_group();
  const ModelCase c(GetParam());
  CausalLM model = c.load(dense_widths(c.config()), world);
  Recorder recorder(model);
  blockwise_backward(model, c.batch(), {}, recorder, world);
  const double step = 1e-5;
  // Scaling what reads a unit scales its gate: d objective / d scale = sum_t h dh. Global units, so
  // that all ranks take part whoever holds the unit.
  const auto check = [&](std::int64_t l, UnitKind half, std::int32_t unit, std::int64_t width) {
    const std::vector<std::int32_t>& held =
        half == UnitKind::attention ? model.widths(l).query_heads : model.widths(l).channels;
    const auto place = std::find(held.begin(), held.end(), unit);
    at::Tensor reader;
    double sum = 0;
    if (place != held.end()) {
      const std::int64_t begin = (place - held.begin()) * width;
      const TensorRole role = half == UnitKind::attention ? TensorRole::o : TensorRole::down;
      reader = model.layer(l).by_role(role).narrow(1, begin, width);
      sum = recorder.gates.at({l, half}).narrow(0, begin, width).sum().item<double>();
    }
    const auto moved = [&](double factor) {
      at::Tensor before;
      if (reader.defined()) {
        before = reader.clone();
        reader.mul_(factor);
      }
      const double value = c.objective(model, world);
      if (reader.defined()) reader.copy_(before);
      return value;
    };
    const double slope = (moved(1 + step) - moved(1 - step)) / (2 * step);
    if (reader.defined()) {
      // Central differences: error step^2 x third derivative + rounding / step.
      EXPECT_NEAR(sum, slope, 1e-7 * std::max(1.0, std::abs(slope)))
          << "layer " << l << " unit " << unit;
    }
  };
  for (std::int64_t l = 0; l < model.layers(); ++l) {
    for (const std::int32_t head : {0, 3, 5})
      check(l, UnitKind::attention, head, c.config().head_dim);
    for (const std::int32_t channel : {0, 7, 12}) check(l, UnitKind::mlp, channel, 1);
  }
}

TEST_P(Blockwise, SignedSumsObeyTheIdentities) {
  RankGroup& world = testing::world_group();
  const ModelCase c(GetParam());
  const CausalLM model = c.load(dense_widths(c.config()), world);
  Recorder r(model);
  blockwise_backward(model, c.batch(), {}, r, world);
  const std::int64_t E = c.config().head_dim;
  const double tolerance = testing::rounding(24 * 13 * 9, std::max(1.0, scale_of(r)));
  for (std::int64_t l = 0; l < model.layers(); ++l) {
    const auto heads = static_cast<std::int64_t>(model.widths(l).query_heads.size());
    const auto kv_heads = static_cast<std::int64_t>(model.widths(l).kv_heads.size());
    if (!model.widths(l).channels.empty()) {
      const at::Tensor down_F = weight_sum(model, r, l, TensorRole::down, 0);
      EXPECT_LE(max_difference(down_F, r.gates.at({l, UnitKind::mlp})), tolerance)
          << "down column = sum h dh";
      EXPECT_LE(max_difference(down_F, weight_sum(model, r, l, TensorRole::up, 1)), tolerance)
          << "down column = up row";
    }
    if (heads == 0) continue;
    const at::Tensor o_HE = weight_sum(model, r, l, TensorRole::o, 0);
    EXPECT_LE(max_difference(o_HE, r.gates.at({l, UnitKind::attention})), tolerance)
        << "o column = sum a da";
    // The v rows of a KV head carry what its query heads carry; a v bias adds its own share.
    at::Tensor v_K = weight_sum(model, r, l, TensorRole::v, 1).view({kv_heads, E}).sum(1);
    if (model.layer(l).v_bias_KE.defined())
      v_K = v_K + (model.layer(l).v_bias_KE * r.weights.at({l, TensorRole::v_bias}))
                      .view({kv_heads, E})
                      .sum(1);
    const at::Tensor heads_K =
        heads_to_units(model, AttentionUnit::kv_group, l, o_HE.view({heads, E}).sum(1));
    EXPECT_LE(max_difference(v_K, heads_K), tolerance) << "v rows = sum over the group's heads";
    at::Tensor q_H = weight_sum(model, r, l, TensorRole::q, 1).view({heads, E}).sum(1);
    at::Tensor k_K = weight_sum(model, r, l, TensorRole::k, 1).view({kv_heads, E}).sum(1);
    if (model.layer(l).q_bias_HE.defined()) {
      q_H = q_H + (model.layer(l).q_bias_HE * r.weights.at({l, TensorRole::q_bias}))
                      .view({heads, E})
                      .sum(1);
      k_K = k_K + (model.layer(l).k_bias_KE * r.weights.at({l, TensorRole::k_bias}))
                      .view({kv_heads, E})
                      .sum(1);
    }
    if (c.config().qk_norm) {
      // A normed query does not feel its scale, up to the norm's epsilon (1e-6 of a mean square
      // near 1).
      EXPECT_LE(q_H.abs().max().item<double>(), 1e-4 * std::max(1.0, scale_of(r)))
          << "q rows vanish under q/k norm";
    } else {
      EXPECT_LE(max_difference(heads_to_units(model, AttentionUnit::kv_group, l, q_H), k_K),
                tolerance)
          << "q rows = k rows";
    }
  }
}

TEST_P(Blockwise, StoppingLowerDoesNotChangeWhatIsAbove) {
  RankGroup& world = testing::world_group();
  const ModelCase c(GetParam());
  const CausalLM model = c.load(dense_widths(c.config()), world);
  Recorder whole(model), upper(model);
  const at::Tensor a = blockwise_backward(model, c.batch(), {}, whole, world).nll_N;
  const at::Tensor b = blockwise_backward(model, c.batch(), {3, 0}, upper, world).nll_N;
  EXPECT_TRUE(at::equal(a, b));
  EXPECT_EQ(upper.gates.count({1, UnitKind::attention}), 0u)
      << "nothing below the lowest half is differentiated";
  for (const auto& [key, t] : upper.gates) EXPECT_TRUE(at::equal(t, whole.gates.at(key)));
}

TEST_P(Blockwise, KeptGraphsChangeNoBit) {
  RankGroup& world = testing::world_group();
  const ModelCase c(GetParam());
  const CausalLM model = c.load(dense_widths(c.config()), world);
  Recorder again(model);
  const BackwardPass all = blockwise_backward(model, c.batch(), {}, again, world);
  EXPECT_EQ(all.repeated_halves, 2 * model.layers());
  std::int64_t before = all.repeated_halves;
  bool some = false;  // kept, but not all
  for (const std::int64_t bytes : {20 << 10, 40 << 10, 60 << 10, 80 << 10, 100 << 10, 1 << 30}) {
    Recorder kept(model);
    const BackwardPass pass = blockwise_backward(model, c.batch(), {0, bytes}, kept, world);
    EXPECT_LE(pass.repeated_halves, before) << bytes;
    before = pass.repeated_halves;
    some = some || (before > 0 && before < all.repeated_halves);
    EXPECT_TRUE(at::equal(pass.nll_N, all.nll_N));
    ASSERT_EQ(kept.weights.size(), again.weights.size());
    for (const auto& [key, t] : kept.weights) EXPECT_TRUE(at::equal(t, again.weights.at(key)));
    ASSERT_EQ(kept.gates.size(), again.gates.size());
    for (const auto& [key, t] : kept.gates) EXPECT_TRUE(at::equal(t, again.gates.at(key)));
  }
  EXPECT_TRUE(some) << "no budget kept a part of the graphs";
  EXPECT_EQ(before, 0);
}

TEST_P(Blockwise, CollectivesAreThoseOfTheDocumentedFormula) {
  RankGroup& world = testing::world_group();
  const ModelCase c(GetParam());
  const CausalLM model = c.load(dense_widths(c.config()), world);
  Recorder r(model);
  world.reset_counters();
  const std::int64_t lowest = 2;
  blockwise_backward(model, c.batch(), {lowest, 0}, r, world);
  const CommCounters counted = world.counters();
  const std::int64_t halves = 2 * model.layers(), N = c.batch().targets_N.numel(), chunks = 1;
  const auto collectives =
      static_cast<std::uint64_t>(1 + halves + 2 * chunks + 1 + (halves - 1 - lowest) + 1);
  const auto numbers = static_cast<std::uint64_t>(
      (1 + halves + 1 + halves - 1 - lowest) * c.batch().tokens_BT.numel() * c.config().hidden +
      3 * N + 1);
  EXPECT_EQ(counted.collectives, world.size() > 1 ? collectives : 0u);
  EXPECT_EQ(counted.bytes, world.size() > 1 ? 8 * numbers : 0u);
}

/// Arms a fault on the last rank for as long as it lives.
class Fault {
 public:
  Fault(const std::string& point, int nth, const RankGroup& world) {
    const std::string text = "point=" + point + ";rank=" + std::to_string(world.size() - 1) +
                             ";nth=" + std::to_string(nth) + ";action=nan";
    ::setenv("ESPALIER_FAULT", text.c_str(), 1);
    fault::initialise(world.rank(), world.size());
  }
  ~Fault() {
    ::unsetenv("ESPALIER_FAULT");
    fault::initialise(0, 1);
  }
  Fault(const Fault&) = delete;
  Fault& operator=(const Fault&) = delete;
};

TEST(NonFinite, IsFoundWhereItWasBorn) {
  RankGroup& world = testing::world_group();
  const ModelCase c(ModelFamily::llama);
  struct Row {
    const char* point;
    int nth;
    std::vector<const char*> words;
  };
  const std::vector<Row> rows{
      {"layer.forward", 4, {"loss", "output of the MLP of layer 1", "layers.1.mlp.down_proj"}},
      {"layer.forward", 5, {"loss", "attention of layer 2", "layers.2.self_attn.o_proj"}},
      {"layer.backward", 2, {"gradient", "layers.2.input_layernorm", "attention of layer 2"}},
      {"layer.backward", 3, {"gradient", "layers.1.post_attention_layernorm", "MLP of layer 1"}},
      {"backward.enter", 1, {"gradient", "model.norm.weight", "layer 2"}},
      {"forward.exit", 1, {"loss", "hidden states after layer 2"}},
  };
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16})
    for (const std::int64_t graph_bytes : {std::int64_t{0}, std::int64_t{1} << 30})
      for (const Row& row : rows) {
        const CausalLM model = c.load(dense_widths(c.config()), world, dtype);
        TokenBatch batch = c.batch();
        batch.origin = "micro-batch 3 of 7, domain 'a'";
        Recorder recorder(model);
        const Fault fault(row.point, row.nth, world);
        const std::string text = testing::text_of(
            blockwise_backward(model, batch, {0, graph_bytes}, recorder, world).problems);
        EXPECT_NE(text, "") << row.point << ": a value that is not finite passed";
        std::vector<std::string> words(row.words.begin(), row.words.end());
        words.push_back("tensor rank " + std::to_string(world.size() - 1));
        words.push_back(batch.origin);
        for (const std::string& word : words)
          EXPECT_NE(text.find(word), std::string::npos) << word << " is not in: " << text;
      }
}

TEST(NonFinite, AGradientOfAWeightIsNamed) {
  RankGroup& world = testing::world_group();
  const ModelCase c(ModelFamily::llama);
  const CausalLM model = c.load(dense_widths(c.config()), world);
  Recorder recorder(model);
  const Fault fault("weight.gradient", 2, world);  // the MLP of the last layer: gate, then up
  const std::string text =
      testing::text_of(blockwise_backward(model, c.batch(), {}, recorder, world).problems);
  EXPECT_NE(text.find("'model.layers.2.mlp.up_proj.weight'"), std::string::npos) << text;
  EXPECT_NE(text.find("tensor rank " + std::to_string(world.size() - 1)), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(Families, Blockwise, ::testing::ValuesIn(testing::all_families()),
                         [](const auto& test) { return std::string(name_of(test.param)); });

}  // namespace
}  // namespace espalier
