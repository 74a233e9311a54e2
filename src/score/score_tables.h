#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "espalier/calib/calibration.h"
#include "espalier/comm/communicator.h"
#include "espalier/model/causal_lm.h"
#include "espalier/prune/feature_means.h"
#include "espalier/prune/score_table.h"
#include "espalier/score/score.h"
#include "espalier/score/score_lists.h"
#include "espalier/score/statistics.h"
#include "scored_units.h"

namespace espalier {

/// What a pass gives away, of the values that every tensor rank has of its own units. Refers to
/// what it is made of; methods are collective over `tensor`.
class ScoreTables {
 public:
  ScoreTables(const CausalLM& model, const Calibration& data, const ScoreRequest& request,
              const ScoredUnits& units, const Statistics& statistics, Communicator& tensor);

  /// Of rows that are the domains, combined as the request says, or of one of the pooled data.
  /// `loss` and `tokens`: of all data.
  ScoreTable combined(const std::vector<UnitSums>& rows, bool row_per_domain,
                      const std::vector<double>& loss, std::int64_t tokens) const;
  /// One of each domain.
  std::vector<ScoreTable> of_domains(const std::vector<UnitSums>& rows,
                                     const std::vector<double>& loss, std::int64_t tokens) const;
  /// In their places, from what was summed at the gates.
  FeatureMeans means(const UnitSums& at_gates) const;

 private:
  ScoreTable described(const std::vector<double>& loss, std::int64_t tokens) const;
  void fill(ScoreTable& table, const std::vector<UnitSums>& rows, const Scoring& scoring) const;
  std::vector<RawBlock> raw_blocks(const std::vector<UnitSums>& rows) const;

  const CausalLM& model_;
  const Calibration& data_;
  const ScoreRequest& request_;
  const ScoredUnits& units_;
  const Statistics& statistics_;
  Communicator& tensor_;
};

}  // namespace espalier
