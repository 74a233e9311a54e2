#pragma once

#include <array>
#include <cstdint>

#include "espalier/model/causal_lm.h"
#include "espalier/model/load.h"

namespace espalier {

/// Products of all linear maps of a rank's shard of a model, once in each direction.
struct GemmSweep {
  enum Direction { forward, input_gradient, weight_gradient };
  std::array<double, 3> flops{};
  std::array<double, 3> seconds{};
  double processor_seconds = 0;

  double all_flops() const { return flops[0] + flops[1] + flops[2]; }
  double all_seconds() const { return seconds[0] + seconds[1] + seconds[2]; }
};

/// Times them on random data, `rows` tokens at once and in the model's dtype: y = x W', dx = dy W,
/// dW = dy' x over every layer's own weights, one after the other as in a pass, and the output
/// projection in the chunks that the loss takes. Nothing else is computed in between. With
/// `layers`, of which the model holds few at a time, the three directions of a layer follow each
/// other, as in a pass that goes layer by layer; reading it does not count, and none is here
/// afterwards. Not collective.
GemmSweep sweep_gemms(const CausalLM& model, std::int64_t rows, StreamedLayers* layers = nullptr);

/// Processor time that all threads of this process took so far.
double processor_seconds();

/// Waits for what a device still computes.
void synchronize(at::Device device);

}  // namespace espalier
