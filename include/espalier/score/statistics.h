#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "espalier/comm/rank_group.h"
#include "espalier/config/run_config.h"
#include "espalier/core/error.h"
#include "espalier/model/blockwise.h"

namespace espalier {

/// Which halves of which layers are scored: [layer][UnitKind].
using ScoredHalves = std::vector<std::array<bool, 2>>;
/// The first scored half, numbered as in BackwardScope; 2 * layers where none is.
std::int64_t lowest_half(const ScoredHalves& scored);

/// One number per unit this rank holds: values[layer][UnitKind] in the order of the shard's units
/// (query heads or KV heads, and channels); empty where a half is not scored.
using UnitSums = std::vector<std::array<std::vector<double>, 2>>;

/// The additive numbers of one criterion. They are sums over micro-batches and over data ranks;
/// roots, absolute values and normalisation come after the reduction, so that results do not depend
/// on how the data was cut.
class Statistics : public BackwardObserver {
 public:
  /// Forgets everything: a new pass begins.
  virtual void clear() = 0;
  /// Sums over the ranks that hold the same shard. Collective over `data`, whatever the values are:
  /// those of this rank that are not finite are returned with tensor and layer, for the caller's
  /// next agreement.
  virtual Problems reduce(const RankGroup& data) = 0;
  /// The criterion's value per local unit, finite or not.
  virtual UnitSums finish() const = 0;
  /// The sums of this rank so far, on the host, or nothing when they are too large to keep.
  virtual std::optional<UnitSums> sums_so_far() const = 0;
  /// Goes on from such sums in place of zero.
  virtual void restore(const UnitSums& sums) = 0;
  /// Bytes the accumulators take on the device now.
  virtual std::int64_t bytes() const = 0;
  /// Bytes they take once every scored half was observed.
  virtual std::int64_t bytes_when_full() const = 0;
};

struct StatisticsOptions {
  Criterion criterion = Criterion::taylor;
  AttentionUnit unit = AttentionUnit::query_head;
  Reduction reduction = Reduction::gradients;
  Accumulate accumulate = Accumulate::automatic;
  ScoredHalves scored;
};

/// Statistics of a criterion that looks at gradients:
///  - taylor (arXiv 2510.18030): sum over the unit's weights of |w g|, g the gradient of the whole
///  objective,
///    accumulated over all data before the absolute value. Units' tensors: channel = gate row, up
///    row, down column; query head = q rows and o columns, with k and v rows under multi-head
///    attention; KV group = q rows and o columns of its heads and its k and v rows. With reduction
///    `scores` each rank takes the absolute value of its own share.
///  - taylor_gate: |sum over tokens of h dh| at the unit's gate.
///  - taylor_gate_sample: sum over sequences of |sum over the sequence's tokens of h dh|.
std::unique_ptr<Statistics> make_statistics(const CausalLM& model,
                                            const StatisticsOptions& options);

/// sum |w| over the same tensors as taylor. Throws Error(bad_content) naming tensor and layer for a
/// sum that is not finite.
UnitSums magnitude_sums(const CausalLM& model, const StatisticsOptions& options);

/// A uniform number per unit: a counter-based hash of (seed, iteration, layer, kind, unit).
UnitSums random_sums(const CausalLM& model, const StatisticsOptions& options, std::int64_t seed,
                     std::int64_t iteration);

/// The type in which gradients of weights are summed for a model of this type.
at::ScalarType accumulator_type(Accumulate accumulate, at::ScalarType model);

}  // namespace espalier
