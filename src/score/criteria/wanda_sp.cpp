#include <cmath>

#include "criteria.h"
#include "espalier/model/gate.h"
#include "espalier/score/sums_by_domain.h"
#include "espalier/score/unit_sums.h"

namespace espalier::criteria {
namespace {

/// Sums of squares of every entry at the gates.
class WandaSums final : public SumsByDomain {
 public:
  WandaSums(const CausalLM& model, const StatisticsOptions& options)
      : SumsByDomain(model, options) {}

  Needs needs() const override { return Needs::inputs; }
  bool wants_input(std::int64_t layer, UnitKind half) const override {
    return is_observed(layer, half);
  }
  std::int64_t sums_of(const LayerWidths& widths, UnitKind half) const override {
    return gate_entries(widths, half, model().config());
  }
  void observe_input(std::int64_t layer, UnitKind half, const at::Tensor& input_BTU,
                     const at::Tensor& real_BT) override {
    add(layer, half, sums_of_squares(input_BTU, real_BT));
  }

 private:
  std::vector<double> value(std::int64_t layer, UnitKind half,
                            const std::vector<std::span<const double>>& by_domain,
                            const Mixture& mixture) const override {
    std::vector<double> coefficients;
    for (std::size_t d = 0; d < by_domain.size(); ++d) coefficients.push_back(mixture.per_token(d));
    const std::vector<double> squares = weighted_sum(by_domain, coefficients);
    std::vector<double> entries = column_sums(model(), layer, half, ColumnNorm::absolute);
    for (std::size_t e = 0; e < entries.size(); ++e) entries[e] *= std::sqrt(squares[e]);
    return entries_to_units(model(), unit(), layer, half, entries);
  }
};

}  // namespace

std::unique_ptr<Statistics> wanda_sp(const CausalLM& model, const StatisticsOptions& options) {
  return std::make_unique<WandaSums>(model, options);
}

}  // namespace espalier::criteria
