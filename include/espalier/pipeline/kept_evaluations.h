#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include <nlohmann/json.hpp>

#include "espalier/comm/communicator.h"
#include "espalier/eval/evaluation.h"
#include "espalier/pipeline/fingerprint.h"

namespace espalier {

/// What is being evaluated: what was kept of anything else is of no use.
struct EvaluatedState {
  std::int64_t iteration = 0;
  std::string plan_digest;
  /// Of the weights.
  std::string dtype;
};

/// evaluation.json of a run directory (docs/file-formats.md): the evaluations of the iteration
/// under way that are finished, and the rows of one that was stopped, so that a run which is
/// interrupted does not do them again. It appears and changes whole, and goes with the iteration's
/// line of metrics.jsonl.
class KeptEvaluations {
 public:
  /// `directory` is absent on every rank but 0, which alone reads and writes. A file of another
  /// state is removed; one that cannot be read is too, with a warning. `inputs` has the
  /// fingerprints of the model and the token files. Collective over `world`.
  KeptEvaluations(Communicator& world, std::optional<std::filesystem::path> directory,
                  const EvaluatedState& state, const Inputs& inputs);

  /// An evaluation is recalled if kind, name, settings and the content of its file are the same.
  EvaluationKeeper keeper();

  static std::filesystem::path file_in(const std::filesystem::path& run_directory) {
    return run_directory / "evaluation.json";
  }

 private:
  void read();
  Inputs file_of(const Evaluation& evaluation) const;
  bool has(const Evaluation& evaluation) const;
  KeptEvaluation recall(const Evaluation& evaluation) const;
  void keep(const Evaluation& evaluation, const KeptEvaluation& kept);

  Communicator* world_;
  std::optional<std::filesystem::path> file_;  // rank 0 only
  nlohmann::ordered_json state_;
  const Inputs* inputs_;
  nlohmann::ordered_json entries_ = nlohmann::ordered_json::object();  // by name; rank 0 only
};

}  // namespace espalier
