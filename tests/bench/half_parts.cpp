// What lies between the products of a half layer, ours against LibTorch's own operations, forward
// and back, in one process on the same numbers (model/fused.h). Prints the processor time of each
// and the ratio.
//
//   half_parts [B] [T] [D] [F] [H]      default 4 256 1024 2816 16; threads by OMP_NUM_THREADS

#include <time.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <limits>
#include <vector>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <malloc.h>
#include <torch/csrc/autograd/autograd.h>

#include "espalier/model/fused.h"

namespace {

using espalier::RotaryTable;
using Operation = std::function<at::Tensor(const std::vector<at::Tensor>&)>;

double processor_seconds() {
  timespec now{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

/// The least of several rounds, forward and back.
std::pair<double, double> timed(const Operation& operation, std::vector<at::Tensor> inputs,
                                const at::Tensor& gradient) {
  for (at::Tensor& input : inputs) input = input.detach().requires_grad_(true);
  double forward = std::numeric_limits<double>::infinity(), back = forward;
  for (int round = 0; round < 12; ++round) {
    const double begin = processor_seconds();
    const at::Tensor output = operation(inputs);
    const double middle = processor_seconds();
    torch::autograd::grad({output}, inputs, {gradient});
    const double end = processor_seconds();
    if (round < 2) continue;
    forward = std::min(forward, middle - begin);
    back = std::min(back, end - middle);
  }
  return {forward, back};
}

void compare(const char* name, const Operation& ours, const Operation& theirs,
             const std::vector<at::Tensor>& inputs) {
  const at::Tensor gradient = at::randn_like(ours(inputs));
  const auto a = timed(ours, inputs, gradient), b = timed(theirs, inputs, gradient);
  fmt::print("{:<10} forward {:8.3f} of {:8.3f} ms, back {:8.3f} of {:8.3f} ms, both {:.2f} x\n",
             name, 1e3 * a.first, 1e3 * b.first, 1e3 * a.second, 1e3 * b.second,
             (b.first + b.second) / (a.first + a.second));
}

void compare_forward(const char* name, const std::function<void()>& ours,
                     const std::function<void()>& theirs) {
  double least[2] = {std::numeric_limits<double>::infinity(),
                     std::numeric_limits<double>::infinity()};
  for (int round = 0; round < 12; ++round)
    for (int i = 0; i < 2; ++i) {
      const double begin = processor_seconds();
      i == 0 ? ours() : theirs();
      if (round >= 2) least[i] = std::min(least[i], processor_seconds() - begin);
    }
  fmt::print("{:<10} forward {:8.3f} of {:8.3f} ms, {:.2f} x\n", name, 1e3 * least[0],
             1e3 * least[1], least[1] / least[0]);
}

}  // namespace

int main(int count, char** values) {
  const auto argument = [&](int i, std::int64_t otherwise) {
    return count > i ? std::int64_t{std::atoll(values[i])} : otherwise;
  };
  const std::int64_t B = argument(1, 4), T = argument(2, 256), D = argument(3, 1024),
                     F = argument(4, 2816), H = argument(5, 16), E = D / H;
  ::mallopt(M_MMAP_THRESHOLD, 32 << 20);  // as the program does
  ::mallopt(M_TRIM_THRESHOLD, 512 << 20);
  namespace composed = espalier::composed;
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    fmt::print("{}\n", at::toString(type));
    const auto random = [&](at::IntArrayRef shape) { return at::randn(shape).to(type); };
    const at::Tensor weight_D = random({D});
    compare(
        "norm", [&](const auto& x) { return espalier::rms_norm(x[0], weight_D, 1e-6); },
        [&](const auto& x) { return composed::rms_norm(x[0], weight_D, 1e-6); },
        {random({B, T, D})});
    const RotaryTable table{random({T, E}), random({T, E})};
    compare(
        "rotation", [&](const auto& x) { return espalier::rotated_heads(x[0], table); },
        [&](const auto& x) { return composed::rotated_heads(x[0], table); },
        {random({B, T, H, E})});
    const std::vector<at::Tensor> gate{random({B, T, F}), random({B, T, F})};
    compare_forward(
        "dots", [&] { espalier::token_dots(gate[0], gate[1]); },
        [&] { composed::token_dots(gate[0], gate[1]); });
  }
}
