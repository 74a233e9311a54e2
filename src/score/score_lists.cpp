#include "espalier/score/score_lists.h"

#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/score/normalize.h"

namespace espalier {
namespace {

/// One per row.
std::vector<double> weights_of(const Scoring& scoring) {
  return scoring.combine == Combine::pooled ? std::vector<double>{1.0} : scoring.weights;
}

std::vector<double> weighted_mean(const ModelConfig& config, const RawBlock& block,
                                  const Scoring& scoring) {
  const std::vector<double> weights = weights_of(scoring);
  if (weights.size() != block.values.size())
    throw Error(ExitCode::internal, fmt::format("scores of {} rows come with {} weights",
                                                block.values.size(), weights.size()));
  std::vector<double> sum(block.units.size(), 0.0);
  double total = 0;
  for (std::size_t row = 0; row < weights.size(); ++row) {
    const std::vector<double> scores = normalized(config, scoring.normalization, scoring.unit,
                                                  block.kind, block.values[row], block.heads);
    for (std::size_t u = 0; u < sum.size(); ++u) sum[u] += weights[row] * scores.at(u);
    total += weights[row];
  }
  for (double& value : sum) value /= total;
  return sum;
}

template <class T>
void append(std::vector<T>& list, const std::vector<T>& values) {
  list.insert(list.end(), values.begin(), values.end());
}

}  // namespace

ScoreLists make_lists(const ModelConfig& config, std::span<const RawBlock> blocks,
                      const Scoring& scoring) {
  ScoreLists lists;
  for (ScoreList* list : {&lists.attention, &lists.mlp})
    list->raw.resize(weights_of(scoring).size());
  for (const RawBlock& block : blocks) {
    ScoreList& list = block.kind == UnitKind::attention ? lists.attention : lists.mlp;
    list.layer.insert(list.layer.end(), block.units.size(), block.layer);
    append(list.unit, block.units);
    append(list.score, weighted_mean(config, block, scoring));
    for (std::size_t row = 0; row < block.values.size(); ++row)
      append(list.raw[row], block.values[row]);
  }
  return lists;
}

}  // namespace espalier
