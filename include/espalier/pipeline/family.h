#pragma once

#include <filesystem>

#include <nlohmann/json.hpp>

#include "espalier/pipeline/source.h"
#include "espalier/prune/plan.h"

namespace espalier {

/// What a run removed, and with it every smaller plan of its removal order: what `export
/// --sparsity` writes and `eval RUN --sparsity` walks.
struct PlanFamily {
  Source source;
  PruneRules rules;
  /// The largest.
  PruningPlan plan;
  /// Of what fell, where the run compensates for it.
  std::optional<FeatureMeans> means;

  /// What the source had lost before: the smallest.
  PruningPlan base() const { return start_plan(source, plan.attention_unit); }
  /// The largest plan not above `sparsity` in rules.measure. Throws as truncate_plan does.
  PruningPlan part(double sparsity) const;
};

/// The family of a run's newest valid commit under the rules that it was begun with. `model`: where
/// the run's model is now; empty = where it was. Throws missing_input without a run or a commit,
/// bad_content when the model is not the one that the run began with. One process alone.
PlanFamily family_of_run(const std::filesystem::path& run, const std::filesystem::path& model = {});

/// {sparsity_structures, sparsity_parameters, sparsity_total_parameters, parameters}, as a row of
/// metrics.jsonl has them.
nlohmann::ordered_json size_of(const ModelConfig& config, const PruneRules& rules,
                               const PruningPlan& plan);

/// What matters to a server of such widths: {heads, kv_heads, channels: [least, most] of the
/// layers, uniform (stock classes load it), whole_groups (in each layer every KV head has as many
/// query heads), channel_multiple (largest power of two up to 256 that divides all channels; 0 when
/// no layer has any), tensor_parallel (those of 2, 4, 8 that divide KV heads and channels of every
/// layer, with whole groups)}.
nlohmann::ordered_json serving_facts(const ModelConfig& config, const ModelWidths& widths);

/// A row of size_of() and serving_facts() for each size from `base` to `plan` that is worth a look,
/// smallest sparsity first, each with `sparsity`, which gives it to `export --sparsity`: one at
/// each 0.1 of the measure; for `local` by structures and only where the channels of the layers can
/// be a multiple of 256, 128 or 64, the nearest smaller sparsity that makes them one.
nlohmann::ordered_json sizes_of(const ModelConfig& config, const PruneRules& rules,
                                const PruningPlan& plan, const PruningPlan& base);

}  // namespace espalier
