#include "espalier/score/score.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/core/fault.h"
#include "espalier/core/hash.h"
#include "espalier/core/host_memory.h"
#include "espalier/core/stop.h"
#include "espalier/model/tensor_ops.h"
#include "espalier/score/unit_sums.h"
#include "score_tables.h"
#include "scored_units.h"
#include "skipped_batches.h"

namespace espalier {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

/// The scoring pass: owns nothing but what lives as long as the pass.
class Pass {
 public:
  Pass(const CausalLM& model, Calibration data, const ScoreRequest& request,
       const ProcessGrid& grid, const RoundHooks& hooks)
      : model_(model),
        data_(std::move(data)),
        request_(request),
        grid_(grid),
        hooks_(hooks),
        units_(model, request.unit, request.scored),
        skips_(grid, request.iteration, request.max_skipped),
        loss_(data_.domains().size(), 0.0),
        real_tokens_(data_.domains().size(), 0.0) {
    options_.criterion = request.importance.criterion;
    options_.unit = request.unit;
    options_.reduction = request.importance.reduction;
    options_.accumulate = request.importance.accumulate;
    options_.curvature = with_matrices(request.importance.curvature);
    options_.damping = request.importance.damping;
    options_.scored = request.scored;
    options_.domains = data_.domains().size();
    options_.seed = request.seed;
    options_.iteration = request.iteration;
    statistics_ = request.make(model, options_);
  }

  ScorePass run() {
    ScorePass pass;
    release_freed_memory();  // of reading the weights or of the last iteration
    work_ = work_of(model_, data_, request_);
    if (request_.paused && is_continued_by_this(*request_.paused)) {
      continue_from(*request_.paused);
      pass.continued = true;
      if (!request_.layer_by_layer) pass.continued_tokens = request_.paused->tokens;
    }
    // Memory is spared for the accumulators first: they grow while graphs are kept.
    if (!request_.layer_by_layer)
      graph_bytes_ = request_.spare_bytes - statistics_->bytes_when_full();
    collect();
    const Clock::time_point begin = Clock::now();
    grid_.data().control().all_reduce_sum(std::span<double>(loss_));
    grid_.data().control().all_reduce_sum(std::span<std::int64_t>(&tokens_, 1));
    const ScoreTables tables(model_, data_, request_, units_, *statistics_,
                             grid_.tensor().control());
    pass.table = tables.combined(rows_, has_row_per_domain(), loss_, tokens_);
    if (request_.each_domain)
      pass.of_domains = tables.of_domains(has_row_per_domain() ? rows_ : alone_, loss_, tokens_);
    if (request_.means) {
      ESPALIER_CHECK(means_.has_value(), "means are asked of a criterion that sums no features");
      pass.means = tables.means(*means_);
    }
    seconds_["reduce"] += seconds_since(begin);
    pass.seconds = seconds_;
    pass.statistics_bytes = statistics_bytes_;
    pass.boundary_bytes = boundary_bytes_;
    pass.continued_layers = continued_layers_;
    pass.skipped = skips_.skipped();
    pass.repeated_halves = repeated_halves_;
    return pass;
  }

 private:
  /// What this rank counted.
  struct Counts {
    std::vector<double> loss, real_tokens;
    std::int64_t tokens = 0;
  };

  /// Where the micro-batches of a traversal that goes layer by layer are.
  enum class Standing { nowhere, between_layers, at_the_end };

  Prompts prompts() const {
    return request_.share_prompts && statistics_->sums_over_tokens() ? Prompts::shared
                                                                     : Prompts::repeated;
  }
  bool looks_at_data() const { return statistics_->needs() != Needs::weights; }
  /// A value for each domain, in place of one of the pooled data.
  bool has_row_per_domain() const { return request_.combine != Combine::pooled && looks_at_data(); }
  /// Domains one after the other, because the sums of one leave no room for another's.
  bool goes_domain_by_domain() const {
    return has_row_per_domain() && !statistics_->separates_domains();
  }
  std::size_t traversals() const { return goes_domain_by_domain() ? data_.domains().size() : 1; }

