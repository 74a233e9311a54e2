#include "refit_rate.h"

#include <chrono>
#include <functional>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "espalier/core/pulse.h"
#include "espalier/refit/solve.h"
#include "gemm_rate.h"

namespace espalier {
namespace {

/// Seconds of so many rounds of `work`, which ends them when they are enough.
struct Timed {
  double seconds = 0;
  double processor_seconds = 0;
  std::int64_t rounds = 0;
};

Timed timed(at::Device device, double least_seconds, const std::function<void()>& work) {
  work();
  synchronize(device);
  const auto begin = std::chrono::steady_clock::now();
  const double processor = processor_seconds();
  Timed result;
  while (result.rounds < 2 || result.seconds < least_seconds) {
    work();
    synchronize(device);
    pulse::beat();
    ++result.rounds;
    result.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    result.processor_seconds = processor_seconds() - processor;
  }
  return result;
}

}  // namespace

RefitRates time_refit(std::int64_t inputs, std::int64_t outputs, std::int64_t rows,
                      at::ScalarType dtype, at::Device device, double least_seconds) {
  const c10::NoGradGuard no_gradient;
  const auto product =
      at::TensorOptions(dtype == at::kDouble ? at::kDouble : at::kFloat).device(device);
  const at::TensorOptions wide = product.dtype(at::kDouble);
  const at::Tensor x_NK = at::randn({rows, inputs}, product);
  const at::Tensor y_ND = at::randn({rows, outputs}, product);
  const at::Tensor weights_N1 = at::ones({rows, 1}, product);
  Folds folds;
  for (NormalEquations& fold : folds)
    fold = {at::zeros({inputs, inputs}, wide), at::zeros({inputs, outputs}, wide)};
  const double k = static_cast<double>(inputs), D = static_cast<double>(outputs);
  RefitRates rates;
  rates.inputs = inputs;
  rates.outputs = outputs;
  rates.rows = rows;
  const Timed sums = timed(device, least_seconds, [&] {
    add_tokens(folds[0], {0, inputs}, x_NK, y_ND, weights_N1);
  });
  rates.sums_seconds = sums.seconds;
  rates.sums_processor_seconds = sums.processor_seconds;
  rates.sums_flops = static_cast<double>(sums.rounds) * 2 * static_cast<double>(rows) * k * (k + D);
  folds[1] = folds[0];
  const std::array<at::Tensor, 2> q_KD{folds[0].c_KD, folds[1].c_KD};
  // The same matrices each time, whatever their values: a ridge makes them positive definite.
  const TargetSums target{at::zeros({outputs}, wide), at::ones({outputs}, wide), 1};
  const Timed solving =
      timed(device, least_seconds, [&] { held_out_change(folds, q_KD, target, 1.0); });
  rates.solving_seconds = solving.seconds;
  rates.solving_processor_seconds = solving.processor_seconds;
  rates.solving_flops =
      static_cast<double>(solving.rounds) * 2 * (k * k * k / 3 + 2 * 2 * k * k * D);
  return rates;
}

}  // namespace espalier
