#include "espalier/score/statistics.h"

#include <limits>
#include <map>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/core/fault.h"
#include "espalier/core/hash.h"
#include "espalier/model/tensor_ops.h"
#include "espalier/prune/unit_tensors.h"
#include "espalier/score/unit_sums.h"

namespace espalier {
namespace {

/// |w g| in the accumulator's type, never narrower than float32.
at::Tensor weight_times_gradient(const at::Tensor& weight, const at::Tensor& gradient) {
  const at::ScalarType wide =
      gradient.scalar_type() == at::kBFloat16 ? at::kFloat : gradient.scalar_type();
  return (weight.to(wide) * gradient.to(wide)).abs_();
}

class TaylorStatistics final : public Statistics {
 public:
  TaylorStatistics(const CausalLM& model, const StatisticsOptions& options)
      : model_(model),
        options_(options),
        type_(accumulator_type(options.accumulate, model.options().dtype)),
        gradients_(static_cast<std::size_t>(model.layers())) {}

  bool wants_gate(std::int64_t, UnitKind) const override { return false; }
  std::vector<TensorRole> wants_weights(std::int64_t layer, UnitKind half) const override {
    if (!is_scored(options_.scored, layer, half) ||
        unit_count(model_, options_.unit, layer, half) == 0)
      return {};
    return unit_roles(model_.config(), options_.unit, half);
  }
  void observe(std::int64_t layer, UnitKind, const HalfGradients& gradients) override {
    for (const auto& [role, gradient] : gradients.weight_gradients) {
      at::Tensor& sum = gradients_[static_cast<std::size_t>(layer)][role];
      if (sum.defined()) {
        sum.add_(gradient, 1 / gradients.scale);  // in the wider of both types
      } else {
        sum = gradient.to(type_);
        if (gradients.scale != 1) sum.mul_(1 / gradients.scale);
      }
    }
  }
  void clear() override {
    for (auto& layer : gradients_) layer.clear();
    unit_sums_.clear();
  }

  Problems reduce(const RankGroup& data) override {
    Problems problems;
    if (options_.reduction == Reduction::scores) {
      unit_sums_ = sums_of_own_gradients(problems);
      reduce_unit_sums(unit_sums_, data.control());
      return problems;
    }
    for_each_scored([&](std::int64_t layer, UnitKind half) {
      for (const TensorRole role : wants_weights(layer, half)) {
        at::Tensor& sum = gradient_or_zero(layer, role);
        all_reduce_sum(sum, data.reducer());
      }
    });
    data.reducer().check();
    unit_sums_ = sums_of_own_gradients(problems);
    return problems;
  }
  UnitSums finish() const override { return unit_sums_; }
  std::optional<UnitSums> sums_so_far() const override { return std::nullopt; }
  void restore(const UnitSums&) override {
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
    for_each_scored([&](std::int64_t layer, UnitKind half) {
      for (const TensorRole role : wants_weights(layer, half))
        numbers += model_.layer(layer).by_role(role).numel();
    });
    return numbers * static_cast<std::int64_t>(at::elementSize(type_));
  }

 private:
  template <class F>
  void for_each_scored(F&& f) const {
    for (std::int64_t layer = 0; layer < model_.layers(); ++layer)
      for (const UnitKind half : {UnitKind::attention, UnitKind::mlp})
        if (!wants_weights(layer, half).empty()) f(layer, half);
  }
  /// A data rank without data has gradient zero, and takes part in the sum all the same.
  at::Tensor& gradient_or_zero(std::int64_t layer, TensorRole role) {
    at::Tensor& sum = gradients_[static_cast<std::size_t>(layer)][role];
    if (!sum.defined())
      sum = at::zeros_like(model_.layer(layer).by_role(role), at::TensorOptions(type_));
    return sum;
  }
  UnitSums sums_of_own_gradients(Problems& problems) {
    UnitSums sums(static_cast<std::size_t>(model_.layers()));
    for_each_scored([&](std::int64_t layer, UnitKind half) {
      sums[static_cast<std::size_t>(layer)][static_cast<std::size_t>(half)] = sum_over_unit_tensors(
          model_, options_.unit, layer, half,
          [&](TensorRole role) {
            return weight_times_gradient(model_.layer(layer).by_role(role),
                                         gradient_or_zero(layer, role));
          },
          problems);
    });
    return sums;
  }

  const CausalLM& model_;
  StatisticsOptions options_;
  at::ScalarType type_;
  std::vector<std::map<TensorRole, at::Tensor>> gradients_;
  UnitSums unit_sums_;
};

class GateStatistics final : public Statistics {
 public:
  GateStatistics(const CausalLM& model, const StatisticsOptions& options)
      : model_(model), options_(options), sums_(static_cast<std::size_t>(model.layers())) {}

  bool wants_gate(std::int64_t layer, UnitKind half) const override {
    return is_scored(options_.scored, layer, half) &&
           unit_count(model_, options_.unit, layer, half) > 0;
  }
  std::vector<TensorRole> wants_weights(std::int64_t, UnitKind) const override { return {}; }

