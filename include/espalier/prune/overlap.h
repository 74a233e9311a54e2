#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "espalier/prune/plan.h"

namespace espalier {

/// How much of what each domain would remove the others would remove too: for domains a and b the
/// Jaccard index |A and B| / |A or B| of the units that fall, absent where neither removes one.
using Jaccard = std::vector<std::vector<std::optional<double>>>;

struct KindOverlap {
  /// Over all layers.
  Jaccard all;
  /// By layer of the model.
  std::vector<Jaccard> layers;
};

struct Overlap {
  KindOverlap attention;
  KindOverlap mlp;
};

/// Of the units that fell in `iteration` of each plan; all plans are of one model. Pure.
Overlap overlap_of(const std::vector<PruningPlan>& plans, std::int64_t iteration);

}  // namespace espalier
