#include "espalier/score/obs_order.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/core/pulse.h"
#include "espalier/model/tensor_ops.h"

namespace espalier {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
/// Channels that fall between two updates of all of P and N.
constexpr std::int64_t kBlock = 64;
/// P and N are cut down to the live units once so many of their rows are dead: less often, and dead
/// rows are multiplied; more often, and the copies cost more than that.
constexpr double kDeadShare = 0.15;
bool drops(std::int64_t dead, std::int64_t rows) {
  return static_cast<double>(dead) >= kDeadShare * static_cast<double>(rows);
}

/// The score of a unit of this cost that falls after units of the score `before`: above it, by very
/// little where the cost is not, so that sorting gives the order in which they fall.
double score_after(double before, double cost) {
  return std::max(cost, before * (1 + std::ldexp(1.0, -50)));
}

Error not_finite(const char* what) {
  return Error(ExitCode::bad_content, fmt::format("{} is not finite", what),
               "a value among inputs, gradients or weights is NaN or infinite",
               "Use a wider model.dtype, or check the weights and the calibration data.");
}

/// P and N of the live units, in coordinates in which every input has power 1: costs do not depend
/// on them, and matrices of inputs of very different sizes are inverted exactly.
struct Surgery {
  at::Tensor inverse_KK;  // P
  at::Tensor cost_KK;     // N

  explicit Surgery(const ObsSublayer& sublayer) {
    const at::Tensor gram_KK = sublayer.gram_KK.to(at::kDouble);
    if (!all_finite(gram_KK)) throw not_finite("the matrix of inputs");
    if (!all_finite(sublayer.reader_KD)) throw not_finite("a weight");
    const at::Tensor power_K = gram_KK.diagonal();
    const at::Tensor lives_K = power_K > 0;
    const at::Tensor size_K = at::where(lives_K, power_K, 1.0).sqrt();
    inverse_KK = damped_inverse(gram_KK, lives_K, size_K, sublayer.damping);
    const at::Tensor reader_KD =
        sublayer.reader_KD.to(at::kDouble) * at::where(lives_K, size_K, 0.0).unsqueeze(1);
    if (!sublayer.curvature_DD.defined()) {
      cost_KK = at::mm(reader_KD, reader_KD.t()).mul_(sublayer.curvature_scale);
    } else {
      const at::Tensor curvature_DD = sublayer.curvature_DD.to(at::kDouble);
      if (!all_finite(curvature_DD)) throw not_finite("the matrix of gradients");
      cost_KK = at::mm(at::mm(reader_KD, curvature_DD), reader_KD.t());
    }
    pulse::beat();
  }

  void keep(const at::Tensor& live) {
    inverse_KK = inverse_KK.index_select(0, live).index_select(1, live);
    cost_KK = cost_KK.index_select(0, live).index_select(1, live);
  }

 private:
  static at::Tensor damped_inverse(const at::Tensor& gram_KK, const at::Tensor& lives_K,
                                   const at::Tensor& size_K, double damping) {
    at::Tensor scaled_KK = gram_KK / size_K.unsqueeze(1);
    scaled_KK.div_(size_K.unsqueeze(0));
    scaled_KK.diagonal().copy_(lives_K.to(at::kDouble).mul_(damping).add_(1));
    auto [factor_KK, info] = at::linalg_cholesky_ex(scaled_KK);
    // Not even damped: rounding alone made it indefinite, which float32 sums can of few tokens.
    if (info.item<int>() != 0)
      throw Error(ExitCode::bad_content, "the damped matrix of inputs is not positive definite",
                  fmt::format("importance.damping = {}", damping),
                  "Use a larger importance.damping, or model.dtype float32.");
    scaled_KK.reset();
    return at::cholesky_inverse(factor_KK);
  }
};

/// Channels: units of one input each.
class ChannelOrder {
 public:
  explicit ChannelOrder(Surgery surgery)
      : surgery_(std::move(surgery)),
        scores_(static_cast<std::size_t>(surgery_.cost_KK.size(0)), kInfinity),
        unit_(scores_.size()) {
    std::iota(unit_.begin(), unit_.end(), std::int64_t{0});
  }

