#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "espalier/config/model_config.h"
#include "espalier/config/run_config.h"
#include "espalier/prune/score_table.h"
#include "espalier/prune/tensor_catalog.h"
#include "espalier/prune/widths.h"

namespace espalier {

/// A row-major matrix of per-layer, per-unit numbers.
template <class T>
struct UnitMatrix {
  std::int64_t layers = 0;
  std::int64_t units = 0;
  std::vector<T> values;
  T& at(std::int64_t layer, std::int64_t unit) { return values[layer * units + unit]; }
  T at(std::int64_t layer, std::int64_t unit) const { return values[layer * units + unit]; }
  friend bool operator==(const UnitMatrix&, const UnitMatrix&) = default;
};

/// For each layer which units are kept and, for each removed unit, in which iteration and at which
/// place of the whole removal order it fell. Removed stays removed, so every prefix of the order is
/// a smaller plan.
struct PruningPlan {
  AttentionUnit attention_unit = AttentionUnit::query_head;
  /// The last iteration that is part of the plan.
  std::int64_t iteration = 0;
  std::string model_config_sha256;
  /// -1 = kept, k >= 1 = removed in iteration k.
  UnitMatrix<std::int32_t> attention_removed_at;
  /// -1 = kept, else place in the removal order from 0.
  UnitMatrix<std::int64_t> attention_order;
  UnitMatrix<std::int32_t> mlp_removed_at;
  UnitMatrix<std::int64_t> mlp_order;

