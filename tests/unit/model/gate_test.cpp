#include "espalier/model/gate.h"

#include <gtest/gtest.h>

#include "model_case.h"

namespace espalier {
namespace {

using testing::ModelCase;

constexpr UnitKind kHalves[] = {UnitKind::attention, UnitKind::mlp};

TEST(Gate, PlacesOfTheRanksFollowOneAnother) {
  RankGroup& world = testing::world_group();
  const ModelCase c(ModelFamily::qwen2);
  const ModelWidths kept = testing::random_widths(c.config(), 2);
  const CausalLM model = c.load(kept, world);
  for (std::int64_t l = 0; l < model.layers(); ++l)
    for (const UnitKind half : kHalves) {
      const LayerWidths& all = kept.layers[static_cast<std::size_t>(l)];
      const GatePlace place = gate_place(model, l, half);
      const std::int64_t per_unit = half == UnitKind::attention ? c.config().head_dim : 1;
      const auto& units = half == UnitKind::attention ? all.query_heads : all.channels;
      EXPECT_EQ(place.all, static_cast<std::int64_t>(units.size()) * per_unit);
      EXPECT_EQ(place.mine.size(), gate_entries(model.widths(l), half, c.config()));
      // This rank's units are those at its place.
      const auto& mine =
          half == UnitKind::attention ? model.widths(l).query_heads : model.widths(l).channels;
      for (std::size_t i = 0; i < mine.size(); ++i)
        EXPECT_EQ(units[static_cast<std::size_t>(place.mine.begin / per_unit) + i], mine[i])
            << "layer " << l;
    }
}

TEST(Gate, GatheredIsThatOfOneRank) {
  RankGroup& world = testing::world_group();
  const RankGroup self(make_self_communicator());
  const ModelCase c(ModelFamily::llama);
  // Layer 1 has no heads and layer 2 no channels, so that some gates are empty on all ranks.
  const ModelWidths kept = testing::random_widths(c.config(), 3);
  const CausalLM model = c.load(kept, world), whole = c.load(kept, self);
  at::manual_seed(5);
  const at::Tensor x_BTD = at::randn({2, 3, c.config().hidden}, at::kDouble);
  for (std::int64_t l = 0; l < model.layers(); ++l)
    for (const UnitKind half : kHalves) {
      const auto gate = [&](const CausalLM& of) {
        return half == UnitKind::attention ? of.attention_half(l, x_BTD).gate
                                           : of.mlp_half(l, x_BTD).gate;
      };
      const at::Tensor want = gate(whole);
      const at::Tensor found = gathered_gate(model, l, half, gate(model), world.reducer());
      EXPECT_EQ(found.sizes(), want.sizes()) << "layer " << l;
      if (want.numel() == 0 || found.sizes() != want.sizes()) continue;
      const double scale = want.abs().max().item<double>();
      // A projection's terms, then attention's over the tokens.
      const auto terms = static_cast<double>(c.config().hidden * x_BTD.size(1));
      EXPECT_LE((found - want).abs().max().item<double>(), testing::rounding(terms, scale));
    }
}

}  // namespace
}  // namespace espalier
