#include "streams.h"

#include <algorithm>

#include <ATen/ATen.h>

namespace espalier::refit_detail {

std::array<FoldTokens, 2> fold_tokens(const Calibration& data, const MicroBatch& micro_batch,
                                      const CalibrationBatch& batch) {
  const DomainDraw& domain = data.domains()[micro_batch.domain];
  double total = 0;
  for (const DomainDraw& other : data.domains()) total += other.weight;
  const double share = domain.weight / total / static_cast<double>(domain.rows.size());
  const std::int64_t B = batch.batch.tokens_BT.size(0), T = batch.batch.tokens_BT.size(1);
  std::vector<std::int64_t> lengths(static_cast<std::size_t>(B), T);
  if (batch.batch.real_BT.defined()) {
    const at::Tensor counts_B = batch.batch.real_BT.sum(1).to(at::kCPU);
    for (std::int64_t b = 0; b < B; ++b)
      lengths[static_cast<std::size_t>(b)] = counts_B[b].item<std::int64_t>();
  }
  std::array<std::vector<std::int64_t>, 2> places;
  std::array<std::vector<double>, 2> weights;
  for (std::int64_t b = 0; b < B; ++b) {
    const std::size_t place = micro_batch.places[static_cast<std::size_t>(b)];
    const auto drawn =
        std::upper_bound(domain.begins.begin(), domain.begins.end(), place) - domain.begins.begin();
    // Domains of one sequence each alternate too.
    const auto fold = (static_cast<std::size_t>(drawn) + micro_batch.domain) % 2;
    const std::int64_t length = lengths[static_cast<std::size_t>(b)];
    for (std::int64_t t = 0; t < length; ++t) places[fold].push_back(b * T + t);
    weights[fold].insert(weights[fold].end(), static_cast<std::size_t>(length),
                         share / static_cast<double>(length));
  }
  const at::Device device = batch.batch.tokens_BT.device();
  std::array<FoldTokens, 2> folds;
  for (std::size_t f = 0; f < folds.size(); ++f)
    folds[f] = {at::tensor(places[f], at::kLong).to(device),
                at::tensor(weights[f], at::kDouble).to(device)};
  return folds;
}

}  // namespace espalier::refit_detail
