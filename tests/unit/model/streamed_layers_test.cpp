#include <gtest/gtest.h>

#include "espalier/core/error.h"
#include "model_case.h"

namespace espalier {
namespace {

using testing::ModelCase;

/// Refits change matrices of any role; biases come where the source has none.
constexpr TensorRole kChanged[] = {TensorRole::q,    TensorRole::v,      TensorRole::o,
                                   TensorRole::down, TensorRole::o_bias, TensorRole::down_bias};

class StreamedLayersTest : public ::testing::TestWithParam<at::ScalarType> {
 protected:
  /// What lies outside the layers is of no concern here.
  CausalLM unloaded() const {
    const RankGroup& world = testing::world_group();
    ComputeOptions options;
    options.dtype = GetParam();
    return unloaded_model(case_.config(), kept_, options, world.size(), world.rank());
  }
  CausalLM whole() const { return case_.load(kept_, testing::world_group(), GetParam()); }

  /// The same on both models, so that one is the oracle of the other.
  void change(CausalLM& model, std::int64_t layer) const {
    const std::int64_t D = case_.config().hidden;
    for (const TensorRole role : kChanged) {
      at::Tensor& t = model.layer(layer).by_role(role);
      if (!t.defined()) t = at::arange(D, at::TensorOptions(GetParam()));
      t = t * 3 + static_cast<double>(layer + 1);
    }
  }

  void expect_equal(const CausalLM& found, const CausalLM& wanted, std::int64_t layer) const {
    for (int role = 0; role <= static_cast<int>(TensorRole::down_bias); ++role) {
      const auto r = static_cast<TensorRole>(role);
      if (r <= TensorRole::head) continue;
      const at::Tensor &a = found.layer(layer).by_role(r), &b = wanted.layer(layer).by_role(r);
      ASSERT_EQ(a.defined(), b.defined()) << "layer " << layer << ", role " << role;
      if (!a.defined()) continue;
      EXPECT_EQ(a.scalar_type(), b.scalar_type());
      EXPECT_TRUE(at::equal(a, b)) << "layer " << layer << ", role " << role;
    }
  }

  ModelCase case_{ModelFamily::qwen3};
  // Uneven, with a layer without heads and one without channels.
  ModelWidths kept_ = testing::random_widths(case_.config(), 2);
  testing::TemporaryDirectory directory_;
};

TEST_P(StreamedLayersTest, AreReadWithWhatWasLaidOverThem) {
  CausalLM model = unloaded();
  CausalLM wanted = whole();
  StreamedLayers layers(model, case_.source());
  layers.begin_overlay(directory_.path());
  const std::vector<TensorRole> changed(std::begin(kChanged), std::end(kChanged));
  const std::int64_t L = model.layers();
  // The uppermost layer stays as it is.
  for (std::int64_t l = 0; l + 1 < L; ++l) {
    layers.hold(l);
    change(model, l);
    change(wanted, l);
    layers.lay_over(l, changed);
    layers.let_go();
    EXPECT_FALSE(model.has_layer(l));
  }
  for (std::int64_t l = 0; l < L; ++l) {
    layers.hold(l, l + 1);
    expect_equal(model, wanted, l);
  }
  for (std::int64_t l = L - 1; l >= 0; --l) {
    layers.hold(l, l - 1);
    expect_equal(model, wanted, l);
    EXPECT_FALSE(l + 1 < L && model.has_layer(l + 1));
  }
  // Another way than was foreseen.
  layers.hold(L - 1, 0);
  layers.hold(1);
  expect_equal(model, wanted, 1);
  layers.hold_all();
  for (std::int64_t l = 0; l < L; ++l) expect_equal(model, wanted, l);
  // Once more over what is laid there already.
  layers.hold(1);
  change(model, 1);
  change(wanted, 1);
  layers.lay_over(1, changed);
  layers.hold(0);
  layers.hold(1);
  expect_equal(model, wanted, 1);
  EXPECT_TRUE(std::filesystem::is_empty(directory_.path()));
}

TEST_P(StreamedLayersTest, BeginAnewWithTheSource) {
  CausalLM model = unloaded();
  const CausalLM wanted = whole();
  StreamedLayers layers(model, case_.source());
  layers.begin_overlay(directory_.path());
  layers.hold(0);
  change(model, 0);
  layers.lay_over(0, {std::begin(kChanged), std::end(kChanged)});
  layers.begin_overlay(directory_.path());
  EXPECT_FALSE(model.has_layer(0));
  layers.hold(0);
  expect_equal(model, wanted, 0);
  EXPECT_THROW(layers.begin_overlay(directory_.path() / "absent"), Error);
}

INSTANTIATE_TEST_SUITE_P(Dtypes, StreamedLayersTest,
                         ::testing::Values(at::kDouble, at::kFloat, at::kBFloat16),
                         [](const auto& one) { return std::string(at::toString(one.param)); });

}  // namespace
}  // namespace espalier
