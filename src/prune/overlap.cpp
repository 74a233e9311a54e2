#include "espalier/prune/overlap.h"

namespace espalier {
namespace {

using Removed = UnitMatrix<std::int32_t>;

/// Units that fell in `iteration` in both, and in one or the other, in layers [begin, end).
std::optional<double> jaccard(const Removed& a, const Removed& b, std::int64_t iteration,
                              std::int64_t begin, std::int64_t end) {
  std::int64_t both = 0, either = 0;
  for (std::int64_t i = begin * a.units; i < end * a.units; ++i) {
    const auto at = static_cast<std::size_t>(i);
    const bool in_a = a.values[at] == iteration, in_b = b.values[at] == iteration;
    both += in_a && in_b ? 1 : 0;
    either += in_a || in_b ? 1 : 0;
  }
  if (either == 0) return std::nullopt;
  return static_cast<double>(both) / static_cast<double>(either);
}

Jaccard matrix(const std::vector<const Removed*>& domains, std::int64_t iteration,
               std::int64_t begin, std::int64_t end) {
  Jaccard matrix;
  for (const Removed* a : domains) {
    matrix.emplace_back();
    for (const Removed* b : domains)
      matrix.back().push_back(jaccard(*a, *b, iteration, begin, end));
  }
  return matrix;
}

KindOverlap kind_overlap(const std::vector<const Removed*>& domains, std::int64_t iteration) {
  KindOverlap overlap;
  const std::int64_t layers = domains.empty() ? 0 : domains.front()->layers;
  overlap.all = matrix(domains, iteration, 0, layers);
  for (std::int64_t l = 0; l < layers; ++l)
    overlap.layers.push_back(matrix(domains, iteration, l, l + 1));
  return overlap;
}

}  // namespace

Overlap overlap_of(const std::vector<PruningPlan>& plans, std::int64_t iteration) {
  std::vector<const Removed*> attention, mlp;
  for (const PruningPlan& plan : plans) {
    attention.push_back(&plan.attention_removed_at);
    mlp.push_back(&plan.mlp_removed_at);
  }
  return {kind_overlap(attention, iteration), kind_overlap(mlp, iteration)};
}

}  // namespace espalier
