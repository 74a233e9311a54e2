#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <vector>

#include <nlohmann/json.hpp>

#include "espalier/export/export_model.h"
#include "espalier/pipeline/family.h"
#include "espalier/pipeline/refitting.h"
#include "espalier/pipeline/run_directory.h"
#include "espalier/pipeline/source.h"
#include "espalier/prune/plan.h"

namespace espalier {

/// What an export is told about the run it comes from.
struct ExportFacts {
  PruningPlan plan;
  /// Of what fell: the export compensates for it.
  std::optional<FeatureMeans> means;
  nlohmann::ordered_json provenance;
  /// Rows of metrics.jsonl; may be empty.
  std::vector<nlohmann::ordered_json> metrics;
  std::function<void()> between_tensors;
  /// What stands in the place is this run's own and goes.
  bool replace = false;
  /// Matrices in the place of the source's.
  std::optional<ExportedRefit> refit{};
};

/// Writes one export of `facts.plan` with model card and provenance. One process alone.
ExportReport export_plan(const Source& source, const PruneRules& rules, ExportFormat format,
                         const std::filesystem::path& out, const ExportFacts& facts);

/// Throws Error(config) where a run that compensates for what it removes, or whose source has
/// output biases, is to write an export in a form that cannot hold them, whatever its widths.
void require_export_forms(const Source& source, const RunConfig& config);

/// Looks at the places of a run's exports before hours of work go into them. Throws config when two
/// share a place, cannot_create when something stands there that the run may not replace: anything
/// but an export that this run wrote inside its directory and that nobody changed or added to.
/// Where nothing but exports is ahead, write_run_export follows at once and looks itself at what
/// stands there.
enum class Ahead { iterations, exports };
void require_export_places(const RunDirectory& run, const RunConfig& config, Ahead ahead);

/// Writes one export of the run's plan, unless a whole one of this plan in this form is there. A
/// stale or incomplete one of this run gives way once the new one is whole; anything else is
/// refused with cannot_create. Only rank 0.
void write_run_export(const Source& source, const PruneRules& rules, const RunDirectory& run,
                      const ExportConfig& target, ExportFacts facts);

/// What `espalier export` was asked to do.
struct ExportRequest {
  /// Run directory, or a plan.h5 together with `model`.
  std::filesystem::path from;
  /// Checkpoint that a plan file belongs to, or where a run's model is now; empty = where it was.
  std::filesystem::path model;
  std::filesystem::path out;
  ExportFormat format = ExportFormat::exact;
  /// Write biases for what fell, where the run or the plan file has the means.
  bool compensate = true;
  /// A smaller plan of the same run, in `measure`.
  std::optional<double> sparsity;
  /// Absent = the run's own prune.measure.
  std::optional<Measure> measure;
  /// The refit's settings are those that the run has: its own refit may be taken, if it is of the
  /// plan that is exported.
  bool may_reuse = true;
};
struct ExportOutcome {
  ExportReport report;
  Sparsity reached;
};
/// Exports the newest valid commit of a finished or unfinished run, or what a plan file leaves of a
/// model. Throws missing_input without one, config when sparsity is above what the run reached or
/// below what its source had lost, bad_content when the model is not the one that the run began
/// with or a plan file is not of the model, cannot_create when `out` exists.
ExportOutcome export_run(const ExportRequest& request);

/// What is exported, and what is told about it.
struct ExportOrigin {
  PlanFamily family;
  ExportFacts facts;
};
/// The run or plan file that the request names, with the plan that it asks for. Throws as
/// export_run does. Not collective.
ExportOrigin export_origin(const ExportRequest& request);

/// export_run with refitted matrices: those of the run's own refit where it is of this plan, else
/// made now, on the data of `config` (the run's). Finished layers are kept in OUT.refit until the
/// export is whole, so that the same command continues. Only rank 0 has the outcome. Collective
/// over runtime.world(); throws as export_run and refit() do, and stop::Stopped.
ExportOutcome export_refitted(CommRuntime& runtime, const RunConfig& config,
                              const ExportRequest& request);

}  // namespace espalier