  void collect() {
    while (traversed_ < traversals()) {
      statistics_->clear();
      if (continued_) statistics_->restore(*std::exchange(continued_, std::nullopt));
      if (reduced_) statistics_->restore_reduced(*std::exchange(reduced_, std::nullopt));
      if (statistics_->weighs_tokens()) weigh_tokens();
      const std::vector<MicroBatch> order =
          goes_domain_by_domain() ? data_.micro_batches_of(traversed_) : data_.micro_batches();
      if (!(request_.layer_by_layer ? run_layers(order) : run_sequences(order))) continue;
      ++traversed_;
    }
    if (reduced_) statistics_->restore_reduced(*std::exchange(reduced_, std::nullopt));
    if (request_.means && !goes_domain_by_domain()) take_means();
  }

  /// Each micro-batch through the whole model. False: the pass begins anew.
  bool run_sequences(const std::vector<MicroBatch>& order) {
    try {
      run_micro_batches(order);
    } catch (const stop::Stopped& stopped) {
      pause(stopped);
    }
    if (left_out(order)) return false;
    finish_layers({0, model_.layers()});
    return true;
  }

  /// Each domain by its share of the pooled loss, whatever its number of tokens; domains that are
  /// scored one by one are each the whole.
  void weigh_tokens() {
    std::vector<double> weights(data_.domains().size(), 1.0);
    double all = 0;
    together(grid_.world(), "calibrate", [&] {
      if (goes_domain_by_domain()) {
        all = static_cast<double>(data_.real_tokens(traversed_));
        return;
      }
      const std::vector<double> share = shares();
      for (std::size_t d = 0; d < weights.size(); ++d) {
        weights[d] = static_cast<double>(data_.real_tokens(d));
        all += weights[d];
      }
      for (std::size_t d = 0; d < weights.size(); ++d)
        weights[d] = weights[d] > 0 ? share[d] * all / weights[d] : 0.0;
    });
    statistics_->weigh(std::move(weights), all);
  }

  void run_micro_batches(const std::vector<MicroBatch>& order) {
    const Clock::time_point begin = Clock::now();
    fault::hit("calibrate.enter");
    CalibrationBatch batch;
    std::int64_t current = 0;
    deal_rounds(
        grid_, "calibrate", static_cast<std::int64_t>(order.size()), done_,
        [&](std::int64_t j) {
          current = j;
          batch = read(order, j);
        },
        [&] {
          statistics_->enter(batch.domain);
          BackwardPass pass = observed(batch.batch);
          repeated_halves_ = std::max(repeated_halves_, pass.repeated_halves);
          if (!pass.problems.empty()) return skips_.note(current, std::move(pass.problems));
          account(batch, pass.nll_N);
          return Problems();
        },
        hooks_);
    done_ = 0;
    fault::hit("calibrate.exit");
    seconds_["calibrate"] += seconds_since(begin);
  }

  CalibrationBatch read(const std::vector<MicroBatch>& order, std::int64_t j) const {
    const Differentiated objective = goes_domain_by_domain() || statistics_->separates_domains()
                                         ? Differentiated::domain_loss
                                         : Differentiated::pooled_loss;
    CalibrationBatch batch = data_.read(order[static_cast<std::size_t>(j)], objective,
                                        model_.options().device, prompts());
    batch.batch.origin =
        fmt::format("micro-batch {} of {}, domain '{}', data rank {}", j + 1, order.size(),
                    data_.domains()[batch.domain].name, grid_.data_index());
    return batch;
  }

  /// All micro-batches through a layer before the next. False: the pass begins anew.
  bool run_layers(const std::vector<MicroBatch>& order) {
    const Clock::time_point begin = Clock::now();
    const double reduced_before = seconds_["reduce"];
    const Counts before{loss_, real_tokens_, tokens_};
    fault::hit("calibrate.enter");
    LayerRounds rounds(grid_, "calibrate", model_, *request_.layer_by_layer,
                       static_cast<std::int64_t>(order.size()),
                       differentiates() ? lowest_half(request_.scored) : 2 * model_.layers(),
                       hooks_, can_pause() ? Stops::between_layers : Stops::in_rounds,
                       finished_layers_);
    try {
      if (!walk_layers(order, rounds)) return false;
      stop_between_layers();
    } catch (const stop::Stopped& stopped) {
      pause_layers(stopped, order, rounds,
                   standing_ == Standing::nowhere ? before : Counts{loss_, real_tokens_, tokens_});
    }
    finished_layers_ = 0;
    standing_ = Standing::nowhere;
    boundary_bytes_ = std::max(boundary_bytes_, rounds.pass().boundary_bytes());
    repeated_halves_ = std::max(repeated_halves_, rounds.pass().repeated_halves());
    fault::hit("calibrate.exit");
    seconds_["calibrate"] += seconds_since(begin) - (seconds_["reduce"] - reduced_before);
    return true;
  }

