#include "espalier/score/obs_order.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "espalier/core/error.h"
#include "espalier/model/work_meter.h"

namespace espalier {
namespace {

/// Inputs with a spectrum, an output matrix and weights; the same for the same seed.
ObsSublayer random_sublayer(std::int64_t K, std::int64_t D, std::vector<std::int64_t> units,
                            std::uint64_t seed = 1) {
  at::manual_seed(seed);
  const at::Tensor mix_KK = at::randn({K, K}, at::kDouble) / std::sqrt(static_cast<double>(K));
  const at::Tensor x_NK = at::randn({3 * K, K}, at::kDouble).mm(mix_KK + at::eye(K, at::kDouble));
  const at::Tensor g_ND = at::randn({2 * D, D}, at::kDouble);
  ObsSublayer sublayer;
  sublayer.gram_KK = x_NK.t().mm(x_NK) / static_cast<double>(3 * K);
  sublayer.curvature_DD = g_ND.t().mm(g_ND);
  sublayer.reader_KD = at::randn({K, D}, at::kDouble);
  sublayer.inputs_of_unit = std::move(units);
  return sublayer;
}
std::vector<std::int64_t> channels(std::int64_t K) {
  return std::vector<std::int64_t>(static_cast<std::size_t>(K), 1);
}

/// One unit after the other on W, G W and P themselves, as the definition has it.
std::vector<double> one_by_one(const ObsSublayer& sublayer) {
  const std::int64_t K = sublayer.gram_KK.size(0);
  const at::Tensor power_K = sublayer.gram_KK.diagonal(), dead_K = power_K <= 0;
  at::Tensor damped_KK = sublayer.gram_KK.clone();
  damped_KK.diagonal().mul_(1 + sublayer.damping).masked_fill_(dead_K, 1);
  at::Tensor p_KK = at::linalg_inv(damped_KK);
  at::Tensor w_DK = sublayer.reader_KD.t().masked_fill(dead_K.unsqueeze(0), 0).contiguous();
  at::Tensor m_DK = sublayer.curvature_DD.defined() ? sublayer.curvature_DD.mm(w_DK)
                                                    : w_DK * sublayer.curvature_scale;
  std::vector<at::Tensor> units;
  std::int64_t begin = 0;
  for (const std::int64_t width : sublayer.inputs_of_unit) {
    units.push_back(at::arange(begin, begin + width, at::kLong));
    begin += width;
  }
  EXPECT_EQ(begin, K);
  std::vector<double> scores(units.size(), std::numeric_limits<double>::infinity());
  std::vector<std::size_t> live(units.size());
  std::iota(live.begin(), live.end(), std::size_t{0});
  double highest = 0;
  while (live.size() > 1) {
    std::vector<double> costs;
    for (const std::size_t unit : live) {
      const at::Tensor& u = units[unit];
      const at::Tensor p_uu = p_KK.index_select(0, u).index_select(1, u);
      const at::Tensor wm_uu = w_DK.index_select(1, u).t().mm(m_DK.index_select(1, u));
      costs.push_back(at::linalg_solve(p_uu, wm_uu).trace().item<double>());
    }
    const auto place = std::min_element(costs.begin(), costs.end()) - costs.begin();
    const std::size_t unit = live[static_cast<std::size_t>(place)];
    live.erase(live.begin() + place);
    highest = std::max(highest, costs[static_cast<std::size_t>(place)]);
    scores[unit] = highest;
    const at::Tensor& u = units[unit];
    const at::Tensor r_uK =
        at::linalg_solve(p_KK.index_select(0, u).index_select(1, u), p_KK.index_select(0, u));
    w_DK -= w_DK.index_select(1, u).mm(r_uK);
    m_DK -= m_DK.index_select(1, u).mm(r_uK);
    p_KK -= p_KK.index_select(1, u).mm(r_uK);
  }
  return scores;
}

void expect_equal(const std::vector<double>& found, const std::vector<double>& wanted) {
  ASSERT_EQ(found.size(), wanted.size());
  double largest = 0;
  for (const double score : wanted)
    if (std::isfinite(score)) largest = std::max(largest, score);
  for (std::size_t u = 0; u < found.size(); ++u) {
    if (std::isinf(wanted[u]))
      EXPECT_EQ(found[u], wanted[u]) << u;
    else
      EXPECT_NEAR(found[u], wanted[u], 1e-9 * largest) << u;
  }
}

TEST(ObsOrder, ChannelsInBlocksAreChannelsOneByOne) {
  for (const std::int64_t K : {2, 63, 64, 65, 66, 200}) {
    const ObsSublayer sublayer = random_sublayer(K, 24, channels(K));
    expect_equal(obs_scores(sublayer), one_by_one(sublayer));
  }
}

TEST(ObsOrder, HeadsAndGroupsOfAnyWidth) {
  for (const std::vector<std::int64_t>& units :
       {std::vector<std::int64_t>{4, 4, 4, 4, 4}, {6, 2, 4, 8}, {1, 5, 1}}) {
    const ObsSublayer sublayer =
        random_sublayer(std::accumulate(units.begin(), units.end(), std::int64_t{0}), 16, units);
    expect_equal(obs_scores(sublayer), one_by_one(sublayer));
  }
}

TEST(ObsOrder, TheTraceAloneStandsForAMultipleOfTheIdentity) {
  ObsSublayer sublayer = random_sublayer(90, 24, channels(90));
  sublayer.curvature_DD = at::eye(24, at::kDouble) * 2.5;
  const std::vector<double> full = obs_scores(sublayer);
  sublayer.curvature_DD.reset();
  sublayer.curvature_scale = 2.5;
  expect_equal(obs_scores(sublayer), full);
}

TEST(ObsOrder, InputsThatAreAlwaysZeroCostNothingAndFallFirst) {
  ObsSublayer sublayer = random_sublayer(70, 24, channels(70));
  for (const std::int64_t dead : {0, 33, 69}) {
    sublayer.gram_KK.select(0, dead).fill_(0);
    sublayer.gram_KK.select(1, dead).fill_(0);
  }
  const std::vector<double> scores = obs_scores(sublayer);
  for (std::size_t u = 0; u < scores.size(); ++u)
    EXPECT_EQ(scores[u] == 0, u == 0 || u == 33 || u == 69) << u << " " << scores[u];
  expect_equal(scores, one_by_one(sublayer));
  ObsSublayer heads = random_sublayer(12, 8, {4, 4, 4});
  heads.gram_KK.narrow(0, 4, 4).fill_(0);
  heads.gram_KK.narrow(1, 4, 4).fill_(0);
  EXPECT_EQ(obs_scores(heads)[1], 0);
  expect_equal(obs_scores(heads), one_by_one(heads));
}

TEST(ObsOrder, RescaledInputsKeepTheirOrder) {
  const ObsSublayer plain = random_sublayer(80, 24, channels(80));
  at::manual_seed(7);
  const at::Tensor scale_K = at::pow(10.0, at::rand({80}, at::kDouble) * 6 - 3);
  ObsSublayer scaled = plain;
  scaled.gram_KK = plain.gram_KK * scale_K.unsqueeze(1) * scale_K.unsqueeze(0);
  scaled.reader_KD = plain.reader_KD / scale_K.unsqueeze(1);
  expect_equal(obs_scores(scaled), obs_scores(plain));
}

TEST(ObsOrder, ScoresAreTheDamageOfTheGreedyRemoval) {
  // Undamped, what the first k units cost together is the least squares damage without them:
  // min_V tr G (W x - V x_kept)(...)^T, independent of any order.
  ObsSublayer sublayer = random_sublayer(20, 8, channels(20));
  sublayer.damping = 1e-12;
  const std::vector<double> scores = obs_scores(sublayer);
  std::vector<std::int64_t> order(scores.size());
  std::iota(order.begin(), order.end(), std::int64_t{0});
  std::sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return scores[static_cast<std::size_t>(a)] < scores[static_cast<std::size_t>(b)];
  });
  const auto damage = [&](std::int64_t fallen) {
    const at::Tensor kept = std::get<0>(
        at::tensor(std::vector<std::int64_t>(order.begin() + fallen, order.end()), at::kLong)
            .sort());
    const at::Tensor h = sublayer.gram_KK.index_select(0, kept).index_select(1, kept);
    const at::Tensor c_kD = sublayer.gram_KK.index_select(0, kept).mm(sublayer.reader_KD);
    const at::Tensor rest_DD = sublayer.reader_KD.t().mm(sublayer.gram_KK).mm(sublayer.reader_KD) -
                               c_kD.t().mm(at::linalg_solve(h, c_kD));
    return sublayer.curvature_DD.mul(rest_DD).sum().item<double>();
  };
  // A cost below an earlier one is told as that one, so the sum may only be larger.
  double sum = 0;
  for (std::int64_t k = 1; k < 20; ++k) {
    sum += scores[static_cast<std::size_t>(order[static_cast<std::size_t>(k - 1)])];
    EXPECT_LE(damage(k), sum * (1 + 1e-6)) << k;
  }
  EXPECT_NEAR(damage(1), scores[static_cast<std::size_t>(order[0])], 1e-6 * damage(1));
}

