#include "espalier/score/score_lists.h"

#include "espalier/score/combine.h"
#include "espalier/score/normalize.h"

namespace espalier {
namespace {

template <class T>
void append(std::vector<T>& list, const std::vector<T>& values) {
  list.insert(list.end(), values.begin(), values.end());
}

/// The normalised scores of every row, of all blocks behind one another.
std::vector<std::vector<double>> normalized_rows(const ModelConfig& config,
                                                 std::span<const RawBlock> blocks,
                                                 const Scoring& scoring) {
  std::vector<std::vector<double>> rows(blocks.empty() ? 0 : blocks.front().values.size());
  for (const RawBlock& block : blocks)
    for (std::size_t row = 0; row < rows.size(); ++row)
      append(rows[row], normalized(config, scoring.normalization, scoring.unit, block.kind,
                                   block.values.at(row), block.heads));
  return rows;
}

}  // namespace

ScoreLists make_lists(const ModelConfig& config, std::span<const RawBlock> blocks,
                      const Scoring& scoring) {
  ScoreLists lists;
  for (ScoreList* list : {&lists.attention, &lists.mlp})
    list->raw.resize(scoring.combine == Combine::pooled ? 1 : scoring.weights.size());
  if (blocks.empty()) return lists;
  const std::vector<double> scores =
      combined_scores(normalized_rows(config, blocks, scoring), scoring.weights, scoring.combine);
  auto next = scores.begin();
  for (const RawBlock& block : blocks) {
    ScoreList& list = block.kind == UnitKind::attention ? lists.attention : lists.mlp;
    list.layer.insert(list.layer.end(), block.units.size(), block.layer);
    append(list.unit, block.units);
    const auto end = next + static_cast<std::ptrdiff_t>(block.units.size());
    list.score.insert(list.score.end(), next, end);
    next = end;
    for (std::size_t row = 0; row < block.values.size(); ++row)
      append(list.raw[row], block.values[row]);
  }
  return lists;
}

}  // namespace espalier
