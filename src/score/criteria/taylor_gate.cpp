#include <cmath>

#include <ATen/ATen.h>

#include "criteria.h"
#include "espalier/model/fused.h"
#include "espalier/score/sums_by_domain.h"
#include "espalier/score/unit_sums.h"

namespace espalier::criteria {
namespace {

/// Sums over a sample's tokens of h dh, added up over samples with their signs or without.
class GateSums final : public SumsByDomain {
 public:
  enum class Signs { kept, dropped_per_sample };

  GateSums(const CausalLM& model, const StatisticsOptions& options, Signs signs)
      : SumsByDomain(model, options), signs_(signs) {}

  Needs needs() const override { return Needs::gradients; }
  bool sums_over_tokens() const override { return true; }
  bool wants_gate(std::int64_t layer, UnitKind half) const override {
    return is_observed(layer, half);
  }

  void observe(std::int64_t layer, UnitKind half, const HalfGradients& gradients) override {
    const at::Tensor entry_BU =
        token_dots(gradients.gate, gradients.gate_gradient).mul_(1 / gradients.scale);
    at::Tensor units_BU = half == UnitKind::mlp ? entry_BU : sum_heads(layer, entry_BU);
    if (signs_ == Signs::dropped_per_sample) {
      if (gradients.samples_SB.defined()) units_BU = at::mm(gradients.samples_SB, units_BU);
      units_BU = units_BU.abs();
    }
    add(layer, half, units_BU.sum(0));
  }

 private:
  at::Tensor sum_heads(std::int64_t layer, const at::Tensor& entry_BU) const {
    const at::Tensor heads_BH =
        entry_BU.view({entry_BU.size(0), -1, model().config().head_dim}).sum(2);
    return heads_to_units(model(), unit(), layer, heads_BH);
  }
  std::vector<double> value(std::int64_t, UnitKind,
                            const std::vector<std::span<const double>>& by_domain,
                            const Mixture& mixture) const override {
    std::vector<double> sum = weighted_sum(by_domain, mixture.share);
    for (double& value : sum) value = std::abs(value);
    return sum;
  }

  Signs signs_;
};

}  // namespace

std::unique_ptr<Statistics> taylor_gate(const CausalLM& model, const StatisticsOptions& options) {
  return std::make_unique<GateSums>(model, options, GateSums::Signs::kept);
}
std::unique_ptr<Statistics> taylor_gate_sample(const CausalLM& model,
                                               const StatisticsOptions& options) {
  return std::make_unique<GateSums>(model, options, GateSums::Signs::dropped_per_sample);
}

}  // namespace espalier::criteria
