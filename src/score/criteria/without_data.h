#pragma once

#include "espalier/score/statistics.h"

namespace espalier::criteria {

/// A criterion that looks at no data: nothing is observed, summed or kept.
class WithoutData : public Statistics {
 public:
  Needs needs() const override { return Needs::weights; }
  void clear() override {}
  Problems reduce(const ProcessGrid&, Range) override { return {}; }
  std::optional<std::vector<UnitSums>> sums_so_far() const override {
    return std::vector<UnitSums>();
  }
  void restore(const std::vector<UnitSums>&) override {}
  std::int64_t bytes() const override { return 0; }
  std::int64_t bytes_when_full() const override { return 0; }

 protected:
  WithoutData(const CausalLM& model, const StatisticsOptions& options)
      : Statistics(model, options.unit), options_(options) {}
  const StatisticsOptions& options() const { return options_; }

 private:
  StatisticsOptions options_;
};

}  // namespace espalier::criteria
