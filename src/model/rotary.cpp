#include "espalier/model/rotary.h"

#include <numbers>

#include <ATen/ATen.h>

namespace espalier {
namespace {

/// The rescaling of Llama 3.1: wavelengths beyond the original context are stretched by `factor`,
/// short ones are kept, those between are blended.
at::Tensor rescale_llama3(const at::Tensor& inverse_frequency, const RopeConfig& rope) {
  const double context = static_cast<double>(rope.original_max_positions);
  const double low_wavelength = context / rope.low_freq_factor;
  const double high_wavelength = context / rope.high_freq_factor;
  const at::Tensor wavelength = at::reciprocal(inverse_frequency) * (2 * std::numbers::pi);
  const at::Tensor stretched =
      at::where(wavelength > low_wavelength, inverse_frequency / rope.factor, inverse_frequency);
  const at::Tensor blend = (at::reciprocal(wavelength) * context - rope.low_freq_factor) /
                           (rope.high_freq_factor - rope.low_freq_factor);
  const at::Tensor blended = (1 - blend) * stretched / rope.factor + blend * stretched;
  const at::Tensor is_between = at::logical_and(at::logical_not(wavelength < high_wavelength),
                                                at::logical_not(wavelength > low_wavelength));
  return at::where(is_between, blended, stretched);
}

}  // namespace

RotaryTable rotary_table(const ModelConfig& config, std::int64_t tokens, at::ScalarType dtype,
                         at::Device device) {
  const at::Tensor pair = at::arange(0, config.head_dim, 2, at::kLong).to(at::kFloat);
  at::Tensor inverse_frequency = at::reciprocal(
      at::pow(at::Scalar(config.rope.theta), pair / static_cast<double>(config.head_dim)));
  if (config.rope.type == RopeConfig::Type::llama3)
    inverse_frequency = rescale_llama3(inverse_frequency, config.rope);
  const at::Tensor position = at::arange(tokens, at::kLong).to(at::kFloat);
  const at::Tensor angle = position.unsqueeze(1) * inverse_frequency.unsqueeze(0);
  const at::Tensor both_halves = at::cat({angle, angle}, 1);
  return {both_halves.cos().to(device, dtype), both_halves.sin().to(device, dtype)};
}

at::Tensor apply_rotary(const at::Tensor& x_BHTE, const RotaryTable& table) {
  const std::int64_t half = x_BHTE.size(-1) / 2;
  const at::Tensor rotated =
      at::cat({-x_BHTE.narrow(-1, half, half), x_BHTE.narrow(-1, 0, half)}, -1);
  return x_BHTE * table.cos_TE + rotated * table.sin_TE;
}

}  // namespace espalier
