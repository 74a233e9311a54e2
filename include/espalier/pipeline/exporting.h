#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <vector>

#include <nlohmann/json.hpp>

#include "espalier/export/export_model.h"
#include "espalier/pipeline/source.h"
#include "espalier/prune/plan.h"

namespace espalier {

/// What an export is told about the run it comes from.
struct ExportFacts {
  PruningPlan plan;
  nlohmann::ordered_json provenance;
  std::vector<nlohmann::ordered_json> metrics;  ///< rows of metrics.jsonl; may be empty
  std::function<void()> between_tensors;
};

/// Writes one export of `facts.plan` with model card and provenance. One process alone.
ExportReport export_plan(const Source& source, const PruneRules& rules, ExportFormat format,
                         const std::filesystem::path& out, const ExportFacts& facts);

/// What `espalier export` was asked to do.
struct ExportRequest {
  std::filesystem::path from;  ///< run directory, or a plan.h5 together with `model`
  /// Checkpoint that a plan file belongs to, or where a run's model is now; empty = where it was.
  std::filesystem::path model;
  std::filesystem::path out;
  ExportFormat format = ExportFormat::exact;
  std::optional<double> sparsity;  ///< a smaller plan of the same run, in `measure`
  std::optional<Measure> measure;  ///< absent = the run's own prune.measure
};
struct ExportOutcome {
  ExportReport report;
  Sparsity reached;
};
/// Exports the newest valid commit of a finished or unfinished run, or what a plan file leaves of a
/// model. Throws missing_input without one, config when sparsity is above what the run reached,
/// bad_content when the model is not the one that the run began with, cannot_create when `out`
/// exists.
ExportOutcome export_run(const ExportRequest& request);

}  // namespace espalier
