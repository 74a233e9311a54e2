#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "espalier/calib/calibration.h"
#include "espalier/comm/process_grid.h"
#include "espalier/core/error.h"
#include "espalier/score/score.h"

namespace espalier {

/// Micro-batches with values that are not finite: those that were found in the traversal under way,
/// and those that are out of the data because of it (calibration.non_finite: skip-batch).
///
/// Sums that hold something of a broken micro-batch are worth nothing, so a traversal in which one
/// was found goes on only to find the others, and is then begun anew without them. A rank that
/// finds more than may be skipped fails at once.
class SkippedBatches {
 public:
  /// `most` may be skipped of a pass of this iteration.
  SkippedBatches(const ProcessGrid& grid, std::int64_t iteration, std::int64_t most)
      : grid_(grid), iteration_(iteration), most_(most) {}

  /// Keeps a broken micro-batch, by its place in the traversal's order, for leave_out() where it
  /// may be skipped; else returns what is wrong. Not collective.
  Problems note(std::int64_t micro_batch, Problems problems);
  /// Takes what was broken on any rank out of the data, with a warning; false where nothing was.
  /// Collective; throws AgreedError where it is more than may be, or all of a domain.
  bool leave_out(Calibration& data, const std::vector<MicroBatch>& order);
  /// One that another process left out.
  void recall(SkippedBatch batch) { skipped_.push_back(std::move(batch)); }

  /// Nothing is broken on this rank, and nothing is out of the data.
  bool none() const { return broken_.empty() && skipped_.empty(); }
  const std::vector<SkippedBatch>& skipped() const { return skipped_; }

 private:
  struct Broken {
    std::int64_t micro_batch = 0;
    Problems problems;
  };

  Problem too_many(std::size_t count) const;
  void exclude(Calibration& data, const std::vector<MicroBatch>& order,
               const std::vector<std::int64_t>& numbers);
  void add_what_cannot_go_on(const Calibration& data, Problems& problems) const;
  void warn(std::size_t count, const std::vector<std::string>& told) const;

  const ProcessGrid& grid_;
  std::int64_t iteration_, most_;
  std::vector<Broken> broken_;
  std::vector<SkippedBatch> skipped_;
};

}  // namespace espalier
