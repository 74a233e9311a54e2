#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "espalier/calib/option_rows.h"

namespace espalier {

/// What a model chose in one item: options, counted from 0. `by_length` is absent where the file
/// has no /normalizer.
struct Choice {
  std::int64_t option = 0;
  std::optional<std::int64_t> by_length;
};

/// The option of the i-th item with the highest log likelihood, and that with the highest
/// log likelihood per character (value / normalizer); of equal ones the first. `sums` is [rows].
Choice choice_of(const OptionRows& options, std::span<const double> sums, std::int64_t item);

/// A share of items and its standard error: the sample deviation (n - 1) of the 0s and 1s over
/// sqrt(n), as lm-evaluation-harness gives it; absent for one item.
struct Share01 {
  double mean = 0;
  std::optional<double> standard_error;
};
Share01 share_of_ones(std::int64_t ones, std::int64_t n);

}  // namespace espalier