  std::vector<double> scores() && {
    // The last unit keeps its infinite score.
    std::int64_t left = static_cast<std::int64_t>(scores_.size()) - 1;
    while (left > 0) {
      const std::int64_t count = std::min(kBlock, left);
      take_block(count);
      left -= count;
      pulse::beat();
    }
    return std::move(scores_);
  }

 private:
  /// Takes out `count` units one by one, then brings P and N up to date for all at once.
  void take_block(std::int64_t count) {
    const std::int64_t K = surgery_.cost_KK.size(0);
    const at::TensorOptions options = surgery_.cost_KK.options();
    // Of each unit that fell in this block, a row: r = P_u: / P_uu, and q with which
    // N -= r^T q + q^T r.
    at::Tensor r_BK = at::empty({count, K}, options), q_BK = at::empty({count, K}, options),
               p_BK = at::empty({count, K}, options);
    at::Tensor cost_K = surgery_.cost_KK.diagonal().clone();
    at::Tensor dead_K = at::tensor(dead_mask(K), at::kDouble).to(options.device());
    // Of a fallen unit 0 but for rounding: only the quotient has to be a number.
    at::Tensor inverse_K = at::where(dead_K > 0, 1.0, surgery_.inverse_KK.diagonal());
    for (std::int64_t i = 0; i < count; ++i) {
      // Rounding may leave a cost just below 0.
      const at::Tensor e_K = (cost_K.clamp_min(0) / inverse_K).add_(dead_K);
      const std::int64_t u = cheapest(e_K);
      record(u, e_K);
      at::Tensor p_K = p_BK[i], r_K = r_BK[i], q_K = q_BK[i];
      p_K.copy_(surgery_.inverse_KK[u]);
      q_K.copy_(surgery_.cost_KK[u]);
      if (i > 0) {
        const at::Tensor r_iK = r_BK.narrow(0, 0, i), q_iK = q_BK.narrow(0, 0, i);
        const at::Tensor r_iu = r_iK.select(1, u).contiguous(),
                         q_iu = q_iK.select(1, u).contiguous();
        p_K.addmv_(r_iK.t(), p_BK.narrow(0, 0, i).select(1, u).contiguous(), 1, -1);
        q_K.addmv_(q_iK.t(), r_iu, 1, -1);
        q_K.addmv_(r_iK.t(), q_iu, 1, -1);
      }
      at::div_out(r_K, p_K, p_K[u].clone());
      q_K.sub_(r_K * (q_K[u].clone() * 0.5));
      inverse_K.addcmul_(p_K, r_K, -1);
      cost_K.addcmul_(r_K, q_K, -2);
      dead_K[u].fill_(kInfinity);
      inverse_K[u].fill_(1);
    }
    surgery_.inverse_KK.addmm_(p_BK.t(), r_BK, 1, -1);
    surgery_.cost_KK.addmm_(r_BK.t(), q_BK, 1, -1);
    surgery_.cost_KK.addmm_(q_BK.t(), r_BK, 1, -1);
    drop_dead(K);
  }

  std::vector<double> dead_mask(std::int64_t K) const {
    std::vector<double> mask(static_cast<std::size_t>(K), 0.0);
    for (std::size_t place = 0; place < mask.size(); ++place)
      if (unit_[place] < 0) mask[place] = kInfinity;
    return mask;
  }

  static std::int64_t cheapest(const at::Tensor& e_K) {
    const at::Tensor host_K = e_K.to(at::kCPU);
    const double* begin = host_K.const_data_ptr<double>();
    return std::min_element(begin, begin + host_K.numel()) - begin;
  }

