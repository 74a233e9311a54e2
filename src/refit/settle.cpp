#include "settle.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include <ATen/ATen.h>

#include "espalier/comm/agreement.h"
#include "espalier/core/log.h"
#include "espalier/core/pulse.h"
#include "espalier/model/tensor_ops.h"

namespace espalier::refit_detail {
namespace {

/// The ridge of least held-out error, and by how much it changes that. Collective.
std::pair<double, double> best_ridge(Communicator& world, const std::optional<double>& given,
                                     const MatrixFit& fit) {
  const std::vector<double> ridges = given ? std::vector<double>{*given} : ridge_candidates();
  std::vector<double> changes(ridges.size(), 0.0);
  together(world, "refit", [&] {
    for (std::size_t i = 0; i < ridges.size(); ++i) {
      if (static_cast<int>(i % static_cast<std::size_t>(world.size())) != world.rank()) continue;
      changes[i] = held_out_change(fit.folds, fit.q_KD, fit.target, ridges[i]);
      pulse::beat();
    }
  });
  world.all_reduce_sum(std::span<double>(changes));
  const auto best = std::min_element(changes.begin(), changes.end());
  return {ridges[static_cast<std::size_t>(best - changes.begin())], *best};
}

/// Rounds to the stored dtype; false where that does not hold the numbers.
bool rounds_to(at::Tensor& w_DK, const at::Tensor& v_KD, const std::string& name) {
  const at::Tensor rounded_DK = v_KD.t().to(at::kCPU).contiguous().to(w_DK.scalar_type());
  if (!all_finite(rounded_DK)) {
    log::warning("{} is not refitted: its new values leave the range of the stored dtype", name);
    return false;
  }
  w_DK.copy_(rounded_DK);
  return true;
}

}  // namespace

std::optional<at::Tensor> settle(Communicator& world, int solver, const RefitConfig& settings,
                                 const MatrixFit& fit, MatrixFacts& facts) {
  double change = 0;
  std::tie(facts.ridge, change) = best_ridge(world, settings.ridge, fit);
  facts.error_after = facts.error_before + change;
  at::Tensor w_DK = at::empty({fit.v0_KD.size(1), fit.v0_KD.size(0)}, to_scalar_type(fit.stored));
  auto outcome = static_cast<std::int64_t>(RefitOutcome::dense);
  together(world, "refit", [&] {
    if (world.rank() != solver) return;
    const auto take = [&](RefitOutcome what, const at::Tensor& taken_KD) {
      if (rounds_to(w_DK, taken_KD, fit.name)) outcome = static_cast<std::int64_t>(what);
    };
    if (fit.updated) take(RefitOutcome::obs, fit.v0_KD);
    if (!(change < 0)) return;
    const NormalEquations both{fit.folds[0].h_KK + fit.folds[1].h_KK, at::Tensor()};
    if (const auto d_KD = ridge_solution(both, fit.q_KD[0] + fit.q_KD[1], facts.ridge))
      take(RefitOutcome::refitted, fit.v0_KD + *d_KD);
  });
  world.broadcast({&outcome, 1, DType::i64}, solver);
  facts.outcome = static_cast<RefitOutcome>(outcome);
  if (facts.outcome == RefitOutcome::dense) return std::nullopt;
  world.broadcast({w_DK.data_ptr(), w_DK.nbytes(), DType::u8}, solver);
  return w_DK;
}

}  // namespace espalier::refit_detail