  bool walk_layers(const std::vector<MicroBatch>& order, LayerRounds& rounds) {
    const bool continues = finished_layers_ > 0;
    std::vector<CalibrationBatch> batches;  // of this rank
    const auto observer_of = [&](std::size_t k) -> Statistics& {
      statistics_->enter(batches[k].domain);
      return *statistics_;
    };
    const auto finished = [&](std::int64_t layer) { return finish_layer(layer, order, rounds); };
    rounds.embed(
        [&](std::int64_t j) {
          batches.push_back(read(order, j));
          if (!continues)
            real_tokens_[batches.back().domain] += static_cast<double>(batches.back().real_tokens);
          return batches.back().batch;
        },
        request_.boundaries.recall);
    const auto passed = [&](std::int64_t layer) { return differentiates() || finished(layer); };
    if (!rounds.forward(observer_of, passed)) return false;
    if (!differentiates() || !continues)
      rounds.loss([](std::size_t) {},
                  [&](std::size_t k, TokenLosses losses) {
                    if (!losses.problems.empty())
                      return skips_.note(rounds.number_of(k), std::move(losses.problems));
                    account_loss(batches[k], losses.nll_N);
                    return Problems();
                  });
    if (left_out(order)) return false;
    if (differentiates() && !rounds.backward(observer_of, finished)) return false;
    standing_ = Standing::at_the_end;
    return true;
  }

  /// What comes of a layer is made of it while its weights are here, so nothing broken may be in
  /// its sums. False: the pass begins anew.
  bool finish_layer(std::int64_t layer, const std::vector<MicroBatch>& order, LayerRounds& rounds) {
    Problems problems;
    for (const LayerwisePass::Broken& broken : rounds.broken())
      problems.add(skips_.note(rounds.number_of(broken.micro_batch), Problems({broken.problem})));
    agree(grid_.world(), "calibrate", problems);
    if (left_out(order)) return false;
    finish_layers({layer, layer + 1});
    ++finished_layers_;
    standing_ = Standing::between_layers;
    const bool last = differentiates() && layer == lowest_half(request_.scored) / 2;
    if (!last) stop_between_layers();
    return true;
  }

  bool differentiates() const { return statistics_->needs() == Needs::gradients; }
  bool can_pause() const { return static_cast<bool>(request_.boundaries.keep); }
  void stop_between_layers() const {
    if (can_pause()) agree_to_continue(grid_.world(), "calibrate", {}, hooks_);
  }

  BackwardPass observed(const TokenBatch& batch) {
    if (statistics_->needs() == Needs::gradients)
      return blockwise_backward(model_, batch, {lowest_half(request_.scored), graph_bytes_},
                                *statistics_, grid_.tensor());
    // Losses are reported for every criterion.
    fault::hit("forward.enter");
    TokenLosses losses = observed_losses(model_, batch, *statistics_, grid_.tensor());
    return {std::move(losses.nll_N), 0, std::move(losses.problems)};
  }

  /// Takes what was broken out of the data; the pass then begins anew. Collective.
  bool left_out(const std::vector<MicroBatch>& order) {
    if (!skips_.leave_out(data_, order)) return false;
    rows_.clear();
    alone_.clear();
    continued_.reset();
    loss_.assign(loss_.size(), 0.0);
    real_tokens_.assign(loss_.size(), 0.0);
    tokens_ = done_ = 0;
    traversed_ = 0;
    finished_layers_ = continued_layers_ = begun_traversals_ = 0;
    standing_ = Standing::nowhere;
    return true;
  }

