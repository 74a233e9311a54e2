#pragma once

#include <cstdint>

#include "espalier/prune/plan.h"

// What a target means in units and in parameters. Internal to the module `prune`.

namespace espalier {

/// floor(n * ratio + 1e-9): units that a ratio takes of n. The addend makes k / n take k.
std::int64_t floor_share(std::int64_t n, double ratio);

/// Units of one kind in one layer of the dense model (KV heads for kv_group).
std::int64_t units_per_layer(const ModelConfig& config, AttentionUnit unit, UnitKind kind);

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

/// "structures", "decoder parameters", "parameters".
const char* measure_in_words(Measure measure);

/// Throws Error(config) unless 0 <= target <= 1.
void require_ratio(double target);

}  // namespace espalier
