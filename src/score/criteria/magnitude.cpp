#include <ATen/ATen.h>

#include "criteria.h"
#include "espalier/score/unit_sums.h"
#include "without_data.h"

namespace espalier::criteria {
namespace {

class Magnitude final : public WithoutData {
 public:
  Magnitude(const CausalLM& model, const StatisticsOptions& options)
      : WithoutData(model, options) {}

  UnitSums finish(const Mixture&, Range layers) const override {
    UnitSums sums(static_cast<std::size_t>(model().layers()));
    Problems problems;
    const at::ScalarType wide = model().options().dtype == at::kDouble ? at::kDouble : at::kFloat;
    for (std::int64_t layer = layers.begin; layer < layers.end; ++layer)
      for (const UnitKind half : {UnitKind::attention, UnitKind::mlp})
        if (is_scored(options().scored, layer, half) &&
            unit_count(model(), unit(), layer, half) > 0)
          sums[static_cast<std::size_t>(layer)][static_cast<std::size_t>(half)] =
              sum_over_unit_tensors(
                  model(), unit(), layer, half,
                  [&](TensorRole role, const Lines& lines) {
                    return lines.of(model().layer(layer).by_role(role)).to(wide).abs();
                  },
                  problems);
    problems.throw_if_any();
    return sums;
  }
};

}  // namespace

std::unique_ptr<Statistics> magnitude(const CausalLM& model, const StatisticsOptions& options) {
  return std::make_unique<Magnitude>(model, options);
}

}  // namespace espalier::criteria