  bool is_continued_by_this(const PausedPass& paused) const {
    return paused.iteration == request_.iteration && paused.loss.size() == loss_.size() &&
           paused.work == work_ &&
           (paused.finished ? continues_layers(paused)
                            : !request_.layer_by_layer &&
                                  paused.attention.size() == (looks_at_data() ? loss_.size() : 0));
  }
  /// Rows that are asked for now must be there from the first layer on.
  bool continues_layers(const PausedPass& paused) const {
    const FinishedLayers& finished = *paused.finished;
    const std::size_t domains = loss_.size();
    const std::size_t rows =
        goes_domain_by_domain()
            ? static_cast<std::size_t>(finished.traversals + (finished.layers > 0 ? 1 : 0))
            : (has_row_per_domain() ? domains : 1);
    const bool alone =
        request_.each_domain && statistics_->separates_domains() && !has_row_per_domain();
    return request_.layer_by_layer && (request_.boundaries.recall || finished.layers == 0) &&
           finished.layers <= layers_to_finish() && paused.attention.size() == rows &&
           finished.alone_attention.size() == (alone ? domains : 0) &&
           finished.reduced_attention.size() == (request_.means ? domains : 0);
  }

  NumbersOf sums_of() const {
    return [this](const LayerWidths& widths, UnitKind half) {
      return statistics_->sums_of(widths, half);
    };
  }
  NumbersOf values_of() const {
    return [this](const LayerWidths& widths, UnitKind half) {
      return statistics_->values_of(widths, half);
    };
  }

  /// Data rank 0 takes what was summed, whoever did it.
  void continue_from(const PausedPass& paused) {
    std::vector<UnitSums> sums;
    together(grid_.world(), "resume", [&] {
      if (paused.finished) return continue_layers(paused);
      done_ = paused.micro_batches;
      sums = own_rows(paused.attention, paused.mlp, sums_of());
    });
    if (grid_.data_index() != 0) return;
    if (!sums.empty()) continued_ = std::move(sums);
    loss_ = paused.loss;
    real_tokens_ = paused.real_tokens;
    tokens_ = paused.tokens;
  }

  std::vector<UnitSums> own_rows(const std::vector<std::vector<double>>& attention,
                                 const std::vector<std::vector<double>>& mlp,
                                 const NumbersOf& numbers) const {
    std::vector<UnitSums> rows;
    for (std::size_t row = 0; row < attention.size(); ++row)
      rows.push_back(units_.own_part(attention[row], mlp[row], numbers));
    return rows;
  }

  /// What is finished is the same on all data ranks.
  void continue_layers(const PausedPass& paused) {
    const FinishedLayers& finished = *paused.finished;
    std::vector<MicroBatch> left_out;
    for (const FinishedLayers::Skipped& skipped : finished.skipped) {
      left_out.push_back({skipped.domain, places_of(skipped)});
      skips_.recall({data_.domains()[skipped.domain].name, skipped.rows});
    }
    data_.exclude(left_out);
    rows_ = own_rows(paused.attention, paused.mlp, values_of());
    alone_ = own_rows(finished.alone_attention, finished.alone_mlp, values_of());
    if (request_.means)
      reduced_ = own_rows(finished.reduced_attention, finished.reduced_mlp, sums_of());
    traversed_ = static_cast<std::size_t>(finished.traversals);
    begun_traversals_ = finished.traversals;
    finished_layers_ = finished.layers;
    continued_layers_ = finished.traversals * layers_to_finish() + finished.layers;
  }
  std::vector<std::size_t> places_of(const FinishedLayers::Skipped& skipped) const {
    const std::vector<std::int64_t>& rows = data_.domains()[skipped.domain].rows;
    std::vector<std::size_t> places;
    for (const std::int64_t row : skipped.rows) {
      const auto place = std::lower_bound(rows.begin(), rows.end(), row);
      if (place == rows.end() || *place != row)
        throw Error(ExitCode::bad_content,
                    fmt::format("row {} was skipped, and is not among those drawn", row),
                    "the paused pass is of other data", "Remove its directory in ckpt/.");
      places.push_back(static_cast<std::size_t>(place - rows.begin()));
    }
    return places;
  }
  std::int64_t layers_to_finish() const {
    return differentiates() ? model_.layers() - lowest_half(request_.scored) / 2 : model_.layers();
  }

