#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "espalier/calib/layer_rounds.h"
#include "espalier/comm/agreement.h"
#include "espalier/comm/process_grid.h"
#include "espalier/config/run_config.h"
#include "espalier/model/causal_lm.h"

namespace espalier {

/// One number that an evaluation came to.
struct TaskResult {
  /// Name of the evaluation.
  std::string task;
  /// "perplexity", "loss", "acc", "acc_norm", ...
  std::string metric;
  double value = 0;
  /// Standard error of `value`; absent where the terms of its mean are not independent.
  std::optional<double> standard_error;
  /// Terms of the mean: tokens, items.
  std::int64_t n = 0;
};

/// All that an evaluation came to.
struct TaskOutcome {
  /// "perplexity", "multiple_choice", ...: the list of the configuration that it is in.
  std::string kind;
  std::string task;
  std::vector<TaskResult> results;
  /// What eval.json holds at [kind][task].
  nlohmann::ordered_json facts;
  /// What is known of each item, where items were asked for.
  std::vector<nlohmann::ordered_json> items;
};

/// What has been measured of an evaluation: some numbers for each row of its file, which are 0
/// until the row is done, so that ranks add up theirs.
struct RowValues {
  /// Rows that are done: the first ones in the order of the work (rows_by_length).
  std::int64_t done = 0;
  /// [rows, columns], by the row's number in the file.
  std::vector<double> values;
};

/// One evaluation of the configuration. A kind is a subclass: it says how many numbers it wants for
/// each row, computes those of a few rows at a time, and makes metrics of them once all are there.
/// `evaluate` does the rest: the order, the micro-batches, the ranks, requests to stop.
class Evaluation {
 public:
  Evaluation(std::string kind, std::string name, std::filesystem::path tokens);
  virtual ~Evaluation() = default;

  const std::string& kind() const { return kind_; }
  const std::string& name() const { return name_; }
  const std::filesystem::path& tokens() const { return tokens_; }
  /// What else decides about the numbers, beside the model and the file: for what was kept of an
  /// earlier start.
  virtual nlohmann::ordered_json settings() const { return nlohmann::ordered_json::object(); }

  /// Items will be asked for: what they need is to be among the numbers. Before open().
  virtual void want_items() {}
  /// Opens the file on this rank for a vocabulary. Throws what TokenFile::open does. Not
  /// collective; first of all.
  virtual void open(std::int64_t vocabulary) = 0;
  /// [rows], positions that each row takes, what is generated included.
  virtual std::vector<std::int32_t> row_lengths() const = 0;
  /// Numbers for each row.
  virtual std::int64_t columns() const = 0;
  /// Reads rows for the next compute(); `origin` names them in messages. May fail alone.
  virtual void read(std::span<const std::int64_t> rows, const CausalLM& model,
                    const std::string& origin) = 0;
  /// Writes the numbers of the rows that were read: values_NC is [rows read, columns], zero before.
  /// Collective over `tensor`; the same numbers on all its ranks. What is wrong is returned.
  virtual Problems compute(const CausalLM& model, const RankGroup& tensor,
                           std::span<double> values_NC) = 0;

  /// Of a kind that wants nothing but losses, which may be computed layer by layer: the rows that
  /// were read, as they go through the model, and the numbers that come of their losses, as
  /// compute() would write them. Another kind needs the whole model.
  virtual bool wants_losses_only() const { return false; }
  virtual TokenBatch batch() const { return {}; }
  virtual void take_losses(const at::Tensor& nll_N, std::span<double> values_NC) const {
    static_cast<void>(nll_N);
    static_cast<void>(values_NC);
  }

  /// The metrics and the facts (TaskOutcome) of the numbers of all rows, [rows, columns]. Pure.
  virtual TaskOutcome outcome(std::span<const double> values_NC) const = 0;
  /// An object for each item, for a comparison item by item; none where there are no items.
  virtual std::vector<nlohmann::ordered_json> items(std::span<const double> values_NC) const {
    static_cast<void>(values_NC);
    return {};
  }

 private:
  std::string kind_, name_;
  std::filesystem::path tokens_;
};

/// Those of the configuration, in the order of its lists; every kind is made here.
std::vector<std::unique_ptr<Evaluation>> make_evaluations(const EvaluationConfig& config);

/// Row numbers from the longest row to the shortest, equal ones in the order of the file: what
/// needs most memory comes first, and little is padded.
std::vector<std::int64_t> rows_by_length(std::span<const std::int32_t> lengths);

/// Where the micro-batches of the rows from place `begin` of an order end: as many rows as fit into
/// `micro_batch_tokens` when all are as long as the first of them, and at least one. An order that
/// is begun again where a micro-batch ended is cut as before.
std::vector<std::int64_t> micro_batch_ends(std::span<const std::int32_t> lengths,
                                           std::span<const std::int64_t> order, std::int64_t begin,
                                           std::int64_t micro_batch_tokens);

/// What is the same for all evaluations of a model.
struct EvaluateOptions {
  std::int64_t micro_batch_tokens = 8192;
  /// Fill TaskOutcome::items.
  bool items = false;
  RoundHooks hooks{};
  /// The layers of a model of which few are here at a time; all of it is here while an evaluation
  /// needs that.
  std::optional<LayerByLayer> layer_by_layer{};
};

/// Measures the rows that `rows` lacks, in micro-batches dealt to the data ranks; rows of another
/// shape than the evaluation's are begun anew. The numbers do not depend on micro-batches and
/// ranks, up to rounding. Collective over grid.world(): one sum of [rows, columns] numbers over
/// data ranks at the end; the same outcome on every rank. Throws AgreedError as deal_rounds does,
/// and stop::Stopped with `rows` as far as they are done.
TaskOutcome evaluate(Evaluation& evaluation, const CausalLM& model, const ProcessGrid& grid,
                     const EvaluateOptions& options, RowValues& rows);

/// What a run keeps of an evaluation, so that it is not done again.
struct KeptEvaluation {
  /// Of one that is finished.
  std::optional<TaskOutcome> outcome;
  /// Of one that was stopped.
  RowValues rows;
};
struct EvaluationKeeper {
  /// What was kept, the same on every rank.
  std::function<KeptEvaluation(const Evaluation&)> recall;
  /// Called by every rank when an evaluation is finished or stopped; collective.
  std::function<void(const Evaluation&, const KeptEvaluation&)> keep;
};

/// All evaluations of the configuration on this model, one after another; those that `keeper` has
/// are not done again. Collective over grid.world(); the same on every rank. Throws as evaluate
/// does.
std::vector<TaskOutcome> evaluate_all(const EvaluationConfig& config, const CausalLM& model,
                                      const ProcessGrid& grid, const EvaluateOptions& options,
                                      const EvaluationKeeper& keeper = {});

/// {kind: {task: facts}}, with an empty object for perplexity where there is none.
nlohmann::ordered_json facts_of(const std::vector<TaskOutcome>& outcomes);
/// [{task, metric, value, stderr, n}] of all outcomes; an absent standard error is null.
nlohmann::ordered_json results_of(const std::vector<TaskOutcome>& outcomes);

}  // namespace espalier