/// Costs of the channels `left` of a sublayer, from P and W that are solved from A itself rather
/// than brought up to date removal by removal.
at::Tensor costs_anew(const ObsSublayer& sublayer, const at::Tensor& left_k) {
  at::Tensor damped_KK = sublayer.gram_KK.clone();
  damped_KK.diagonal().mul_(1 + sublayer.damping);
  const at::Tensor rows_kK = damped_KK.index_select(0, left_k);
  const at::Tensor factor_kk = at::linalg_cholesky(rows_kK.index_select(1, left_k));
  const at::Tensor w_kD = at::cholesky_solve(rows_kK.mm(sublayer.reader_KD), factor_kk);
  return (w_kD * w_kD.mm(sublayer.curvature_DD)).sum(1) /
         at::cholesky_inverse(factor_kk).diagonal();
}

TEST(ObsOrder, UpdatesLoseNoMoreThanTheInverseTheyBeginWith) {
  // A of rank 40 out of 200, hardly damped: P's largest entries shrink from 1 / d to 1, and all
  // that was lost to them stays.
  const std::int64_t K = 200, D = 24, N = 40;
  for (const double damping : {1e-2, 1e-4, 1e-6}) {
    ObsSublayer sublayer = random_sublayer(K, D, channels(K));
    const at::Tensor x_NK = at::randn({N, K}, at::kDouble);
    sublayer.gram_KK = x_NK.t().mm(x_NK) / static_cast<double>(N);
    sublayer.damping = damping;
    const std::vector<double> scores = obs_scores(sublayer);
    std::vector<std::int64_t> order(scores.size());
    std::iota(order.begin(), order.end(), std::int64_t{0});
    std::sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
      return scores[static_cast<std::size_t>(a)] < scores[static_cast<std::size_t>(b)];
    });
    // Terms times eps times the condition number, which is at most the trace K (1 + d) over d.
    const double tolerance =
        2 * static_cast<double>(K) * 0x1p-52 * static_cast<double>(K) * (1 + damping) / damping;
    double highest = 0;
    for (std::size_t n = 0; n + 1 < order.size(); ++n) {
      const std::vector<std::int64_t> left(order.begin() + static_cast<std::ptrdiff_t>(n),
                                           order.end());
      const at::Tensor e_k = costs_anew(sublayer, at::tensor(left, at::kLong));
      const double cost = e_k[0].item<double>(), least = e_k.min().item<double>();
      EXPECT_LE(cost, least * (1 + tolerance)) << damping << ", " << n << " have fallen";
      highest = std::max(highest, cost);
      EXPECT_NEAR(scores[static_cast<std::size_t>(order[n])], highest, tolerance * highest)
          << damping << ", " << n << " have fallen";
    }
  }
}