  /// Throws Paused once there is more to keep than when this process began. `counts`: of what is
  /// kept.
  [[noreturn]] void pause_layers(const stop::Stopped& stopped, const std::vector<MicroBatch>& order,
                                 LayerRounds& rounds, const Counts& counts) {
    FinishedLayers finished;
    finished.traversals = static_cast<std::int64_t>(traversed_);
    if (standing_ == Standing::at_the_end) ++finished.traversals;
    if (standing_ == Standing::between_layers) finished.layers = finished_layers_;
    // On its way to where it was paused before, a pass has nothing that is new.
    const bool anew = finished.layers == 0 && finished.traversals == begun_traversals_;
    if (!can_pause() || anew) throw stop::Stopped(stopped.level());
    PausedPass paused{work_,         request_.iteration, 0, {}, {}, counts.loss,
                      counts.tokens, counts.real_tokens};
    grid_.data().control().all_reduce_sum(std::span<double>(paused.loss));
    grid_.data().control().all_reduce_sum(std::span<double>(paused.real_tokens));
    grid_.data().control().all_reduce_sum(std::span<std::int64_t>(&paused.tokens, 1));
    if (finished.layers > 0) {
      paused.micro_batches = static_cast<std::int64_t>(order.size());
      if (!request_.boundaries.keep(share_of(paused.micro_batches, finished.layers, rounds)))
        throw stop::Stopped(stopped.level());
    }
    flatten(rows_, values_of(), paused.attention, paused.mlp);
    flatten(alone_, values_of(), finished.alone_attention, finished.alone_mlp);
    if (request_.means)
      flatten(statistics_->reduced_sums(), sums_of(), finished.reduced_attention,
              finished.reduced_mlp);
    for (const SkippedBatch& batch : skips_.skipped())
      finished.skipped.push_back({domain_of(batch.domain), batch.rows});
    paused.finished = std::move(finished);
    throw Paused(stopped.level(), std::move(paused));
  }

  /// The data rank's micro-batches are dealt to its tensor ranks, which all have them.
  std::vector<StandingBatch> share_of(std::int64_t micro_batches, std::int64_t finished,
                                      LayerRounds& rounds) const {
    std::vector<StandingBatch> share;
    for (auto k = static_cast<std::size_t>(grid_.tensor_index());
         rounds.number_of(k) < micro_batches; k += static_cast<std::size_t>(grid_.tensor_size()))
      share.push_back({rounds.number_of(k), rounds.shape_at_boundary(k),
                       [&rounds, finished, k] { return rounds.at_boundary(finished, k); }});
    return share;
  }

  /// Rows of all tensor ranks; 0 where nothing is yet. Collective over the tensor group.
  void flatten(std::vector<UnitSums> rows, const NumbersOf& numbers,
               std::vector<std::vector<double>>& attention,
               std::vector<std::vector<double>>& mlp) const {
    for (UnitSums& row : rows)
      for (std::int64_t l = 0; l < model_.layers(); ++l)
        for (const UnitKind kind : {UnitKind::attention, UnitKind::mlp})
          if (units_.is_scored(l, kind))
            row[static_cast<std::size_t>(l)][static_cast<std::size_t>(kind)].resize(
                static_cast<std::size_t>(numbers(model_.widths(l), kind)));
    Communicator& tensor = grid_.tensor().control();
    attention = units_.flattened(rows, UnitKind::attention, numbers, tensor);
    mlp = units_.flattened(rows, UnitKind::mlp, numbers, tensor);
  }
  std::size_t domain_of(const std::string& name) const {
    std::size_t d = 0;
    while (data_.domains()[d].name != name) ++d;
    return d;
  }

  [[noreturn]] void pause(const stop::Stopped& stopped) {
    std::optional<std::vector<UnitSums>> current = statistics_->sums_so_far();
    const std::int64_t whole = skips_.none() ? 1 : 0;
    if (grid_.world().min(whole) == 0) throw stop::Stopped(stopped.level());
    if (!current || done_ == 0) throw stop::Stopped(stopped.level());
    reduce_unit_sums(*current, grid_.data().control());
    PausedPass paused{work_, request_.iteration, done_, {}, {}, loss_, tokens_, real_tokens_};
    Communicator& tensor = grid_.tensor().control();
    paused.attention = units_.flattened(*current, UnitKind::attention, sums_of(), tensor);
    paused.mlp = units_.flattened(*current, UnitKind::mlp, sums_of(), tensor);
    grid_.data().control().all_reduce_sum(std::span<double>(paused.loss));
    grid_.data().control().all_reduce_sum(std::span<double>(paused.real_tokens));
    grid_.data().control().all_reduce_sum(std::span<std::int64_t>(&paused.tokens, 1));
    throw Paused(stopped.level(), std::move(paused));
  }