  /// Units removed so far, both kinds.
  std::int64_t removed() const;
  /// SHA-256 over attention/removed_at, attention/order, mlp/removed_at, mlp/order, each as its two
  /// dimensions (int64) and its bytes, little-endian; 64 hex digits.
  std::string digest() const;
  friend bool operator==(const PruningPlan&, const PruningPlan&) = default;
};

/// The value of prune.attention_unit.
const char* name_of(AttentionUnit unit);

/// Nothing removed. Units are query heads, or KV heads for kv_group.
PruningPlan dense_plan(const ModelConfig& config, AttentionUnit unit);

/// A plan that leaves `widths` when how it came to them is not known: whatever is gone fell in
/// iteration 1 (the plan is dense_plan when nothing is), by layer, attention before channels.
/// Throws Error(config) naming the layer when `unit` is kv_group and a group lost some of its
/// heads, or equal_per_group and one group lost more than another.
PruningPlan plan_of_widths(const ModelConfig& config, const ModelWidths& widths,
                           AttentionUnit unit);

/// The first difference, in words, that keeps `plan` from continuing `before` (same units gone at
/// the same places of the order, everything else kept or removed in a later iteration); empty when
/// there is none. Pure.
std::string break_of_continuation(const PruningPlan& before, const PruningPlan& plan);

/// What is left of every layer.
ModelWidths widths_of(const ModelConfig& config, const PruningPlan& plan);

void write_plan(Hdf5Writer& file, const std::string& group, const PruningPlan& plan);
/// Validates shapes, ranges, the order (a permutation of the removed units), the digest, and for
/// equal_per_group that every group of a layer lost as many heads.
PruningPlan read_plan(const Hdf5Reader& file, const std::string& group, const ModelConfig& config);

/// The rules that a plan obeys; resolved from PruneConfig for one model.
struct PruneRules {
  bool attention = true;
  bool mlp = true;
  Ranking ranking = Ranking::global;
  Measure measure = Measure::structures;
  /// [layers].
  std::vector<bool> protected_layer;
  /// Query heads per layer, also for kv_group.
  std::int64_t min_heads = 1;
  std::int64_t min_channels = 1;
  /// Channels of a layer fall in blocks of so many (advance); 1 = one by one.
  std::int64_t width_multiple = 1;
};
/// Throws Error(config) with all values that do not go with the model.
PruneRules prune_rules(const ModelConfig& config, const PruneConfig& prune);

/// Throws Error(config) naming the layer unless every layer of `plan` keeps a multiple of
/// rules.width_multiple channels: only then can they fall in whole blocks.
void require_multiples(const ModelConfig& config, const PruneRules& rules, const PruningPlan& plan);

/// Structures removed / all rankable units of the listed kinds (protected ones count), decoder
/// parameters removed / decoder parameters of the dense model, and the same over all parameters.
struct Sparsity {
  double structures = 0;
  double parameters = 0;
  double total_parameters = 0;
  double of(Measure measure) const;
};
Sparsity sparsity_of(const ModelConfig& config, const PruneRules& rules, const PruningPlan& plan);

/// The cumulative target after iteration i of n, for a run whose source has lost `start` already
/// (reached_target; 0 = unpruned): start + (target - start) x shape(i / n), and for `geometric`
/// 1 - (1 - start) x ((1 - target) / (1 - start))^(i / n), so that the kept share falls by one
/// factor per iteration. start at i = 0, exactly the target at i >= n. arXiv 2510.18030.
double scheduled_target(const PruneConfig& prune, double start, std::int64_t iteration);

/// Throws Error(config) unless a run that went to the cumulative target `went_to` in its iteration
/// `done` (counted from its start) can go on, or is complete, under this schedule: the next
/// iteration must not ask for less, and where none is left the target must be what was gone to.
void require_continuable(const PruneConfig& prune, double start, std::int64_t done, double went_to);

/// The highest ratio that the rules allow a run that starts from `start`, in the rules' measure. A
/// target above it is a configuration error (require_reachable throws Error(config) with both
/// numbers, and as require_multiples does).
double reachable_target(const ModelConfig& config, const PruneRules& rules,
                        const PruningPlan& start);
void require_reachable(const ModelConfig& config, const PruneRules& rules, const PruningPlan& start,
                       double target);

/// What `plan` has come to in the terms of a target: the highest ratio that asks for no unit more.
/// Under `global` that is sparsity_of in the rules' measure; where lists are cut by themselves
/// (kinds, or kinds and unprotected layers) that of the list that is behind. 0 for a dense plan.
double reached_target(const ModelConfig& config, const PruneRules& rules, const PruningPlan& plan);

/// Throws Error(config) when `target` takes no unit beyond those that `start` removed, with both
/// numbers: the run would score everything for nothing.
void require_work(const ModelConfig& config, const PruneRules& rules, const PruningPlan& start,
                  double target);

/// What a width_multiple costs in one step: the scores of all that fell, summed, and of what the
/// free choice (width_multiple 1, all else the same) takes of the same scores when it goes as far:
/// to no more units in each list that is cut, or by parameters to no more parameters.
struct RoundingCost {
  double importance = 0;
  double free_importance = 0;
};

struct Advance {
  PruningPlan plan;
  /// (lowest kept - highest removed) / highest removed, over what could fall.
  double margin_at_cut = 0;
  /// Attention units that fell in this step.
  std::int64_t removed_heads = 0;
  std::int64_t removed_channels = 0;
  /// Absent for width_multiple 1, and where a score of infinity fell.
  std::optional<RoundingCost> rounding;
};

/// One pruning step: ranks the surviving units of unprotected layers by the total order (score,
/// layer, kind, unit) and removes the lowest until the cumulative `target` (in rules.measure) is
/// reached.
///  - structures: K = floor(N * target + 1e-9) units in all; parameters: the longest prefix of the
///  order that
///    does not exceed the target, a query head that is the last reader of its KV head carrying its
///    k and v rows.
///  - a unit that would break a floor is passed over and the next one is taken.
///  - under equal_per_group the j-th lowest heads of all groups of a layer are ranked as one entry
///  by the mean of their scores and fall together, so that every group loses as many; where the
///  next entry is more than the target leaves, the step ends there.
///  - under a width_multiple m the j-th m lowest channels of a layer are ranked as one entry by the
///  mean of their scores and fall together, so that a layer keeps a multiple of m; where the next
///  entry is more than the target leaves, the step ends there. Every list ends below its target by
///  less than its largest entry, and min_channels rounds up to a multiple.
///  - global: one list; global_by_kind: each kind on its own; local: every unprotected layer loses
///    floor(n * target) of each kind.
/// Pure: the same inputs give the same plan on every rank and machine. Scores of protected layers
/// may be absent. Throws Error(bad_content) naming layer and unit for a score that is not finite,
/// Error(internal) for a surviving unit without a score, and as require_multiples does.
Advance advance(const ModelConfig& config, const PruningPlan& plan, const ScoreTable& scores,
                double target, const PruneRules& rules, std::int64_t iteration);

/// Throws Error(bad_content) naming a unit unless `plan` removes everything that `base` removed, in
/// the same attention unit: what a checkpoint has lost no plan can use.
void require_part(const PruningPlan& base, const PruningPlan& plan);

/// The largest plan inside `plan` that does not exceed `target` in rules.measure: replays the
/// removal order under the same rules. `base` is what the model had lost before (dense_plan for an
/// unpruned one), which is part of every result. Throws Error(config) with the range of what can be
/// had when target is below what base or above what the plan reached, and as require_part and
/// require_multiples do.
PruningPlan truncate_plan(const ModelConfig& config, const PruningPlan& plan,
                          const PruningPlan& base, double target, const PruneRules& rules);

}  // namespace espalier
