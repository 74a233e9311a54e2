#include "espalier/score/combine.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include <fmt/format.h>

#include "espalier/core/error.h"

namespace espalier {
namespace {

using Row = std::vector<double>;

Row ranks_of(const Row& scores) {
  std::vector<std::size_t> order(scores.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return scores[a] < scores[b]; });
  Row ranks(scores.size());
  for (std::size_t begin = 0, end = 0; begin < order.size(); begin = end) {
    while (end < order.size() && scores[order[end]] == scores[order[begin]]) ++end;
    const double shared = (static_cast<double>(begin + 1) + static_cast<double>(end)) / 2;
    for (std::size_t i = begin; i < end; ++i) ranks[order[i]] = shared;
  }
  return ranks;
}

Row relative_to_mean(Row scores) {
  // A unit that never falls has an infinite score.
  double sum = 0, count = 0;
  for (const double score : scores)
    if (std::isfinite(score)) {
      sum += score;
      ++count;
    }
  const double mean = sum / std::max(count, 1.0);
  for (double& score : scores) score = mean == 0 ? 0.0 : score / mean;
  return scores;
}

Row mean_of(const std::vector<Row>& rows, const Row& weights) {
  Row mean(rows.front().size(), 0.0);
  double total = 0;
  for (std::size_t d = 0; d < rows.size(); ++d) {
    for (std::size_t u = 0; u < mean.size(); ++u) mean[u] += weights[d] * rows[d][u];
    total += weights[d];
  }
  for (double& value : mean) value /= total;
  return mean;
}

Row largest_of(const std::vector<Row>& rows) {
  Row largest = rows.front();
  for (const Row& row : rows)
    for (std::size_t u = 0; u < largest.size(); ++u) largest[u] = std::max(largest[u], row[u]);
  return largest;
}

template <class Change>
std::vector<Row> changed(std::vector<Row> rows, const Change& change) {
  for (Row& row : rows) row = change(std::move(row));
  return rows;
}

}  // namespace

std::vector<double> combined_scores(const std::vector<Row>& rows, const Row& weights,
                                    Combine combine) {
  if (combine == Combine::pooled && rows.size() == 1) return rows.front();
  if (combine == Combine::pooled || rows.size() != weights.size())
    throw Error(ExitCode::internal,
                fmt::format("scores of {} rows come with {} weights", rows.size(), weights.size()));
  std::vector<Row> part;
  Row part_weights;
  for (std::size_t d = 0; d < rows.size(); ++d) {
    if (weights[d] == 0) continue;
    part.push_back(rows[d]);
    part_weights.push_back(weights[d]);
  }
  if (part.empty()) throw Error(ExitCode::internal, "no domain has a weight");
  switch (combine) {
    case Combine::pooled:
      break;
    case Combine::weighted_mean:
      return mean_of(part, part_weights);
    case Combine::max:
      return largest_of(part);
    case Combine::rank_mean:
      return mean_of(changed(std::move(part), ranks_of), part_weights);
    case Combine::worst_domain:
      return largest_of(changed(std::move(part), relative_to_mean));
  }
  return {};
}

}  // namespace espalier
