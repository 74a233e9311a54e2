#pragma once

#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include <ATen/ATen.h>

#include "espalier/score/obs_order.h"

/// A down_proj of K inputs and D outputs in float64 whose matrices are of N random tokens; one
/// input is a unit.
inline espalier::ObsSublayer random_sublayer(std::int64_t K, std::int64_t D, std::int64_t N,
                                             double damping) {
  at::manual_seed(1);
  // Inputs that depend on each other, as activations do.
  const at::Tensor x_NK =
      at::randn({N, K / 4}, at::kDouble).mm(at::randn({K / 4, K}, at::kDouble)) /
          std::sqrt(static_cast<double>(K) / 4) +
      at::randn({N, K}, at::kDouble) * 0.5;
  const at::Tensor g_ND = at::randn({2 * D, D}, at::kDouble);
  espalier::ObsSublayer sublayer;
  sublayer.gram_KK = x_NK.t().mm(x_NK) / static_cast<double>(N);
  sublayer.curvature_DD = g_ND.t().mm(g_ND);
  sublayer.reader_KD = at::randn({K, D}, at::kDouble);
  sublayer.inputs_of_unit.assign(static_cast<std::size_t>(K), 1);
  sublayer.damping = damping;
  return sublayer;
}

/// Units by score, the lowest first.
inline std::vector<std::int64_t> order_of(const std::vector<double>& scores) {
  std::vector<std::int64_t> order(scores.size());
  std::iota(order.begin(), order.end(), std::int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return scores[static_cast<std::size_t>(a)] < scores[static_cast<std::size_t>(b)];
  });
  return order;
}
