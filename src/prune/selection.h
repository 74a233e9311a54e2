#pragma once

#include <cstdint>
#include <vector>

#include "espalier/prune/plan.h"
#include "ledger.h"

namespace espalier {

/// Which of the candidates fall, in the total order (bundles under equal_per_group, blocks under a
/// width_multiple).
struct Selection {
  std::vector<Candidate> fallen;
  /// Smallest relative gap between the lowest kept and the highest fallen.
  double margin = 0;
  /// Units that a target by structures wants and the floors refuse.
  std::int64_t missing = 0;
};

/// Takes candidates, already in the total order, until the cumulative `target` is reached, or the
/// next of them would go beyond it, under the ranking, the measure and the ledger's floors. What
/// the ledger already removed counts. Used with scores by advance() and with the removal order by
/// truncate_plan().
Selection select(const ModelConfig& config, const PruneRules& rules, AttentionUnit unit,
                 const std::vector<Candidate>& candidates, Ledger ledger, double target);

/// The same, until as many units, or by parameters as many parameters, have gone in each list as
/// lie between the ledgers `start` and `end`: what another choice took of the same model.
Selection select_as_far(const ModelConfig& config, const PruneRules& rules, AttentionUnit unit,
                        const std::vector<Candidate>& candidates, const Ledger& start,
                        const Ledger& end);

/// Whether `target` takes any unit beyond those that `plan` removed, for some order of the units.
bool asks_for_units(const ModelConfig& config, const PruneRules& rules, const PruningPlan& plan,
                    double target);

}  // namespace espalier
