#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "criteria.h"
#include "espalier/model/gate.h"
#include "espalier/score/sums_by_domain.h"
#include "espalier/score/unit_sums.h"

namespace espalier::criteria {
namespace {

/// (value - mean) / deviation, with n - 1; 0 where all are equal.
void standardize(std::vector<double>& values) {
  const auto n = static_cast<double>(values.size());
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
  double squares = 0;
  for (double& value : values) {
    value -= mean;
    squares += value * value;
  }
  const double deviation = n > 1 ? std::sqrt(squares / (n - 1)) : 0;
  for (double& value : values) value = deviation > 0 ? value / deviation : 0.0;
}

/// Sum and sum of squares of every entry at the gates, one behind the other: the variance is a
/// difference of these, so both are in float64.
class FlapSums final : public SumsByDomain {
 public:
  FlapSums(const CausalLM& model, const StatisticsOptions& options)
      : SumsByDomain(model, options) {}

  Needs needs() const override { return Needs::inputs; }
  bool wants_input(std::int64_t layer, UnitKind half) const override {
    return is_observed(layer, half);
  }
  std::int64_t sums_of(const LayerWidths& widths, UnitKind half) const override {
    return 2 * gate_entries(widths, half, model().config());
  }
  void observe_input(std::int64_t layer, UnitKind half, const at::Tensor& input_BTU,
                     const at::Tensor& real_BT) override {
    add(layer, half, sums_and_squares(input_BTU, real_BT));
  }

  std::optional<UnitSums> mean_inputs(const Mixture& mixture) const override {
    const auto [coefficients, tokens] = counted(mixture);
    return of_halves(all_layers(), [&, coefficients = coefficients, tokens = tokens](
                                       std::int64_t, UnitKind,
                                       const std::vector<std::span<const double>>& by_domain) {
      const std::vector<double> sums = weighted_sum(by_domain, coefficients);
      std::vector<double> means(sums.size() / 2);
      for (std::size_t e = 0; e < means.size(); ++e)
        means[e] = tokens > 0 ? sums[2 * e] / tokens : 0.0;
      return means;
    });
  }

  /// The standardisation needs all entries of a half.
  std::int64_t values_of(const LayerWidths& widths, UnitKind half) const override {
    return gate_entries(widths, half, model().config());
  }
  std::vector<double> of_units(UnitKind half, std::vector<double> values,
                               const std::vector<std::int64_t>& heads) const override {
    if (values.empty()) return values;
    standardize(values);
    if (half == UnitKind::mlp) return values;
    std::vector<double> units;
    auto next = values.begin();
    for (const std::int64_t count : heads) {
      const auto end = next + count * model().config().head_dim;
      units.push_back(std::accumulate(next, end, 0.0) / static_cast<double>(end - next));
      next = end;
    }
    return units;
  }

 private:
  /// What a token of each domain counts, and what all count together.
  static std::pair<std::vector<double>, double> counted(const Mixture& mixture) {
    std::vector<double> coefficients;
    double tokens = 0;
    for (std::size_t d = 0; d < mixture.share.size(); ++d) {
      coefficients.push_back(mixture.per_token(d));
      tokens += coefficients[d] * mixture.tokens[d];
    }
    return {coefficients, tokens};
  }

  std::vector<double> value(std::int64_t layer, UnitKind half,
                            const std::vector<std::span<const double>>& by_domain,
                            const Mixture& mixture) const override {
    const auto [coefficients, tokens] = counted(mixture);
    const std::vector<double> sums = weighted_sum(by_domain, coefficients);
    std::vector<double> entries = column_sums(model(), layer, half, ColumnNorm::squared);
    for (std::size_t e = 0; e < entries.size(); ++e) {
      const double sum = sums[2 * e], squares = sums[2 * e + 1];
      const double variance = tokens > 1 ? (squares - sum * sum / tokens) / (tokens - 1) : 0.0;
      entries[e] *= std::max(variance, 0.0);
    }
    return entries;
  }
};

}  // namespace

std::unique_ptr<Statistics> flap(const CausalLM& model, const StatisticsOptions& options) {
  return std::make_unique<FlapSums>(model, options);
}

}  // namespace espalier::criteria
