// The order of one down_proj under criterion obs: channels in blocks (score/obs_order.h) against
// channels one by one, in one process on the same matrices. Prints both times and where the orders
// differ.
//
//   obs_order [K] [D]        default 4096 1024; threads by OMP_NUM_THREADS

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include "espalier/score/obs_order.h"
#include "random_sublayer.h"

namespace {

using espalier::ObsSublayer;

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

/// W, G W and P are all up to date after every removal.
std::vector<double> one_by_one(const ObsSublayer& sublayer) {
  const std::int64_t K = sublayer.gram_KK.size(0);
  at::Tensor damped_KK = sublayer.gram_KK.clone();
  damped_KK.diagonal().mul_(1 + sublayer.damping);
  at::Tensor p_KK = at::cholesky_inverse(at::linalg_cholesky(damped_KK));
  at::Tensor w_KD = sublayer.reader_KD.clone();
  at::Tensor m_KD = w_KD.mm(sublayer.curvature_DD);
  at::Tensor fallen_K = at::zeros({K}, at::kDouble);
  std::vector<double> scores(static_cast<std::size_t>(K), std::numeric_limits<double>::infinity());
  double highest = 0;
  for (std::int64_t step = 1; step < K; ++step) {
    const at::Tensor power_K = at::where(fallen_K > 0, 1.0, p_KK.diagonal());
    const at::Tensor e_K = (w_KD * m_KD).sum(1) / power_K + fallen_K;
    const std::int64_t u = e_K.argmin().item<std::int64_t>();
    highest = std::max(highest, e_K[u].item<double>());
    scores[static_cast<std::size_t>(u)] = highest;
    const at::Tensor p_K = p_KK[u].clone(), r_K = p_K / p_K[u];
    const at::Tensor w_D = w_KD[u].clone(), m_D = m_KD[u].clone();
    w_KD.addr_(r_K, w_D, 1, -1);
    m_KD.addr_(r_K, m_D, 1, -1);
    p_KK.addr_(p_K, r_K, 1, -1);
    fallen_K[u].fill_(std::numeric_limits<double>::infinity());
  }
  return scores;
}

}  // namespace

int main(int argc, char** argv) {
  const c10::NoGradGuard no_gradient;
  const std::int64_t K = argc > 1 ? std::atoll(argv[1]) : 4096;
  const std::int64_t D = argc > 2 ? std::atoll(argv[2]) : 1024;
  const ObsSublayer sublayer = random_sublayer(K, D, 2 * K, ObsSublayer().damping);

  auto begin = std::chrono::steady_clock::now();
  const std::vector<double> blocked = espalier::obs_scores(sublayer);
  const double blocked_seconds = seconds_since(begin);
  begin = std::chrono::steady_clock::now();
  const std::vector<double> exact = one_by_one(sublayer);
  const double exact_seconds = seconds_since(begin);

  const std::vector<std::int64_t> mine = order_of(blocked), theirs = order_of(exact);
  std::int64_t differ = 0;
  double apart = 0;
  for (std::size_t i = 0; i < mine.size(); ++i) {
    differ += mine[i] != theirs[i];
    if (std::isfinite(exact[i]))
      apart = std::max(apart, std::abs(blocked[i] - exact[i]) / std::max(exact[i], 1e-300));
  }
  fmt::print(
      "K {}, D {}, {} threads, float64: blocked {:.2f} s, one by one {:.2f} s, ratio {:.1f}\n", K,
      D, at::get_num_threads(), blocked_seconds, exact_seconds, exact_seconds / blocked_seconds);
  fmt::print("{} of {} places differ; largest relative difference of a score {:.2e}\n", differ, K,
             apart);
  return 0;
}
