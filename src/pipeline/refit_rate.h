#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

namespace espalier {

/// What one rank made of a refit's own arithmetic (refit/flops.h), beside its forward passes.
struct RefitRates {
  /// Of the matrix, and of the tokens that were added at once.
  std::int64_t inputs = 0, outputs = 0, rows = 0;
  double sums_flops = 0, sums_seconds = 0, sums_processor_seconds = 0;
  double solving_flops = 0, solving_seconds = 0, solving_processor_seconds = 0;
};

/// Times the sums of one fold over so many tokens at once, for a model of `dtype`, and the attempt
/// of one ridge on what they come to; each at least twice and for `least_seconds`, after a first
/// time that does not count. Random data. Not collective.
RefitRates time_refit(std::int64_t inputs, std::int64_t outputs, std::int64_t rows,
                      at::ScalarType dtype, at::Device device, double least_seconds);

}  // namespace espalier