  void account(const CalibrationBatch& batch, const at::Tensor& nll_N) {
    account_loss(batch, nll_N);
    real_tokens_[batch.domain] += static_cast<double>(batch.real_tokens);
  }
  /// Adds each sequence's mean loss to its domain.
  void account_loss(const CalibrationBatch& batch, const at::Tensor& nll_N) {
    const double* nll = nll_N.const_data_ptr<double>();
    for (std::size_t row = 0; row < batch.predictions.size(); ++row) {
      const std::int64_t count = batch.predictions[row];
      double sum = 0;
      for (std::int64_t i = 0; i < count; ++i) sum += *nll++;
      loss_[batch.domain] += sum / static_cast<double>(count) * batch.shares[row];
      tokens_ += count;
    }
  }

  /// The values that the sums of these layers come to: of all data, of the traversal's domain, or
  /// of each domain. Collective over the world.
  void finish_layers(Range layers) {
    const Clock::time_point begin = Clock::now();
    fault::hit("reduce.enter");
    statistics_bytes_ = std::max(statistics_bytes_, statistics_->bytes());
    // Where a value was born knows its tensor; what the sum over data ranks carries on does not.
    agree(grid_.world(), "reduce", statistics_->reduce(grid_, layers));
    const std::vector<double> tokens = tokens_of_domains();
    together(grid_.world(), "reduce", [&] {
      if (goes_domain_by_domain()) {
        take(rows_, traversed_, of_domain(traversed_, tokens), name_of_domain(traversed_), layers);
        return;
      }
      std::vector<UnitSums>& of_each = has_row_per_domain() ? rows_ : alone_;
      if (statistics_->separates_domains() && (has_row_per_domain() || request_.each_domain))
        for (std::size_t d = 0; d < data_.domains().size(); ++d)
          take(of_each, d, of_domain(d, tokens), name_of_domain(d), layers);
      if (!has_row_per_domain()) take(rows_, 0, {shares(), tokens}, "all domains", layers);
    });
    fault::hit("reduce.exit");
    seconds_["reduce"] += seconds_since(begin);
  }

  /// Puts the values of these layers into a row of the table.
  void take(std::vector<UnitSums>& rows, std::size_t row, const Mixture& mixture,
            const std::string& whose, Range layers) const {
    UnitSums values = checked(mixture, whose, layers);
    while (rows.size() <= row) rows.emplace_back(static_cast<std::size_t>(model_.layers()));
    for (auto l = static_cast<std::size_t>(layers.begin); l < static_cast<std::size_t>(layers.end);
         ++l)
      rows[row][l] = std::move(values[l]);
  }

  /// Tokens that are no padding, over all data ranks. Collective over the data group.
  std::vector<double> tokens_of_domains() const {
    std::vector<double> tokens = real_tokens_;
    grid_.data().control().all_reduce_sum(std::span<double>(tokens));
    return tokens;
  }

  /// Once every layer is finished. Collective over the world.
  void take_means() {
    const std::vector<double> tokens = tokens_of_domains();
    together(grid_.world(), "reduce", [&] {
      means_ = statistics_->mean_inputs({shares(), tokens});
    });
  }

  std::vector<double> shares() const {
    std::vector<double> shares;
    double total = 0;
    for (const DomainDraw& domain : data_.domains()) total += domain.weight;
    for (const DomainDraw& domain : data_.domains()) shares.push_back(domain.weight / total);
    return shares;
  }
  Mixture of_domain(std::size_t d, const std::vector<double>& tokens) const {
    Mixture mixture{std::vector<double>(tokens.size(), 0.0), tokens};
    mixture.share[d] = 1;
    return mixture;
  }
  std::string name_of_domain(std::size_t d) const {
    return fmt::format("domain '{}'", data_.domains()[d].name);
  }

