// How far the order of one down_proj under criterion obs has drifted from P inverted anew: after
// every so many removals P and W of the channels that are left are solved from A itself, and the
// cost of the channel that falls next is told by both.
//
//   obs_drift [K] [D] [DAMPING] [TOKENS] [EVERY]     default 1024 256 0.01 2K K/8
//
// TOKENS below K: A has that rank. Prints how much the score differs from the cost told anew
// (where it is that channel's own and not an earlier one's) and how much the cheapest channel left
// costs less than the one that falls, both relative.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include "espalier/score/obs_order.h"
#include "random_sublayer.h"

namespace {

using espalier::ObsSublayer;

/// In coordinates in which every input has power 1, as obs_scores has them.
struct Anew {
  at::Tensor damped_KK, reader_KD, curvature_DD;

  explicit Anew(const ObsSublayer& sublayer) : curvature_DD(sublayer.curvature_DD) {
    const at::Tensor size_K = sublayer.gram_KK.diagonal().sqrt();
    damped_KK = sublayer.gram_KK / size_K.unsqueeze(1) / size_K.unsqueeze(0);
    damped_KK.diagonal().fill_(1 + sublayer.damping);
    reader_KD = sublayer.reader_KD * size_K.unsqueeze(1);
  }

  /// Of each channel that is left.
  at::Tensor costs(const at::Tensor& left_k) const {
    const at::Tensor rows_kK = damped_KK.index_select(0, left_k);
    const at::Tensor factor_kk = at::linalg_cholesky(rows_kK.index_select(1, left_k));
    const at::Tensor w_kD = at::cholesky_solve(rows_kK.mm(reader_KD), factor_kk);
    return (w_kD * w_kD.mm(curvature_DD)).sum(1) / at::cholesky_inverse(factor_kk).diagonal();
  }

  /// Of A~, by powers of it and of its inverse.
  double condition() const {
    const at::Tensor factor_KK = at::linalg_cholesky(damped_KK);
    at::Tensor high_K1 = at::randn({damped_KK.size(0), 1}, at::kDouble), low_K1 = high_K1.clone();
    double high = 0, low = 0;
    for (int step = 0; step < 50; ++step) {
      high_K1 = damped_KK.mm(high_K1);
      low_K1 = at::cholesky_solve(low_K1, factor_KK);
      high = high_K1.norm().item<double>(), low = low_K1.norm().item<double>();
      high_K1 /= high, low_K1 /= low;
    }
    return high * low;
  }
};

}  // namespace

int main(int argc, char** argv) {
  const c10::NoGradGuard no_gradient;
  const auto number = [&](int place, std::int64_t otherwise) {
    return argc > place ? static_cast<std::int64_t>(std::atoll(argv[place])) : otherwise;
  };
  const std::int64_t K = number(1, 1024), D = number(2, 256), N = number(4, 2 * K);
  const double damping = argc > 3 ? std::atof(argv[3]) : 0.01;
  const std::int64_t every = number(5, K / 8);
  const ObsSublayer sublayer = random_sublayer(K, D, N, damping);
  const std::vector<double> scores = espalier::obs_scores(sublayer);
  const std::vector<std::int64_t> order = order_of(scores);
  const Anew anew(sublayer);
  fmt::print("K {}, D {}, damping {:g}, {} tokens, condition {:.1e}\n", K, D, damping, N,
             anew.condition());
  fmt::print("| fallen | score | relative difference | the cheapest is cheaper by |\n");
  fmt::print("|---|---|---|---|\n");
  std::vector<std::int64_t> fallen;
  for (std::int64_t n = every; n < K - 1; n += every) fallen.push_back(n);
  for (const std::int64_t last : {16, 4, 2})
    if (last < K) fallen.push_back(K - last);
  std::sort(fallen.begin(), fallen.end());
  for (const std::int64_t n : fallen) {
    const std::vector<std::int64_t> left(order.begin() + n, order.end());
    const at::Tensor e_k = anew.costs(at::tensor(left, at::kLong));
    const double score = scores[static_cast<std::size_t>(order[static_cast<std::size_t>(n)])];
    const double before = scores[static_cast<std::size_t>(order[static_cast<std::size_t>(n - 1)])];
    const double cost = e_k[0].item<double>(), least = e_k.min().item<double>();
    const bool own = score > before * (1 + std::ldexp(1.0, -48));
    fmt::print("| {} | {:.4g} | {} | {:.1e} |\n", n, score,
               own ? fmt::format("{:.1e}", std::abs(score - cost) / cost) : std::string("-"),
               (cost - least) / cost);
  }
  return 0;
}