  void record(std::int64_t place, const at::Tensor& e_K) {
    const double cost = e_K[place].item<double>();
    if (!std::isfinite(cost)) throw not_finite("the cost of a unit");
    highest_ = score_after(highest_, cost);
    std::int64_t& unit = unit_[static_cast<std::size_t>(place)];
    scores_[static_cast<std::size_t>(unit)] = highest_;
    unit = -1;
    ++dead_;
  }

  void drop_dead(std::int64_t K) {
    if (!drops(dead_, K)) return;
    std::vector<std::int64_t> live, units;
    for (std::int64_t place = 0; place < K; ++place)
      if (unit_[static_cast<std::size_t>(place)] >= 0) {
        live.push_back(place);
        units.push_back(unit_[static_cast<std::size_t>(place)]);
      }
    surgery_.keep(at::tensor(live, at::kLong).to(surgery_.cost_KK.device()));
    unit_ = std::move(units);
    dead_ = 0;
  }

  Surgery surgery_;
  std::vector<double> scores_;
  std::vector<std::int64_t> unit_;  // at each place of P and N; -1 = fallen
  std::int64_t dead_ = 0;
  double highest_ = 0;
};

/// Units of several inputs: heads and KV groups. Each step is a product of matrices by itself.
class HeadOrder {
 public:
  HeadOrder(Surgery surgery, const std::vector<std::int64_t>& inputs_of_unit)
      : surgery_(std::move(surgery)) {
    std::int64_t begin = 0;
    for (const std::int64_t width : inputs_of_unit) {
      units_.push_back({static_cast<std::int64_t>(units_.size()), begin, width});
      begin += width;
    }
  }

  std::vector<double> scores() && {
    std::vector<double> scores(units_.size(), kInfinity);
    double highest = 0;
    while (units_.size() > 1) {
      std::vector<double> costs;
      for (const Unit& unit : units_) costs.push_back(cost_of(unit));
      const auto cheapest = std::min_element(costs.begin(), costs.end());
      if (!std::isfinite(*cheapest)) throw not_finite("the cost of a unit");
      const auto place = static_cast<std::size_t>(cheapest - costs.begin());
      highest = score_after(highest, *cheapest);
      scores[static_cast<std::size_t>(units_[place].number)] = highest;
      remove(place);
      pulse::beat();
    }
    return scores;
  }

 private:
  struct Unit {
    std::int64_t number = 0;
    std::int64_t begin = 0;
    std::int64_t width = 0;
  };

  static at::Tensor block(const at::Tensor& matrix_KK, const Unit& unit) {
    return matrix_KK.narrow(0, unit.begin, unit.width).narrow(1, unit.begin, unit.width);
  }
  at::Tensor factor_of(const Unit& unit) const {
    return at::linalg_cholesky(block(surgery_.inverse_KK, unit));
  }
  double cost_of(const Unit& unit) const {
    return at::cholesky_solve(block(surgery_.cost_KK, unit).contiguous(), factor_of(unit))
        .trace()
        .item<double>();
  }

  void remove(std::size_t place) {
    const Unit unit = units_[place];
    const at::Tensor rows_uK = surgery_.inverse_KK.narrow(0, unit.begin, unit.width).clone();
    const at::Tensor r_uK = at::cholesky_solve(rows_uK, factor_of(unit));
    at::Tensor q_uK = surgery_.cost_KK.narrow(0, unit.begin, unit.width).clone();
    q_uK.sub_(at::mm(block(surgery_.cost_KK, unit).contiguous(), r_uK), 0.5);
    surgery_.inverse_KK.addmm_(rows_uK.t(), r_uK, 1, -1);
    surgery_.cost_KK.addmm_(r_uK.t(), q_uK, 1, -1);
    surgery_.cost_KK.addmm_(q_uK.t(), r_uK, 1, -1);
    const at::Tensor all = at::arange(surgery_.cost_KK.size(0), at::kLong);
    surgery_.keep(
        at::cat({all.narrow(0, 0, unit.begin),
                 all.narrow(0, unit.begin + unit.width, all.size(0) - unit.begin - unit.width)})
            .to(surgery_.cost_KK.device()));
    units_.erase(units_.begin() + static_cast<std::ptrdiff_t>(place));
    for (std::size_t later = place; later < units_.size(); ++later)
      units_[later].begin -= unit.width;
  }

