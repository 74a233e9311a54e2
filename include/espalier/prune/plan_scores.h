#pragma once

#include "espalier/prune/plan.h"
#include "espalier/prune/score_table.h"

namespace espalier {

/// Throws Error(bad_content) naming kind, layer and unit unless every scored unit is one of the
/// plan that survives or fell in the plan's last iteration: what a commit holds side by side.
void require_scores_of(const PruningPlan& plan, const ScoreTable& scores);

}  // namespace espalier
