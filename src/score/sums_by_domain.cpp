#include "espalier/score/sums_by_domain.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "espalier/core/error.h"
#include "espalier/model/tensor_ops.h"
#include "espalier/score/unit_sums.h"

namespace espalier {

SumsByDomain::SumsByDomain(const CausalLM& model, const StatisticsOptions& options)
    : Statistics(model, options.unit), scored_(options.scored) {
  sums_.resize(options.domains);
  clear();
}

template <class F>
void SumsByDomain::for_each_observed(Range layers, F&& f) const {
  for (std::int64_t layer = layers.begin; layer < layers.end; ++layer)
    for (const UnitKind half : {UnitKind::attention, UnitKind::mlp})
      if (is_observed(layer, half)) f(layer, half);
}

bool SumsByDomain::is_observed(std::int64_t layer, UnitKind half) const {
  return is_scored(scored_, layer, half) && unit_count(model(), unit(), layer, half) > 0;
}

std::int64_t SumsByDomain::count(std::int64_t layer, UnitKind half) const {
  return sums_of(model().widths(layer), half);
}

void SumsByDomain::clear() {
  for (auto& domain : sums_) domain.assign(static_cast<std::size_t>(model().layers()), {});
  reduced_.assign(sums_.size(), UnitSums(static_cast<std::size_t>(model().layers())));
}

void SumsByDomain::add(std::int64_t layer, UnitKind half, const at::Tensor& numbers) {
  at::Tensor& sum =
      sums_.at(domain())[static_cast<std::size_t>(layer)][static_cast<std::size_t>(half)];
  if (sum.defined())
    sum.add_(numbers);
  else
    sum = numbers;
}

std::vector<UnitSums> SumsByDomain::host_sums(Range layers) const {
  std::vector<UnitSums> rows(sums_.size(), UnitSums(static_cast<std::size_t>(model().layers())));
  for (std::size_t d = 0; d < rows.size(); ++d)
    for_each_observed(layers, [&](std::int64_t layer, UnitKind half) {
      const auto l = static_cast<std::size_t>(layer), k = static_cast<std::size_t>(half);
      const at::Tensor& sum = sums_[d][l][k];
      rows[d][l][k] = sum.defined()
                          ? to_doubles(sum)
                          : std::vector<double>(static_cast<std::size_t>(count(layer, half)));
    });
  return rows;
}

void SumsByDomain::restore(const std::vector<UnitSums>& rows) {
  ESPALIER_CHECK(rows.size() == sums_.size(), "restored sums are of another number of domains");
  const at::TensorOptions where = at::TensorOptions(at::kDouble).device(model().options().device);
  for (std::size_t d = 0; d < rows.size(); ++d)
    for (std::size_t l = 0; l < rows[d].size(); ++l)
      for (std::size_t k = 0; k < 2; ++k)
        if (!rows[d][l][k].empty())
          sums_[d][l][k] = at::tensor(rows[d][l][k], at::kDouble).to(where);
}

void SumsByDomain::restore_reduced(std::vector<UnitSums> rows) {
  ESPALIER_CHECK(rows.size() == reduced_.size(), "restored sums are of another number of domains");
  reduced_ = std::move(rows);
}

Problems SumsByDomain::reduce(const ProcessGrid& grid, Range layers) {
  // Small: all sums cross in one collective.
  std::vector<UnitSums> sums = host_sums(layers);
  reduce_unit_sums(sums, grid.data().control());
  for (std::size_t d = 0; d < sums.size(); ++d)
    for (auto l = static_cast<std::size_t>(layers.begin); l < static_cast<std::size_t>(layers.end);
         ++l)
      reduced_[d][l] = std::move(sums[d][l]);
  return {};
}

UnitSums SumsByDomain::of_halves(
    Range layers,
    const std::function<std::vector<double>(
        std::int64_t, UnitKind, const std::vector<std::span<const double>>&)>& of_half) const {
  UnitSums values(static_cast<std::size_t>(model().layers()));
  for_each_observed(layers, [&](std::int64_t layer, UnitKind half) {
    const auto l = static_cast<std::size_t>(layer), k = static_cast<std::size_t>(half);
    std::vector<std::span<const double>> by_domain;
    for (const UnitSums& row : reduced_) by_domain.emplace_back(row[l][k]);
    values[l][k] = of_half(layer, half, by_domain);
  });
  return values;
}

UnitSums SumsByDomain::finish(const Mixture& mixture, Range layers) const {
  return of_halves(layers, [&](std::int64_t layer, UnitKind half,
                               const std::vector<std::span<const double>>& by_domain) {
    return value(layer, half, by_domain, mixture);
  });
}

std::int64_t SumsByDomain::bytes() const {
  std::int64_t bytes = 0;
  for (const auto& domain : sums_)
    for (const auto& layer : domain)
      for (const at::Tensor& sum : layer)
        if (sum.defined()) bytes += static_cast<std::int64_t>(sum.nbytes());
  return bytes;
}

std::int64_t SumsByDomain::bytes_when_full() const {
  std::int64_t numbers = 0;
  for_each_observed(all_layers(),
                    [&](std::int64_t layer, UnitKind half) { numbers += count(layer, half); });
  return numbers * static_cast<std::int64_t>(sums_.size() * sizeof(double));
}

std::vector<double> weighted_sum(const std::vector<std::span<const double>>& by_domain,
                                 std::span<const double> coefficients) {
  std::vector<double> sum(by_domain.empty() ? 0 : by_domain.front().size(), 0.0);
  for (std::size_t d = 0; d < by_domain.size(); ++d)
    if (coefficients[d] != 0)
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += coefficients[d] * by_domain[d][i];
  return sum;
}

namespace {

/// Adds up what `of_rows` makes of the real rows in float64, a block of [rows, entries] at a time.
template <class F>
at::Tensor over_blocks(const at::Tensor& input_BTU, const at::Tensor& real_BT, const F& of_rows) {
  const std::int64_t entries = input_BTU.size(-1);
  const at::Tensor rows_NU = input_BTU.reshape({-1, entries});
  at::Tensor real_N;
  if (real_BT.defined()) real_N = real_BT.reshape({-1}).nonzero().squeeze(-1);
  const std::int64_t rows = real_N.defined() ? real_N.numel() : rows_NU.size(0);
  const std::int64_t block = input_sums_rows(entries);
  at::Tensor sum;
  for (std::int64_t begin = 0; begin < rows; begin += block) {
    const std::int64_t count = std::min(block, rows - begin);
    const at::Tensor some_NU = real_N.defined()
                                   ? rows_NU.index_select(0, real_N.narrow(0, begin, count))
                                   : rows_NU.narrow(0, begin, count);
    const at::Tensor part = of_rows(some_NU.to(at::kDouble));
    sum = sum.defined() ? sum.add_(part) : part;
  }
  return sum;
}

}  // namespace

at::Tensor sums_of_squares(const at::Tensor& input_BTU, const at::Tensor& real_BT) {
  return over_blocks(input_BTU, real_BT,
                     [](const at::Tensor& rows_NU) { return rows_NU.square().sum(0); });
}

at::Tensor sums_and_squares(const at::Tensor& input_BTU, const at::Tensor& real_BT) {
  return over_blocks(input_BTU, real_BT, [](const at::Tensor& rows_NU) {
    return at::stack({rows_NU.sum(0), rows_NU.square().sum(0)}, 1).view({-1});
  });
}

}  // namespace espalier