  Surgery surgery_;
  std::vector<Unit> units_;
};

}  // namespace

std::vector<double> obs_scores(const ObsSublayer& sublayer) {
  const c10::NoGradGuard no_gradient;
  const std::vector<std::int64_t>& widths = sublayer.inputs_of_unit;
  ESPALIER_CHECK(
      std::accumulate(widths.begin(), widths.end(), std::int64_t{0}) == sublayer.gram_KK.size(0),
      "the units of a sublayer do not have all its inputs");
  if (widths.empty()) return {};
  if (std::all_of(widths.begin(), widths.end(), [](std::int64_t width) { return width == 1; }))
    return ChannelOrder(Surgery(sublayer)).scores();
  return HeadOrder(Surgery(sublayer), widths).scores();
}

namespace {

/// ChannelOrder, block by block.
void add_channels(ObsOrderFlops& flops, std::int64_t channels) {
  std::int64_t rows = channels, dead = 0;
  for (std::int64_t left = channels - 1; left > 0;) {
    const std::int64_t count = std::min(kBlock, left);
    const auto K = static_cast<double>(rows), b = static_cast<double>(count);
    flops.others += 3 * K * b * (b - 1);
    flops.products += 3 * 2 * K * K * b;
    left -= count;
    dead += count;
    if (!drops(dead, rows)) continue;
    rows -= dead;
    dead = 0;
  }
}

/// HeadOrder, unit by unit: of equal widths whichever falls, else as if the last did.
void add_heads(ObsOrderFlops& flops, const std::vector<std::int64_t>& widths) {
  double K = 0, of_costs = 0;  // of the live units
  const auto cost = [](double w) { return w * w * w / 3 + 2 * w * w * w; };
  for (const std::int64_t width : widths) {
    K += static_cast<double>(width);
    of_costs += cost(static_cast<double>(width));
  }
  for (std::size_t u = widths.size(); u-- > 1;) {
    const auto w = static_cast<double>(widths[u]);
    flops.others += of_costs + w * w * w / 3 + 2 * w * w * K;
    flops.products += 2 * w * w * K + 3 * 2 * w * K * K;
    K -= w;
    of_costs -= cost(w);
  }
}

}  // namespace

ObsOrderFlops obs_order_flops(const std::vector<std::int64_t>& inputs_of_unit, std::int64_t outputs,
                              bool full) {
  ObsOrderFlops flops;
  const auto K = static_cast<double>(
      std::accumulate(inputs_of_unit.begin(), inputs_of_unit.end(), std::int64_t{0}));
  const auto D = static_cast<double>(outputs);
  flops.others = K * K * K;
  flops.products = 2 * K * K * D + (full ? 2 * K * D * D : 0);
  if (std::all_of(inputs_of_unit.begin(), inputs_of_unit.end(),
                  [](std::int64_t width) { return width == 1; }))
    add_channels(flops, static_cast<std::int64_t>(inputs_of_unit.size()));
  else
    add_heads(flops, inputs_of_unit);
  return flops;
}

std::int64_t obs_order_bytes(std::int64_t inputs, std::int64_t outputs) {
  // P and N, and while the first of them loses its dead rows, 0.85 and 0.72 of it; while P is
  // inverted, A, the factor and P. Before that W, G and G W.
  return static_cast<std::int64_t>(sizeof(double)) *
         (inputs * inputs * 18 / 5 + 2 * inputs * outputs + outputs * outputs);
}

}  // namespace espalier
