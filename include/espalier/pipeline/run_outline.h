#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "espalier/config/model_config.h"
#include "espalier/config/run_config.h"
#include "espalier/prune/plan.h"
#include "espalier/prune/widths.h"

namespace espalier {

/// One domain as the first iteration draws it, or the refit.
struct DomainOutline {
  std::string name;
  Objective objective = Objective::causal_lm;
  /// Whether its token file is there; nothing below is known without it.
  bool known = false;
  /// Of the file: the sequence length.
  std::int64_t sequence_tokens = 0;
  /// Rows, and under `margin` items.
  std::int64_t sequences = 0;
  std::int64_t items = 0;
  /// Of the rows that are drawn, without padding.
  std::int64_t tokens = 0;
  /// With the padding that goes through the model: every row as long as its micro-batch's longest.
  std::int64_t computed_tokens = 0;
  std::int64_t micro_batches = 0;
};

/// What a run will do, as far as config.json and the token files that are there tell it.
struct RunOutline {
  std::int64_t parameters = 0;
  std::int64_t decoder_parameters = 0;
  std::vector<std::int64_t> protected_layers;
  /// Units of the listed kinds in all layers; what ratios of structures count from.
  std::int64_t structures = 0;
  /// Of these, in layers that are not protected.
  std::int64_t unprotected_structures = 0;
  /// Units that the target removes; only where it says so by itself: `measure: structures` of one
  /// list over all layers, whose entries are single units.
  std::optional<std::int64_t> removed_structures;
  std::vector<DomainOutline> domains;

  /// In each iteration; empty when a token file is absent.
  std::optional<std::int64_t> tokens() const;
};

/// Of a run that begins with the dense model. Throws Error(config) when prune.target is given and
/// the rules do not let the run reach it, and what is wrong with the head of a token file.
RunOutline outline_run(const RunConfig& config, const ModelConfig& model);

/// What one draw of every domain comes to. Throws as outline_run does for a token file.
std::vector<DomainOutline> outline_domains(const CalibrationConfig& data, const ModelConfig& model);

/// What would be left at `target` if all layers that may lose units lost the same share of them.
ModelWidths expected_widths(const ModelConfig& model, const PruneRules& rules,
                            const RunOutline& outline, double target);

nlohmann::ordered_json to_json(const RunOutline& outline, const RunConfig& config,
                               const ModelConfig& model);
/// Lines for people: model, target, domains.
std::string outline_text(const RunOutline& outline, const RunConfig& config,
                         const ModelConfig& model);

}  // namespace espalier
