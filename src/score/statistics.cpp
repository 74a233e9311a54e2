#include "espalier/score/statistics.h"

#include <algorithm>

#include "criteria/criteria.h"
#include "espalier/score/unit_sums.h"

namespace espalier {

double Mixture::per_token(std::size_t d) const {
  const auto with_share =
      std::count_if(share.begin(), share.end(), [](double value) { return value > 0; });
  return share[d] * static_cast<double>(with_share);
}

std::int64_t Statistics::values_of(const LayerWidths& widths, UnitKind half) const {
  return static_cast<std::int64_t>(unit_numbers(widths, unit_, half).size());
}

std::vector<double> Statistics::of_units(UnitKind, std::vector<double> values,
                                         const std::vector<std::int64_t>&) const {
  return values;
}

std::optional<UnitSums> Statistics::mean_inputs(const Mixture&) const { return std::nullopt; }

std::int64_t Statistics::sums_of(const LayerWidths& widths, UnitKind half) const {
  return static_cast<std::int64_t>(unit_numbers(widths, unit_, half).size());
}

std::int64_t lowest_half(const ScoredHalves& scored) {
  for (std::size_t l = 0; l < scored.size(); ++l)
    for (std::size_t k = 0; k < 2; ++k)
      if (scored[l][k]) return static_cast<std::int64_t>(2 * l + k);
  return static_cast<std::int64_t>(2 * scored.size());
}

at::ScalarType accumulator_type(Accumulate accumulate, at::ScalarType model) {
  switch (accumulate) {
    case Accumulate::automatic:
      return model == at::kDouble ? at::kDouble : at::kFloat;
    case Accumulate::float32:
      return at::kFloat;
    case Accumulate::float64:
      return at::kDouble;
    case Accumulate::bfloat16:
      return at::kBFloat16;
  }
  return at::kFloat;
}

std::unique_ptr<Statistics> make_statistics(const CausalLM& model,
                                            const StatisticsOptions& options) {
  switch (options.criterion) {
    case Criterion::taylor:
      return criteria::taylor(model, options);
    case Criterion::taylor_gate:
      return criteria::taylor_gate(model, options);
    case Criterion::taylor_gate_sample:
      return criteria::taylor_gate_sample(model, options);
    case Criterion::wanda_sp:
      return criteria::wanda_sp(model, options);
    case Criterion::flap:
      return criteria::flap(model, options);
    case Criterion::obs:
      return criteria::obs(model, options);
    case Criterion::magnitude:
      return criteria::magnitude(model, options);
    case Criterion::random:
      return criteria::random(model, options);
  }
  return nullptr;
}

}  // namespace espalier
