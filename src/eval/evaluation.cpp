#include "espalier/eval/evaluation.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include <fmt/format.h>

#include "espalier/calib/rounds.h"
#include "espalier/core/fault.h"
#include "espalier/core/stop.h"
#include "kinds.h"

namespace espalier {
namespace {

std::span<const std::int64_t> part(const std::vector<std::int64_t>& order, std::int64_t begin,
                                   std::int64_t end) {
  return std::span(order).subspan(static_cast<std::size_t>(begin),
                                  static_cast<std::size_t>(end - begin));
}

/// The way through the rows of one evaluation on this rank.
class Work {
 public:
  Work(Evaluation& evaluation, const CausalLM& model, const ProcessGrid& grid,
       const EvaluateOptions& options)
      : evaluation_(evaluation), model_(model), grid_(grid), options_(options) {}

  /// Rank-local: opens the file and cuts what is not done yet.
  void open(RowValues& rows) {
    evaluation_.open(model_.config().vocabulary);
    const std::vector<std::int32_t> lengths = evaluation_.row_lengths();
    const std::size_t numbers = lengths.size() * static_cast<std::size_t>(evaluation_.columns());
    if (rows.values.size() != numbers || rows.done > static_cast<std::int64_t>(lengths.size()))
      rows = {0, std::vector<double>(numbers, 0.0)};
    order_ = rows_by_length(lengths);
    begin_ = rows.done;
    ends_ = micro_batch_ends(lengths, order_, begin_, options_.micro_batch_tokens);
    mine_.assign(numbers, 0.0);
  }

  /// Goes through the micro-batches until all are done or a stop was agreed on.
  void run() {
    if (!options_.layer_by_layer) return run_sequences();
    if (evaluation_.wants_losses_only()) return run_layers();
    StreamedLayers& layers = *options_.layer_by_layer->layers;
    together(grid_.world(), "evaluate", [&] { layers.hold_all(); });
    run_sequences();
    layers.let_go();
  }

  /// Adds up what the data ranks have done. Collective.
  void collect(RowValues& rows) {
    grid_.data().control().all_reduce_sum(std::span<double>(mine_));
    std::transform(mine_.begin(), mine_.end(), rows.values.begin(), rows.values.begin(),
                   std::plus<>());
    rows.done = begin_of(done_);
  }

 private:
  void run_sequences() {
    deal_rounds(
        grid_, "evaluate", static_cast<std::int64_t>(ends_.size()), done_,
        [&](std::int64_t j) { read(j); }, [&] { return compute(); }, options_.hooks);
  }

  /// All micro-batches through a layer before the next. A stop leaves nothing that is done.
  void run_layers() {
    LayerRounds rounds(grid_, "evaluate", model_, *options_.layer_by_layer,
                       static_cast<std::int64_t>(ends_.size()), 2 * model_.layers(),
                       options_.hooks);
    InputObserver nobody;
    try {
      rounds.embed([&](std::int64_t j) {
        read(j);
        return evaluation_.batch();
      });
      rounds.forward([&](std::size_t) -> InputObserver& { return nobody; },
                     [](std::int64_t) { return true; });
      rounds.loss([&](std::size_t k) { read(rounds.number_of(k)); },
                  [&](std::size_t, TokenLosses losses) {
                    fault::hit("evaluate.rows");
                    std::vector<double> values_NC = no_values();
                    evaluation_.take_losses(losses.nll_N, values_NC);
                    keep(values_NC);
                    return std::move(losses.problems);
                  });
    } catch (const stop::Stopped&) {
      std::fill(mine_.begin(), mine_.end(), 0.0);
      throw;
    }
    done_ = static_cast<std::int64_t>(ends_.size());
  }

  /// Place in the order at which the j-th micro-batch begins.
  std::int64_t begin_of(std::int64_t j) const {
    return j == 0 ? begin_ : ends_[static_cast<std::size_t>(j - 1)];
  }

  void read(std::int64_t j) {
    read_ = part(order_, begin_of(j), ends_[static_cast<std::size_t>(j)]);
    evaluation_.read(read_, model_,
                     fmt::format("micro-batch {} of {}, evaluation '{}', data rank {}", j + 1,
                                 ends_.size(), evaluation_.name(), grid_.data_index()));
  }

  Problems compute() {
    fault::hit("evaluate.rows");
    std::vector<double> values_NC = no_values();
    Problems problems = evaluation_.compute(model_, grid_.tensor(), values_NC);
    keep(values_NC);
    return problems;
  }

  /// [rows that were read, columns].
  std::vector<double> no_values() const {
    return std::vector<double>(read_.size() * static_cast<std::size_t>(evaluation_.columns()), 0.0);
  }
  void keep(const std::vector<double>& values_NC) {
    const auto columns = static_cast<std::size_t>(evaluation_.columns());
    for (std::size_t i = 0; i < read_.size(); ++i)
      std::copy_n(values_NC.begin() + static_cast<std::ptrdiff_t>(i * columns), columns,
                  mine_.begin() +
                      static_cast<std::ptrdiff_t>(static_cast<std::size_t>(read_[i]) * columns));
  }

