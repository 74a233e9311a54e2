#include <map>

#include <ATen/ATen.h>

#include "criteria.h"
#include "espalier/core/error.h"
#include "espalier/model/tensor_ops.h"
#include "espalier/prune/unit_tensors.h"
#include "espalier/score/unit_sums.h"

namespace espalier::criteria {
namespace {

/// |w g| in the accumulator's type, never narrower than float32.
at::Tensor weight_times_gradient(const at::Tensor& weight, const at::Tensor& gradient) {
  const at::ScalarType wide =
      gradient.scalar_type() == at::kBFloat16 ? at::kFloat : gradient.scalar_type();
  return (weight.to(wide) * gradient.to(wide)).abs_();
}

/// A gradient for every weight of the scored units.
class WeightGradients final : public Statistics {
 public:
  WeightGradients(const CausalLM& model, const StatisticsOptions& options)
      : Statistics(model, options.unit),
        options_(options),
        type_(accumulator_type(options.accumulate, model.options().dtype)),
        gradients_(static_cast<std::size_t>(model.layers())),
        unit_sums_(gradients_.size()) {}

  Needs needs() const override { return Needs::gradients; }
  bool sums_over_tokens() const override { return true; }
  std::vector<TensorRole> wants_weights(std::int64_t layer, UnitKind half) const override {
    if (!is_scored(options_.scored, layer, half) || unit_count(model(), unit(), layer, half) == 0)
      return {};
    return unit_roles(model().config(), unit(), half);
  }
  void observe(std::int64_t layer, UnitKind, const HalfGradients& gradients) override {
    for (const WeightGradient& gradient : gradients.weight_gradients) {
      at::Tensor& sum = gradients_[static_cast<std::size_t>(layer)][gradient.role];
      if (sum.defined()) {
        gradient.add_to(sum, 1 / gradients.scale);
      } else {
        sum = gradient.product().to(type_);
        if (gradients.scale != 1) sum.mul_(1 / gradients.scale);
      }
    }
  }
  void clear() override {
    for (auto& layer : gradients_) layer.clear();
    unit_sums_.assign(gradients_.size(), {});
  }

  Problems reduce(const ProcessGrid& grid, Range layers) override {
    const RankGroup& data = grid.data();
    Problems problems;
    if (options_.reduction == Reduction::scores) {
      UnitSums sums = sums_of_own_gradients(layers, problems);
      reduce_unit_sums(std::span(&sums, 1), data.control());
      take(std::move(sums), layers);
      return problems;
    }
    for_each_scored(layers, [&](std::int64_t layer, UnitKind half) {
      for (const TensorRole role : wants_weights(layer, half)) {
        at::Tensor& sum = gradient_or_zero(layer, role);
        all_reduce_sum(sum, data.reducer());
      }
    });
    data.reducer().check();
    take(sums_of_own_gradients(layers, problems), layers);
    return problems;
  }
  UnitSums finish(const Mixture&, Range) const override { return unit_sums_; }
  std::optional<std::vector<UnitSums>> sums_so_far() const override { return std::nullopt; }
  void restore(const std::vector<UnitSums>&) override {
    throw Error(ExitCode::internal, "gradients of weights cannot be restored from sums");
  }

  std::int64_t bytes() const override {
    std::int64_t bytes = 0;
    for (const auto& layer : gradients_)
      for (const auto& [role, sum] : layer) bytes += static_cast<std::int64_t>(sum.nbytes());
    return bytes;
  }
  std::int64_t bytes_when_full() const override {
    std::int64_t numbers = 0;
    for_each_scored(all_layers(), [&](std::int64_t layer, UnitKind half) {
      for (const TensorRole role : wants_weights(layer, half))
        numbers += model().layer(layer).by_role(role).numel();
    });
    return numbers * static_cast<std::int64_t>(at::elementSize(type_));
  }

 private:
  template <class F>
  void for_each_scored(Range layers, F&& f) const {
    for (std::int64_t layer = layers.begin; layer < layers.end; ++layer)
      for (const UnitKind half : {UnitKind::attention, UnitKind::mlp})
        if (!wants_weights(layer, half).empty()) f(layer, half);
  }
  /// A data rank without data has gradient zero, and takes part in the sum all the same.
  at::Tensor& gradient_or_zero(std::int64_t layer, TensorRole role) {
    at::Tensor& sum = gradients_[static_cast<std::size_t>(layer)][role];
    if (!sum.defined())
      sum = at::zeros_like(model().layer(layer).by_role(role), at::TensorOptions(type_));
    return sum;
  }
  UnitSums sums_of_own_gradients(Range layers, Problems& problems) {
    UnitSums sums(static_cast<std::size_t>(model().layers()));
    for_each_scored(layers, [&](std::int64_t layer, UnitKind half) {
      sums[static_cast<std::size_t>(layer)][static_cast<std::size_t>(half)] = sum_over_unit_tensors(
          model(), unit(), layer, half,
          [&](TensorRole role, const Lines& lines) {
            return weight_times_gradient(lines.of(model().layer(layer).by_role(role)),
                                         lines.of(gradient_or_zero(layer, role)));
          },
          problems);
    });
    return sums;
  }
  /// Keeps the sums of these layers, whose gradients nobody needs any more.
  void take(UnitSums sums, Range layers) {
    for (auto l = static_cast<std::size_t>(layers.begin); l < static_cast<std::size_t>(layers.end);
         ++l) {
      unit_sums_[l] = std::move(sums[l]);
      gradients_[l].clear();
    }
  }

  StatisticsOptions options_;
  at::ScalarType type_;
  std::vector<std::map<TensorRole, at::Tensor>> gradients_;
  UnitSums unit_sums_;
};

}  // namespace

std::unique_ptr<Statistics> taylor(const CausalLM& model, const StatisticsOptions& options) {
  return std::make_unique<WeightGradients>(model, options);
}

}  // namespace espalier::criteria
