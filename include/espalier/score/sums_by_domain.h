#pragma once

#include <array>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

#include "espalier/score/statistics.h"

namespace espalier {

/// Statistics that are a few numbers per unit, kept in float64 for every domain by itself. A
/// criterion adds to them as it observes, and says what one half's sums come to.
class SumsByDomain : public Statistics {
 public:
  bool separates_domains() const override { return true; }
  void clear() override;
  Problems reduce(const ProcessGrid& grid, Range layers) override;
  UnitSums finish(const Mixture& mixture, Range layers) const override;
  std::optional<std::vector<UnitSums>> sums_so_far() const override {
    return host_sums(all_layers());
  }
  void restore(const std::vector<UnitSums>& rows) override;
  std::vector<UnitSums> reduced_sums() const override { return reduced_; }
  void restore_reduced(std::vector<UnitSums> rows) override;
  std::int64_t bytes() const override;
  std::int64_t bytes_when_full() const override;

 protected:
  SumsByDomain(const CausalLM& model, const StatisticsOptions& options);

  /// Whether there is anything to sum in this half here.
  bool is_observed(std::int64_t layer, UnitKind half) const;
  /// Adds [sums_of] numbers in float64 to those of the domain at hand.
  void add(std::int64_t layer, UnitKind half, const at::Tensor& numbers);
  /// This rank's values of one half from its reduced sums: by_domain[d] has sums_of() numbers.
  virtual std::vector<double> value(std::int64_t layer, UnitKind half,
                                    const std::vector<std::span<const double>>& by_domain,
                                    const Mixture& mixture) const = 0;
  /// What `of_half` makes of the reduced sums of each half of these layers that is observed here,
  /// by_domain as in value().
  UnitSums of_halves(Range layers,
                     const std::function<std::vector<double>(
                         std::int64_t layer, UnitKind half,
                         const std::vector<std::span<const double>>& by_domain)>& of_half) const;

 private:
  template <class F>
  void for_each_observed(Range layers, F&& f) const;
  std::int64_t count(std::int64_t layer, UnitKind half) const;
  std::vector<UnitSums> host_sums(Range layers) const;

  ScoredHalves scored_;
  /// [domain][layer][UnitKind]; undefined = zero.
  std::vector<std::vector<std::array<at::Tensor, 2>>> sums_;
  std::vector<UnitSums> reduced_;
};

/// sum_d coefficients[d] * by_domain[d].
std::vector<double> weighted_sum(const std::vector<std::span<const double>>& by_domain,
                                 std::span<const double> coefficients);

/// Sums over the tokens of `input` [B, T, entries] that are no padding, in float64: of each entry
/// [entries], or with the sums of squares behind each, [2 entries]. Works through blocks of rows,
/// so that little is held in float64 at once (input_sums_bytes, score/unit_sums.h).
at::Tensor sums_of_squares(const at::Tensor& input_BTU, const at::Tensor& real_BT);
at::Tensor sums_and_squares(const at::Tensor& input_BTU, const at::Tensor& real_BT);

}  // namespace espalier