  Evaluation& evaluation_;
  const CausalLM& model_;
  const ProcessGrid& grid_;
  const EvaluateOptions& options_;
  std::vector<std::int64_t> order_;
  std::int64_t begin_ = 0;          // rows that were done before
  std::vector<std::int64_t> ends_;  // of micro-batches, as places in order_
  std::int64_t done_ = 0;           // micro-batches
  std::span<const std::int64_t> read_;
  std::vector<double> mine_;  // of this data rank: all rows, zero where others are
};

}  // namespace

Evaluation::Evaluation(std::string kind, std::string name, std::filesystem::path tokens)
    : kind_(std::move(kind)), name_(std::move(name)), tokens_(std::move(tokens)) {}

std::vector<std::unique_ptr<Evaluation>> make_evaluations(const EvaluationConfig& config) {
  std::vector<std::unique_ptr<Evaluation>> all;
  for (const NamedTokens& data : config.perplexity) all.push_back(make_perplexity(data));
  for (const NamedTokens& data : config.multiple_choice) all.push_back(make_multiple_choice(data));
  for (const ExactMatchConfig& data : config.exact_match) all.push_back(make_exact_match(data));
  return all;
}

std::vector<std::int64_t> rows_by_length(std::span<const std::int32_t> lengths) {
  std::vector<std::int64_t> order(lengths.size());
  std::iota(order.begin(), order.end(), std::int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return lengths[static_cast<std::size_t>(a)] > lengths[static_cast<std::size_t>(b)];
  });
  return order;
}

std::vector<std::int64_t> micro_batch_ends(std::span<const std::int32_t> lengths,
                                           std::span<const std::int64_t> order, std::int64_t begin,
                                           std::int64_t micro_batch_tokens) {
  const auto rows = static_cast<std::int64_t>(order.size());
  std::vector<std::int64_t> ends;
  while (begin < rows) {
    const auto first = static_cast<std::size_t>(order[static_cast<std::size_t>(begin)]);
    const std::int64_t length = std::max<std::int64_t>(1, lengths[first]);
    begin = std::min(rows, begin + std::max<std::int64_t>(1, micro_batch_tokens / length));
    ends.push_back(begin);
  }
  return ends;
}

TaskOutcome evaluate(Evaluation& evaluation, const CausalLM& model, const ProcessGrid& grid,
                     const EvaluateOptions& options, RowValues& rows) {
  if (options.items) evaluation.want_items();
  Work work(evaluation, model, grid, options);
  together(grid.world(), "evaluate", [&] { work.open(rows); });
  try {
    work.run();
  } catch (const stop::Stopped&) {
    // All ranks are here: the request was agreed on.
    work.collect(rows);
    throw;
  }
  work.collect(rows);
  TaskOutcome outcome;
  together(grid.world(), "evaluate", [&] {
    outcome = evaluation.outcome(rows.values);
    if (options.items) outcome.items = evaluation.items(rows.values);
  });
  return outcome;
}

std::vector<TaskOutcome> evaluate_all(const EvaluationConfig& config, const CausalLM& model,
                                      const ProcessGrid& grid, const EvaluateOptions& options,
                                      const EvaluationKeeper& keeper) {
  std::vector<TaskOutcome> outcomes;
  for (const std::unique_ptr<Evaluation>& evaluation : make_evaluations(config)) {
    KeptEvaluation kept;
    if (keeper.recall) kept = keeper.recall(*evaluation);
    if (!kept.outcome) {
      try {
        kept.outcome = evaluate(*evaluation, model, grid, options, kept.rows);
      } catch (const stop::Stopped&) {
        if (keeper.keep) keeper.keep(*evaluation, kept);
        throw;
      }
      kept.rows = {};
      if (keeper.keep) keeper.keep(*evaluation, kept);
    }
    outcomes.push_back(std::move(*kept.outcome));
  }
  return outcomes;
}

nlohmann::ordered_json facts_of(const std::vector<TaskOutcome>& outcomes) {
  nlohmann::ordered_json facts{{"perplexity", nlohmann::ordered_json::object()}};
  for (const TaskOutcome& outcome : outcomes) facts[outcome.kind][outcome.task] = outcome.facts;
  return facts;
}

nlohmann::ordered_json results_of(const std::vector<TaskOutcome>& outcomes) {
  nlohmann::ordered_json results = nlohmann::ordered_json::array();
  for (const TaskOutcome& outcome : outcomes)
    for (const TaskResult& result : outcome.results) {
      nlohmann::ordered_json error;
      if (result.standard_error) error = *result.standard_error;
      results.push_back({{"task", result.task},
                         {"metric", result.metric},
                         {"value", result.value},
                         {"stderr", error},
                         {"n", result.n}});
    }
  return results;
}

}  // namespace espalier
