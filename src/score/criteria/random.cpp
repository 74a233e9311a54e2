#include "criteria.h"
#include "espalier/core/hash.h"
#include "espalier/score/unit_sums.h"
#include "without_data.h"

namespace espalier::criteria {
namespace {

class Random final : public WithoutData {
 public:
  Random(const CausalLM& model, const StatisticsOptions& options) : WithoutData(model, options) {}

  UnitSums finish(const Mixture&, Range layers) const override {
    UnitSums sums(static_cast<std::size_t>(model().layers()));
    for (std::int64_t layer = layers.begin; layer < layers.end; ++layer)
      for (const UnitKind half : {UnitKind::attention, UnitKind::mlp}) {
        if (!is_scored(options().scored, layer, half)) continue;
        for (const std::int32_t number : unit_numbers(model().widths(layer), unit(), half)) {
          const std::uint64_t words[] = {
              static_cast<std::uint64_t>(options().seed),
              static_cast<std::uint64_t>(options().iteration), static_cast<std::uint64_t>(layer),
              static_cast<std::uint64_t>(half), static_cast<std::uint64_t>(number)};
          sums[static_cast<std::size_t>(layer)][static_cast<std::size_t>(half)].push_back(
              counter_uniform(words));
        }
      }
    return sums;
  }
};

}  // namespace

std::unique_ptr<Statistics> random(const CausalLM& model, const StatisticsOptions& options) {
  return std::make_unique<Random>(model, options);
}

}  // namespace espalier::criteria