  void observe(std::int64_t layer, UnitKind half, const HalfGradients& gradients) override {
    const at::ScalarType wide = model_.options().dtype == at::kDouble ? at::kDouble : at::kFloat;
    const at::Tensor product_BTU = gradients.gate.to(wide) * gradients.gate_gradient.to(wide);
    const at::Tensor entry_BU = product_BTU.sum(1).to(at::kDouble).mul_(1 / gradients.scale);
    at::Tensor units_BU = half == UnitKind::mlp ? entry_BU : sum_heads(layer, entry_BU);
    if (options_.criterion == Criterion::taylor_gate_sample) units_BU = units_BU.abs();
    at::Tensor& sum = sums_[static_cast<std::size_t>(layer)][static_cast<std::size_t>(half)];
    const at::Tensor units_U = units_BU.sum(0);
    if (sum.defined())
      sum.add_(units_U);
    else
      sum = units_U;
  }
  void clear() override {
    for (auto& layer : sums_) layer = {};
  }
  Problems reduce(const RankGroup& data) override {
    // Small: all layers' sums cross in one collective.
    UnitSums host = host_sums();
    reduce_unit_sums(host, data.control());
    reduced_ = std::move(host);
    return {};
  }
  UnitSums finish() const override {
    UnitSums sums = reduced_;
    for (std::size_t l = 0; l < sums.size(); ++l)
      for (std::size_t k = 0; k < 2; ++k)
        for (double& value : sums[l][k]) value = std::abs(value);
    return sums;
  }
  std::optional<UnitSums> sums_so_far() const override { return host_sums(); }
  void restore(const UnitSums& sums) override {
    const at::TensorOptions where = at::TensorOptions(at::kDouble).device(model_.options().device);
    for (std::size_t l = 0; l < sums.size(); ++l)
      for (std::size_t k = 0; k < 2; ++k)
        if (!sums[l][k].empty()) sums_[l][k] = at::tensor(sums[l][k], at::kDouble).to(where);
  }
  std::int64_t bytes() const override {
    std::int64_t bytes = 0;
    for (const auto& layer : sums_)
      for (const at::Tensor& sum : layer)
        if (sum.defined()) bytes += static_cast<std::int64_t>(sum.nbytes());
    return bytes;
  }
  std::int64_t bytes_when_full() const override {
    std::int64_t numbers = 0;
    for (std::int64_t layer = 0; layer < model_.layers(); ++layer)
      for (const UnitKind half : {UnitKind::attention, UnitKind::mlp})
        if (wants_gate(layer, half)) numbers += unit_count(model_, options_.unit, layer, half);
    return numbers * static_cast<std::int64_t>(sizeof(double));
  }

 private:
  at::Tensor sum_heads(std::int64_t layer, const at::Tensor& entry_BU) const {
    const at::Tensor heads_BH =
        entry_BU.view({entry_BU.size(0), -1, model_.config().head_dim}).sum(2);
    return heads_to_units(model_, options_.unit, layer, heads_BH);
  }
  UnitSums host_sums() const {
    UnitSums host(sums_.size());
    for (std::size_t l = 0; l < sums_.size(); ++l)
      for (const UnitKind half : {UnitKind::attention, UnitKind::mlp}) {
        const auto layer = static_cast<std::int64_t>(l);
        if (!wants_gate(layer, half)) continue;
        const at::Tensor& sum = sums_[l][static_cast<std::size_t>(half)];
        host[l][static_cast<std::size_t>(half)] =
            sum.defined() ? to_doubles(sum)
                          : std::vector<double>(static_cast<std::size_t>(
                                unit_count(model_, options_.unit, layer, half)));
      }
    return host;
  }

  const CausalLM& model_;
  StatisticsOptions options_;
  std::vector<std::array<at::Tensor, 2>> sums_;
  UnitSums reduced_;
};

}  // namespace

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
      return std::make_unique<TaylorStatistics>(model, options);
    case Criterion::taylor_gate:
    case Criterion::taylor_gate_sample:
      return std::make_unique<GateStatistics>(model, options);
    case Criterion::wanda_sp:
    case Criterion::flap:
    case Criterion::magnitude:
    case Criterion::random:
      break;
  }
  throw Error(ExitCode::internal, "this criterion collects no statistics");
}

UnitSums magnitude_sums(const CausalLM& model, const StatisticsOptions& options) {
  UnitSums sums(static_cast<std::size_t>(model.layers()));
  Problems problems;
  const at::ScalarType wide = model.options().dtype == at::kDouble ? at::kDouble : at::kFloat;
  for (std::int64_t layer = 0; layer < model.layers(); ++layer)
    for (const UnitKind half : {UnitKind::attention, UnitKind::mlp})
      if (is_scored(options.scored, layer, half) &&
          unit_count(model, options.unit, layer, half) > 0)
        sums[static_cast<std::size_t>(layer)][static_cast<std::size_t>(half)] =
            sum_over_unit_tensors(
                model, options.unit, layer, half,
                [&](TensorRole role) { return model.layer(layer).by_role(role).to(wide).abs(); },
                problems);
  problems.throw_if_any();
  return sums;
}

UnitSums random_sums(const CausalLM& model, const StatisticsOptions& options, std::int64_t seed,
                     std::int64_t iteration) {
  UnitSums sums(static_cast<std::size_t>(model.layers()));
  for (std::int64_t layer = 0; layer < model.layers(); ++layer)
    for (const UnitKind half : {UnitKind::attention, UnitKind::mlp}) {
      if (!is_scored(options.scored, layer, half)) continue;
      for (const std::int32_t unit : unit_numbers(model.widths(layer), options.unit, half)) {
        const std::uint64_t words[] = {
            static_cast<std::uint64_t>(seed), static_cast<std::uint64_t>(iteration),
            static_cast<std::uint64_t>(layer), static_cast<std::uint64_t>(half),
            static_cast<std::uint64_t>(unit)};
        sums[static_cast<std::size_t>(layer)][static_cast<std::size_t>(half)].push_back(
            counter_uniform(words));
      }
    }
  return sums;
}

}  // namespace espalier
