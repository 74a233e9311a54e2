#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>

#include <nlohmann/json.hpp>

#include "espalier/calib/calibration.h"
#include "espalier/comm/runtime.h"
#include "espalier/config/run_config.h"
#include "espalier/eval/evaluation.h"
#include "espalier/pipeline/fingerprint.h"
#include "espalier/pipeline/refit_store.h"
#include "espalier/pipeline/source.h"
#include "espalier/prune/feature_means.h"
#include "espalier/prune/plan.h"
#include "espalier/refit/refit.h"

namespace espalier {

/// What is refitted, and whose scores looked at which data before.
struct RefitSubject {
  const RunConfig& config;
  const Source& source;
  const PruningPlan& plan;
  /// The exported model has biases of these.
  std::optional<FeatureMeans> means;
  /// Iterations that were scored: their rows are avoided.
  std::int64_t first_iteration = 1;
  std::int64_t last_iteration = 0;
  /// Fingerprints of the model and the token files; what is not there is looked at now.
  Inputs inputs;
};

/// The model that is refitted, cut and loaded as the plan left it, and how it is held.
struct RefitTarget {
  CausalLM& model;
  /// Where its layers come from one after the other; null where all are here.
  StreamedLayers* layers = nullptr;
  /// Where `layers` keeps what a refit changes, for passes that follow; empty where none does.
  std::filesystem::path overlay{};
};

/// One refit of one plan: its data, its identity, its report.
class Refitting {
 public:
  /// Draws the data. Throws as Calibration::draw does. Not collective; the same on every rank.
  Refitting(const RefitSubject& subject, at::ScalarType dtype);

  /// SHA-256 over everything that the matrices depend on but rounding: the plan's digest, the
  /// means, the settings, the rows and files of the data, the model, model.dtype.
  const std::string& key() const { return key_; }
  std::int64_t layers() const { return subject_.source.config.layers; }
  /// Of its directory below RUN/refit: beginnings of the plan's digest and of the key.
  std::string directory_name() const;
  /// What is worth telling about the data.
  void tell() const;

  /// Gives the target the biases and matrices that the export gets; of a target that is held layer
  /// by layer, none is here afterwards, and they come with them from then on if there is a place
  /// for the overlay. `store` = absent: nothing is kept. `everywhere`: every rank sees the store's
  /// directory. Returns what refit.json holds of the refit, the same on every rank. Collective;
  /// throws as refit() does, unsuitable where memory does not suffice.
  nlohmann::ordered_json apply(const RefitTarget& target, RefitStore* store, bool everywhere,
                               const ProcessGrid& grid, const CommRuntime& runtime,
                               const RoundHooks& hooks);

 private:
  RefitSteps steps(const RefitTarget& target) const;
  nlohmann::ordered_json record(const RefitReport& report) const;

  const RefitSubject subject_;
  RefitConfig settings_;  // with the matrices chosen
  at::ScalarType dtype_;
  Calibration data_;
  /// By domain: rows that the scores were taken on, too.
  std::vector<std::int64_t> reused_;
  ModelWidths kept_;
  std::string key_;
};

/// RUN/refit and RUN/refit.json.
inline std::filesystem::path refits_in(const std::filesystem::path& run) { return run / "refit"; }
inline std::filesystem::path refit_record_in(const std::filesystem::path& run) {
  return run / "refit.json";
}
class RunDirectory;

/// What a run directory holds of its refit: the layers that are finished, and refit.json once all
/// are and the model was evaluated. Stale ones (of another plan, other settings or data; all of
/// them where nothing is refitted) are swept. Files are rank 0's, but for the layers that others
/// solve.
class RefitRecords {
 public:
  /// `directory` is null on every rank but 0, `refitting` where the run has none. Collective.
  RefitRecords(Communicator& world, RunDirectory* directory, const Refitting* refitting);

  /// All of it is there and whole; the same on every rank.
  bool finished() const { return finished_; }
  /// Refitting::apply with the run's store. Collective.
  nlohmann::ordered_json apply(Refitting& refitting, const RefitTarget& target,
                               const ProcessGrid& grid, const CommRuntime& runtime,
                               const RoundHooks& hooks);
  /// Writes refit.json: the record with the evaluations before and after, and the seconds of each
  /// phase since the last line of metrics.jsonl. Rank 0.
  void finish(nlohmann::ordered_json record, const std::vector<TaskOutcome>& after,
              const std::map<std::string, double>& seconds) const;

 private:
  void look(const Refitting* refitting);

  Communicator& world_;
  RunDirectory* directory_;
  std::filesystem::path layers_;
  std::string key_;
  bool finished_ = false;
  bool everywhere_ = false;
};

/// What an export needs of a finished refit.
struct ExportedRefit {
  nlohmann::ordered_json record;
  RefitParts parts;
};
/// That of a run and plan, every file compared with its hash; nothing where none is finished.
/// Throws as open_refit does. Not collective.
std::optional<ExportedRefit> refit_of_run(const std::filesystem::path& run, const PruningPlan& plan,
                                          const ModelConfig& config);

/// refit.json of a run, where one of this plan is finished; null otherwise. Not collective.
nlohmann::ordered_json finished_refit(const std::filesystem::path& run,
                                      const std::string& plan_digest);

}  // namespace espalier