  /// Nothing that is not finite leaves the pass.
  UnitSums checked(const Mixture& mixture, const std::string& whose, Range layers) const {
    UnitSums values = statistics_->finish(mixture, layers);
    if (fault::hit("score.value").effect == fault::Effect::nan) poison(values);
    require_finite_sums(model_, request_.unit, values,
                        fmt::format("{}, tensor rank {}, data rank {}", whose, grid_.tensor_index(),
                                    grid_.data_index()));
    return values;
  }
  static void poison(UnitSums& sums) {
    for (auto& layer : sums)
      for (std::vector<double>& values : layer)
        if (!values.empty()) {
          values.back() = std::numeric_limits<double>::quiet_NaN();
          return;
        }
  }

  const CausalLM& model_;
  Calibration data_;
  const ScoreRequest& request_;
  const ProcessGrid& grid_;
  const RoundHooks& hooks_;
  ScoredUnits units_;
  SkippedBatches skips_;
  StatisticsOptions options_;
  std::unique_ptr<Statistics> statistics_;
  std::vector<double> loss_;
  std::vector<double> real_tokens_;  // of each domain, so far
  std::int64_t tokens_ = 0;
  std::size_t traversed_ = 0;                       // finished traversals of data
  std::int64_t done_ = 0;                           // micro-batches of the one under way
  std::optional<std::vector<UnitSums>> continued_;  // sums of it, from the paused pass
  std::string work_;                                // before anything was left out of the data
  std::int64_t finished_layers_ = 0;                // of the traversal under way
  std::int64_t continued_layers_ = 0;               // finished by another process
  std::int64_t begun_traversals_ = 0;               // finished when this process began
  Standing standing_ = Standing::nowhere;
  std::optional<std::vector<UnitSums>> reduced_;  // of finished layers, from the paused pass
  std::vector<UnitSums> rows_;     // values of the table's rows: of each domain, or of all data
  std::vector<UnitSums> alone_;    // of each domain beside a pooled row
  std::optional<UnitSums> means_;  // of this rank's entries at the gates
  std::map<std::string, double> seconds_;
  std::int64_t statistics_bytes_ = 0;
  std::int64_t boundary_bytes_ = 0;
  std::int64_t graph_bytes_ = 0;
  std::int64_t repeated_halves_ = 0;
};

}  // namespace

Curvature with_matrices(Curvature curvature) {
  return curvature == Curvature::automatic ? Curvature::full : curvature;
}

std::int64_t max_skipped(const CalibrationConfig& config) {
  return config.non_finite == NonFinite::skip_batch ? config.max_skipped : 0;
}

ScoredHalves all_halves(const ModelConfig& config) {
  return ScoredHalves(static_cast<std::size_t>(config.layers), {true, true});
}

ScoredHalves prunable_halves(const ModelConfig& config, const PruneRules& rules) {
  ScoredHalves scored(static_cast<std::size_t>(config.layers));
  for (std::size_t l = 0; l < scored.size(); ++l)
    if (!rules.protected_layer[l]) scored[l] = {rules.attention, rules.mlp};
  return scored;
}

std::string work_of(const CausalLM& model, const Calibration& data, const ScoreRequest& request) {
  const ImportanceConfig& importance = request.importance;
  std::string text = fmt::format(
      "sums 3, criterion {}, reduction {}, accumulate {}, damping {}, curvature {}, combine {}, "
      "dtype {}, "
      "iteration {}, ",
      name_of(importance.criterion), static_cast<int>(importance.reduction),
      static_cast<int>(importance.accumulate), importance.damping,
      static_cast<int>(importance.curvature), static_cast<int>(request.combine),
      safetensors_name(to_dtype(model.options().dtype)), request.iteration);
  text += ScoredUnits(model, request.unit, request.scored).description();
  // In their order, which is that of losses and rows; a name with its length, so that none can look
  // like what follows it.
  for (const DomainDraw& domain : data.domains())
    text += fmt::format("|{} {}: {} {}", domain.name.size(), domain.name, domain.weight,
                        static_cast<int>(domain.objective));
  for (const MicroBatch& batch : data.micro_batches()) {
    text += fmt::format("|{}:", batch.domain);
    for (const std::int64_t row : data.rows_of(batch)) text += fmt::format(" {}", row);
  }
  return sha256_hex(std::string_view(text));
}

ScorePass score(const CausalLM& model, Calibration data, const ScoreRequest& request,
                const ProcessGrid& grid, const RoundHooks& hooks) {
  return Pass(model, std::move(data), request, grid, hooks).run();
}

}  // namespace espalier
