#pragma once

#include <cstdint>
#include <string>

#include "espalier/prune/plan.h"

// What a target means in units and in parameters. Internal to the module `prune`.

namespace espalier {

/// floor(n * ratio + 1e-9): units that a ratio takes of n. The addend makes k / n take k.
std::int64_t floor_share(std::int64_t n, double ratio);

/// Units of one kind in one layer of the dense model (KV heads for kv_group).
std::int64_t units_per_layer(const ModelConfig& config, AttentionUnit unit, UnitKind kind);

/// Attention units that fall together: a query head of every group for equal_per_group, else one.
std::int64_t units_per_bundle(const ModelConfig& config, AttentionUnit unit);

/// Units of one kind that fall together: a bundle, or as many channels as width_multiple says.
std::int64_t units_per_entry(const ModelConfig& config, const PruneRules& rules, AttentionUnit unit,
                             UnitKind kind);

/// The largest multiple of `entry` that is not above `units`: what whole entries can take of them.
std::int64_t whole_entries(std::int64_t units, std::int64_t entry);

/// What every number of units that a list of all listed kinds can lose is a multiple of.
std::int64_t units_per_entry(const ModelConfig& config, const PruneRules& rules,
                             AttentionUnit unit);
/// The most units that fall together in such a list.
std::int64_t largest_entry(const ModelConfig& config, const PruneRules& rules, AttentionUnit unit);

/// The first layer in which a plan under equal_per_group took more heads from one group than from
/// another; -1 when there is none, and for other units.
std::int64_t uneven_layer(const ModelConfig& config, const PruningPlan& plan);

/// Whether the rules rank units of the kind at all.
bool is_listed(const PruneRules& rules, UnitKind kind);

/// Rankable units of the listed kinds in the dense model, protected layers included.
std::int64_t rankable_units(const ModelConfig& config, const PruneRules& rules, AttentionUnit unit);

/// Parameters of all units of one kind in the dense model.
std::int64_t kind_parameters(const ModelConfig& config, UnitKind kind);

/// Parameters that `target` allows to be removed, in the measure parameters or total_parameters. A
/// product that misses an integer by rounding only (4 eps) counts as that integer, so that the
/// sparsity which a plan reports finds the same plan again.
std::int64_t parameter_budget(const ModelConfig& config, Measure measure, double target);

/// The share of the budget that one kind gives under global_by_kind: in proportion to
/// kind_parameters of the listed kinds, so that every kind loses the same share of its own and both
/// make the target.
std::int64_t kind_budget(const ModelConfig& config, const PruneRules& rules, UnitKind kind,
                         double target);

/// ", width_multiple is 64"; empty for 1.
std::string multiple_in_words(const PruneRules& rules);

/// "structures", "decoder parameters", "parameters".
const char* measure_in_words(Measure measure);

/// Throws Error(config) unless 0 <= target <= 1.
void require_ratio(double target);

}  // namespace espalier