TEST(ObsOrder, OneUnitAndNone) {
  EXPECT_EQ(obs_scores(random_sublayer(5, 4, {5})),
            std::vector<double>{std::numeric_limits<double>::infinity()});
  EXPECT_TRUE(obs_scores(random_sublayer(0, 4, {})).empty());
}

TEST(ObsOrder, RefusesWhatIsNotFinite) {
  for (const int what : {0, 1, 2}) {
    ObsSublayer sublayer = random_sublayer(10, 4, channels(10));
    at::Tensor& broken = what == 0   ? sublayer.gram_KK
                         : what == 1 ? sublayer.curvature_DD
                                     : sublayer.reader_KD;
    broken.select(0, 1).fill_(std::nan(""));
    try {
      obs_scores(sublayer);
      ADD_FAILURE() << what;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::bad_content);
    }
  }
}

TEST(ObsOrder, ArithmeticIsWhatIsDispatched) {
  struct Case {
    std::vector<std::int64_t> units;
    std::int64_t outputs;
    bool full;
  };
  // Fewer channels than a block, some blocks, and so many that dead rows are dropped in between.
  for (const Case& c :
       {Case{channels(40), 24, true}, Case{channels(200), 24, false}, Case{channels(500), 40, true},
        Case{{8, 8, 8, 8, 8}, 24, true}, Case{{16, 16}, 8, false}, Case{{8}, 24, true}}) {
    ObsSublayer sublayer = random_sublayer(
        std::accumulate(c.units.begin(), c.units.end(), std::int64_t{0}), c.outputs, c.units);
    if (!c.full) sublayer.curvature_DD.reset();
    sublayer.curvature_scale = 1;
    const WorkMeter meter;
    obs_scores(sublayer);
    EXPECT_EQ(obs_order_flops(c.units, c.outputs, c.full).products, meter.work().flops)
        << c.units.size() << " units";
  }
}

TEST(ObsOrder, FactorsAndVectorsByHand) {
  // K^3 for the factor and the inverse; of the b-th of a block 3 products with a [b, K] matrix.
  EXPECT_EQ(obs_order_flops(channels(1), 4, false).others, 1);
  EXPECT_EQ(obs_order_flops(channels(3), 4, false).others, 27 + 3 * 2 * 3);
  // Two heads of 2: both costs (8 / 3 + 16), the factor of the one that falls and its rows.
  EXPECT_DOUBLE_EQ(obs_order_flops({2, 2}, 4, false).others,
                   64 + 2 * (8.0 / 3 + 16) + 8.0 / 3 + 2 * 4 * 4);
}

}  // namespace
}  // namespace espalier
