#include "espalier/pipeline/run.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "espalier/calib/adapt.h"
#include "espalier/comm/process_grid.h"
#include "espalier/core/error.h"
#include "espalier/core/fault.h"
#include "espalier/core/json.h"
#include "espalier/core/log.h"
#include "espalier/core/paths.h"
#include "espalier/core/stop.h"
#include "espalier/core/text.h"
#include "espalier/eval/evaluation.h"
#include "espalier/export/export_model.h"
#include "espalier/model/tensor_ops.h"
#include "espalier/pipeline/collectives.h"
#include "espalier/pipeline/exporting.h"
#include "espalier/pipeline/held_model.h"
#include "espalier/pipeline/kept_evaluations.h"
#include "espalier/pipeline/memory_forecast.h"
#include "espalier/pipeline/metrics_row.h"
#include "espalier/pipeline/monitor.h"
#include "espalier/pipeline/overlap_file.h"
#include "espalier/pipeline/pass_boundaries.h"
#include "espalier/pipeline/peak_memory.h"
#include "espalier/pipeline/provenance.h"
#include "espalier/pipeline/refitting.h"
#include "espalier/pipeline/run_outline.h"
#include "espalier/pipeline/run_report.h"
#include "espalier/pipeline/source.h"
#include "espalier/pipeline/straggler.h"
#include "espalier/score/score.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;

/// One pruning run on this rank. The order of the members is the order in which they come to life.
class PruningRun {
 public:
  PruningRun(CommRuntime& runtime, const RunRequest& request)
      : request_(request),
        config_(request.config),
        runtime_(runtime),
        world_(runtime.world()),
        grid_(world_, static_cast<int>(config_.tensor)),
        monitor_(request.max_seconds),
        stragglers_(world_) {}

  void execute() {
    try {
      open_directory();
      watch_for_hangs();
      open_inputs();
      check_inputs();
      begin();
      prune_to_target();
      refit_what_is_left();
      write_exports();
      on_root("finish", [&] {
        // A process that died after the last line of metrics left it.
        remove_file(KeptEvaluations::file_in(directory_->path()));
        finish("finished", 0, "");
      });
    } catch (const stop::Stopped&) {
      if (directory_) directory_->clear_stop_request();
      finish("stopped", static_cast<int>(ExitCode::stopped),
             monitor_.status().reason.empty() ? "signal" : monitor_.status().reason);
      throw;
    } catch (const std::exception& exception) {
      if (request_.watchdog != nullptr) request_.watchdog->give_way();
      report_failure(exception);
      throw;
    }
  }

 private:
  /// Rank 0 works, all ranks agree on the outcome.
  void on_root(const std::string& phase, const std::function<void()>& work) {
    together(world_, phase, [&] {
      if (grid_.is_root()) work();
    });
  }

  /// First of all, so that everything that follows can be seen, stopped and timed from outside.
  void open_directory() {
    on_root("open the run directory", [&] {
      std::vector<std::string> messages;
      directory_.emplace(
          RunDirectory::open(request_.run_dir, config_, request_.directory, messages));
      log::configure(log_options());
      for (const std::string& message : messages) log::warning("{}", message);
      if (const Commit* commit = newest_commit()) {
        monitor_.status().iteration = commit->iteration;
        monitor_.status().last_commit =
            CommitStore::directory_name(commit->iteration, commit->kind);
      }
      monitor_.watch(*directory_);
    });
  }

  /// Ranks see one another in the run directory, which only rank 0 needs for all else.
  void watch_for_hangs() {
    if (request_.watchdog == nullptr) return;
    std::int64_t sees = 0;
    together(world_, "open the run directory",
             [&] { sees = Watchdog::can_watch(request_.run_dir) ? 1 : 0; });
    if (world_.min(sees) == 0) {
      if (grid_.is_root())
        log::warning("nobody watches for hangs: not every rank sees the run directory");
      return;
    }
    together(world_, "open the run directory", [&] { request_.watchdog->watch(request_.run_dir); });
  }

  /// Everything that can be wrong with the inputs is looked at before anything takes long.
  void open_inputs() {
    monitor_.enter("open");
    together(world_, "open", [&] {
      source_.emplace(open_source(config_.model_path));
      rules_ = prune_rules(source_->config, config_.prune);
      start_ = start_plan(*source_, config_.prune.attention_unit);
      plan_ = start_;
      require_reachable(source_->config, rules_, start_, config_.prune.target.value());
      require_work(source_->config, rules_, start_, config_.prune.target.value());
      require_export_forms(*source_, config_);
      if (config_.prune.compensation == Compensation::mean) means_ = start_means(*source_);
      options_ = compute_options(config_, *source_, runtime_);
      if (request_.strict_paths) refuse_links(config_, *source_);
      // A wrong token file must not be found after an hour.
      check_token_files(config_, ConfigUse::run, *source_, world_);
    });
    agree_to_continue(world_, "open", {}, monitor_.hooks());
    connect();
  }

  /// A run that hangs in a sum ends that too, so that no GPU goes on waiting.
  void connect() {
    sums_ = connect_collectives(
        config_, options_, grid_,
        request_.watchdog != nullptr ? request_.watchdog->hang_timeout() : std::nullopt);
    ending_.emplace(request_.watchdog, [this] {
      for (const RankGroup* group : {&grid_.tensor(), &grid_.data()})
        group->reducer().abort(ExitCode::peer_lost);
    });
  }

  /// A run continues on the files it began with, wherever they are now.
  void check_inputs() {
    monitor_.enter("hash inputs");
    std::string record;
    on_root("hash inputs", [&] {
      if (const Commit* commit = newest_commit())
        record = json_text(to_json(recorded_inputs(*commit)));
    });
    record = world_.broadcast_text(record, 0);
    const Inputs before =
        record.empty() ? Inputs() : inputs_from_json(nlohmann::ordered_json::parse(record), "");
    const auto& allowed = request_.directory.allowed_changes;
    const bool other_data =
        std::find(allowed.begin(), allowed.end(), "calibration.domains") != allowed.end();
    InputCheck check =
        espalier::check_inputs(input_files(config_, *source_), before,
                               request_.fast_verify ? Thoroughness::facts : Thoroughness::content,
                               other_data ? std::vector<std::string>{"calibration", "refit"}
                                          : std::vector<std::string>{"refit"},
                               world_, monitor_.hooks("blocks of 64 MiB per rank"));
    agree(world_, "hash inputs", check.problems);
    inputs_ = std::move(check.record);
    if (!grid_.is_root()) return;
    for (const std::string& note : check.notes) log::warning("{}", note);
    if (!check.how.empty()) log::info("inputs   as the run began: {}", check.how);
  }

  /// The newest thing that was saved here; null on other ranks and where nothing was.
  const Commit* newest_commit() const {
    if (!directory_) return nullptr;
    if (directory_->paused_pass()) return &*directory_->paused_pass();
    return directory_->start() ? &*directory_->start() : nullptr;
  }

  /// Takes up the newest commit, and writes down what this attempt is.
  void begin() {
    fault::hit("resume.enter");
    std::string state, sums, place;
    if (directory_ && directory_->start()) state = text_of(directory_->start()->state);
    if (directory_ && directory_->paused_pass()) {
      const Commit& pass = *directory_->paused_pass();
      sums = text_of(pass.state);
      place = absolute_path(directory_->commits().path_of(pass.iteration, pass.kind)).string();
    }
    state = world_.broadcast_text(state, 0);
    sums = world_.broadcast_text(sums, 0);
    place = world_.broadcast_text(place, 0);
    const std::string losses = world_.broadcast_text(saved_losses(), 0);
    together(world_, "resume", [&] {
      if (!state.empty()) {
        const Hdf5Reader file = Hdf5Reader::from_image(bytes_of(state), "state.h5");
        plan_ = read_plan(file, "", source_->config);
        if (means_) means_ = means_in(file);
        require_continuation(*source_, plan_, "the run's commit");
      }
      if (!sums.empty()) paused_ = read_sums(Hdf5Reader::from_image(bytes_of(sums), "sums.h5"));
      losses_ = losses_from(nlohmann::ordered_json::parse(losses), config_.calibration);
    });
    boundaries_.emplace(world_, to_dtype(options_.dtype));
    if (paused_ && paused_->micro_batches > 0 && paused_->finished &&
        !boundaries_->open(place, paused_->micro_batches))
      paused_.reset();
    fault::hit("resume.exit");
    provenance_ = make_provenance(config_, *source_, inputs_, grid_, device_name(options_));
    on_root("open the run directory", [&] {
      require_continuing();
      directory_->begin(config_);
      provenance_["run"] = directory_->identity();
      // The process before may have died between a commit and this copy of its plan.
      if (directory_->start()) write_plan_file();
      directory_->write_provenance(provenance_);
      print_start(*source_, config_, rules_, plan_, start_.iteration, grid_, options_, sums_,
                  *directory_);
      if (request_.max_seconds > 0)
        log::info("limit    stops in time before {} are over", duration(request_.max_seconds));
    });
    monitor_.leave();
  }

  /// A commit of a run that compensates has them.
  FeatureMeans means_in(const Hdf5Reader& file) const {
    std::optional<FeatureMeans> means = read_feature_means(file, "", source_->config);
    if (!means)
      throw Error(ExitCode::config, "prune.compensation = mean, and the run's commit has no means",
                  "it was begun without compensation", "Begin anew in another run directory.",
                  "state.h5");
    return std::move(*means);
  }

  /// Losses of earlier passes as the commit that we start from has them.
  std::string saved_losses() const {
    const bool there = directory_ && directory_->start();
    return there
               ? json_text(directory_->start()->manifest.value("losses", nlohmann::ordered_json()))
               : "{}";
  }

  /// The cumulative target after iteration `i`.
  double target_of(std::int64_t i) const {
    return scheduled_target(config_.prune, reached_target(source_->config, rules_, start_),
                            i - start_.iteration);
  }

  /// What speaks against going on from here, before anything is scored or written.
  void require_continuing() const {
    require_part(start_, plan_);
    require_multiples(source_->config, rules_, plan_);
    const std::int64_t done = plan_.iteration - start_.iteration;
    if (directory_->start())
      require_continuable(config_.prune, reached_target(source_->config, rules_, start_), done,
                          directory_->start()->manifest.at("metrics").at("target").get<double>());
    require_export_places(*directory_, config_,
                          done < config_.prune.iterations ? Ahead::iterations : Ahead::exports);
  }

  static std::string text_of(const std::vector<std::byte>& bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }
  static std::span<const std::byte> bytes_of(const std::string& text) {
    return std::as_bytes(std::span(text.data(), text.size()));
  }

  log::Options log_options() const {
    log::Options options = log::current();
    options.file = directory_->log_directory() / "main.log";
    return options;
  }

  void prune_to_target() {
    const std::int64_t last = start_.iteration + config_.prune.iterations;
    monitor_.status().state = "running";
    monitor_.status().iteration = plan_.iteration;
    monitor_.status().iterations = last;
    if (plan_.iteration >= last && all_done()) return;
    require_memory();
    load();
    complete_last_iteration(last);
    for (std::int64_t i = plan_.iteration + 1; i <= last; ++i) iterate(i, last);
  }

  /// A run that was interrupted between its last commit and its outputs only completes the outputs.
  bool all_done() {
    std::int64_t done = 0;
    on_root("record", [&] {
      for (const auto& row : directory_->metrics())
        if (row.at("iteration").get<std::int64_t>() == plan_.iteration) done = 1;
    });
    world_.broadcast({&done, 1, DType::i64}, 0);
    return done != 0;
  }

  /// Least squares on the sparsity that is exported, once. What an earlier process finished stays.
  void refit_what_is_left() {
    std::optional<Refitting> refitting;
    if (config_.refit.enabled) {
      monitor_.enter("refit");
      together(world_, "refit", [&] {
        refitting.emplace(RefitSubject{config_, *source_, plan_, means_, start_.iteration + 1,
                                       plan_.iteration, inputs_},
                          options_.dtype);
      });
    }
    RefitRecords records(world_, directory_ ? &*directory_ : nullptr,
                         refitting ? &*refitting : nullptr);
    if (!refitting || records.finished()) return monitor_.leave();
    if (!held_) {
      require_memory();
      load();
      monitor_.enter("refit");
    }
    nlohmann::ordered_json record =
        records.apply(*refitting, held_->refit_target(), grid_, runtime_, monitor_.hooks());
    std::vector<TaskOutcome> outcomes;
    if (!make_evaluations(config_.evaluation).empty()) {
      monitor_.enter("evaluate");
      outcomes = evaluate_state(plan_.iteration, plan_.digest() + " refit " + refitting->key());
    }
    monitor_.leave();
    on_root("record", [&] {
      records.finish(std::move(record), outcomes, monitor_.take_seconds());
      remove_file(KeptEvaluations::file_in(directory_->path()));
    });
  }

  /// What cannot fit must not be found by the kernel, hours later.
  void require_memory() {
    MemoryChoice choice = choose_for_memory();
    decided_ = std::move(choice.config);
    on_root("look at the memory", [&] { tell_refit(choice.forecast.available); });
    forecast_bytes_ = espalier::require_memory(std::move(choice.forecast), source_->config,
                                               options_, runtime_, grid_);
  }

  /// A pass that was paused goes on in its own order where that fits, whatever else would.
  MemoryChoice choose_for_memory() {
    MemoryQuestion question{ConfigUse::run, source_->config, widths_of(source_->config, plan_),
                            prunable_halves(source_->config, rules_)};
    together(world_, "look at the memory",
             [&] { question.left = widths_at_refit(config_, source_->config); });
    if (paused_ && config_.order == Order::automatic) {
      RunConfig wanted = config_;
      wanted.order = paused_->finished ? Order::layer_major : Order::sample_major;
      MemoryChoice choice =
          espalier::choose_for_memory(wanted, question, options_, runtime_, grid_);
      if (choice.fits) {
        if (grid_.is_root())
          log::info("order    {}, in which its pass was paused", name_of(wanted.order));
        return choice;
      }
    }
    return espalier::choose_for_memory(config_, question, options_, runtime_, grid_);
  }

  /// The refit looks at its own memory when it begins; hours before that, what may be expected.
  void tell_refit(std::int64_t available) const {
    const std::optional<ModelWidths> left = widths_at_refit(config_, source_->config);
    if (!left) return;
    const RefitNeed need =
        forecast_refit(decided_, source_->config, *left, options_.dtype, grid_.data_size());
    log::info("refit    about {}", refit_text(need));
    if (available > 0 && need.total() > available)
      log::warning("refit    may not fit: {:.1f} GiB are free for each rank now",
                   static_cast<double>(available) / (1 << 30));
  }

  void load() {
    monitor_.enter("load");
    held_.emplace(decided_, grid_, *source_, widths_of(source_->config, plan_), options_,
                  request_.run_dir, monitor_.hooks("parts"));
    monitor_.leave();
  }

  /// The row of metrics.jsonl for the state we start from: iteration 0 of the dense model, or that
  /// of the last commit if the process died between the commit and its evaluation.
  void complete_last_iteration(std::int64_t last) {
    if (all_done()) return;
    nlohmann::ordered_json row;
    if (grid_.is_root())
      row = directory_->start() ? directory_->start()->manifest.at("metrics")
                                : describe(plan_.iteration);
    evaluate_and_record(std::move(row), plan_.iteration, last);
  }

  void iterate(std::int64_t i, std::int64_t last) {
    fault::set_iteration(static_cast<int>(i));
    monitor_.status().iteration = i;
    const auto begin = std::chrono::steady_clock::now();
    reset_counters();
    const ScorePass pass = score_once(i);
    const std::map<std::string, CommCounters> communication{{"tensor", grid_.tensor().counters()},
                                                            {"data", grid_.data().counters()},
                                                            {"world", world_.counters()}};
    const Advance step = rank_units(pass.table, i);
    slice(step.plan);
    stragglers_.warn(i, monitor_.take_busy_seconds());
    record_overlap(pass, i);
    plan_ = step.plan;
    if (means_) keep_means_of_fallen(*means_, pass.means.value(), source_->config, plan_);
    nlohmann::ordered_json row = describe(i);
    row["target"] = target_of(i);
    add_step(row, step);
    add_pass(row, pass, measured(pass), communication);
    add_weights(row);
    losses_.last = pass.table.loss;
    if (losses_.first.empty()) losses_.first = losses_.last;
    commit(pass.table, row);
    row["seconds"] = monitor_.take_seconds();
    row["seconds_iteration"] =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    evaluate_and_record(std::move(row), i, last);
  }

  ScorePass score_once(std::int64_t i) {
    monitor_.enter("calibrate");
    ScoreRequest request = score_request(i);
    request.paused = std::exchange(paused_, std::nullopt);
    if (request.layer_by_layer) request.boundaries = boundary_keeper(i);
    try {
      ScorePass pass = score(held_->model(), drawn(i), request, grid_, score_hooks());
      boundaries_->close();
      if (request.paused && !pass.continued && grid_.is_root())
        log::warning("the sums of the paused pass are of other work: iteration {} began anew", i);
      if (request.each_domain && pass.of_domains.empty()) pass.of_domains = score_each_domain(i);
      return pass;
    } catch (const Paused& paused) {
      commit_pass(paused.pass());
      throw;
    } catch (const stop::Stopped&) {
      if (grid_.is_root() && request.layer_by_layer)
        log::info(
            "iteration {} has finished no {}layer: {}", i, request.paused ? "further " : "",
            request.paused ? "it goes on from the paused pass again" : "its pass begins anew");
      throw;
    }
  }

  /// What lies between two layers goes beside the sums, which commit_pass() writes then.
  BoundaryKeeper boundary_keeper(std::int64_t i) {
    BoundaryKeeper keeper = boundaries_->keeper([this, i] {
      directory_->require_lock();
      return directory_->commits().prepare(i, directory_->attempt());
    });
    keeper.keep = [this, keep = std::move(keeper.keep)](const std::vector<StandingBatch>& share) {
      monitor_.enter("save");
      return keep(share);
    };
    return keeper;
  }

  ScoreRequest score_request(std::int64_t i) const {
    ScoreRequest request;
    request.importance = decided_.importance;
    request.layer_by_layer = held_->layer_by_layer();
    request.combine = config_.calibration.combine;
    request.unit = plan_.attention_unit;
    request.scored = prunable_halves(source_->config, rules_);
    request.seed = config_.calibration.seed;
    request.iteration = i;
    request.max_skipped = max_skipped(config_.calibration);
    request.spare_bytes = spare_memory(config_, options_, runtime_);
    request.share_prompts = config_.share_prompts;
    request.each_domain = wants_overlap(i);
    request.means = means_.has_value();
    return request;
  }

  /// Progress of a pass is in micro-batches, or in micro-batches through a layer.
  RoundHooks score_hooks() {
    return held_->layer_by_layer() ? monitor_.hooks("steps") : monitor_.hooks();
  }

  /// The iteration's data. Collective.
  Calibration drawn(std::int64_t i) {
    std::optional<Calibration> data;
    together(world_, "calibrate", [&] {
      data = Calibration::draw(
          with_weights(config_.calibration, adapted_weights(config_.calibration, losses_)), i,
          source_->config.vocabulary);
    });
    return std::move(*data);
  }

  bool wants_overlap(std::int64_t i) const {
    const std::vector<std::int64_t>& listed = config_.calibration.overlap;
    return std::binary_search(listed.begin(), listed.end(), i - start_.iteration) &&
           config_.importance.criterion != Criterion::magnitude &&
           config_.importance.criterion != Criterion::random;
  }

  /// Sums that do not tell domains apart are made once more, for one domain after the other.
  std::vector<ScoreTable> score_each_domain(std::int64_t i) {
    ScoreRequest request = score_request(i);
    request.combine = Combine::weighted_mean;
    return score(held_->model(), drawn(i), request, grid_, score_hooks()).of_domains;
  }

  /// What each domain alone would remove now. Before the commit, so that it is not lost when the
  /// process dies between the two: the iteration is then done again, and so is this.
  void record_overlap(const ScorePass& pass, std::int64_t i) {
    if (pass.of_domains.empty()) return;
    on_root("overlap", [&] {
      std::vector<PruningPlan> plans;
      for (const ScoreTable& scores : pass.of_domains)
        plans.push_back(advance(source_->config, plan_, scores, target_of(i), rules_, i).plan);
      write_overlap(directory_->path() / "overlap.json", pass.table.domains, i, target_of(i),
                    overlap_of(plans, i));
    });
  }

  /// Sums are small and took long: what a stop interrupts goes on where it was.
  void commit_pass(const PausedPass& pass) {
    save(CommitKind::pass, pass.iteration, [&] {
      nlohmann::ordered_json facts{{"micro_batches", pass.micro_batches}, {"tokens", pass.tokens}};
      if (pass.finished) {
        facts["traversals"] = pass.finished->traversals;
        facts["layers"] = pass.finished->layers;
      }
      return Saved{sums_image(pass), {{"pass", facts}}, boundaries_->take_parts()};
    });
    if (grid_.is_root())
      log::info("iteration {} paused after {} of a pass over the data", pass.iteration,
                what_is_done(pass));
  }

  Advance rank_units(const ScoreTable& scores, std::int64_t i) {
    monitor_.enter("rank");
    Advance step;
    together(world_, "rank", [&] {
      fault::hit("rank.enter");
      step = advance(source_->config, plan_, scores, target_of(i), rules_, i);
    });
    const std::string mine = step.plan.digest();
    const std::string root = world_.broadcast_text(mine, 0);
    together(world_, "rank", [&] {
      if (mine != root)
        throw Error(ExitCode::internal,
                    "the ranks made different plans: " + mine + " here, " + root + " on rank 0",
                    "ranking is a pure function of the reduced scores",
                    "Please report this with both digests.");
    });
    fault::hit("rank.exit");
    return step;
  }

  void slice(const PruningPlan& plan) {
    monitor_.enter("slice");
    together(world_, "slice", [&] {
      fault::hit("slice.enter");
      held_->let_go();
      held_->model().apply(widths_of(source_->config, plan));
      if (rebalance(held_->model(), source_->weights(), config_.rebalance) && grid_.is_root())
        log::info("tensor ranks were uneven: cut anew");
    });
    fault::hit("slice.exit");
  }

  nlohmann::ordered_json describe(std::int64_t iteration) const {
    return iteration_row(iteration, directory_ ? directory_->attempt() : 0, source_->config, rules_,
                         plan_);
  }

  void reset_counters() {
    grid_.tensor().reset_counters();
    grid_.data().reset_counters();
    world_.reset_counters();
  }

  /// What the ranks measured of the iteration. Collective.
  PassFacts measured(const ScorePass& pass) {
    const auto largest = [&](std::int64_t value) {
      return static_cast<std::int64_t>(world_.max(static_cast<double>(value)));
    };
    PassFacts facts;
    facts.imbalance = imbalance(source_->config, held_->model().shards());
    facts.peak_bytes = largest(peak_memory(options_.device));
    facts.weight_bytes = largest(held_->model().weight_bytes());
    facts.statistics_bytes = largest(pass.statistics_bytes);
    if (held_->layer_by_layer()) facts.boundary_bytes = largest(pass.boundary_bytes);
    facts.read_bytes = largest(kernel_bytes_read() - read_before_);
    facts.repeated_halves = largest(pass.repeated_halves);
    return facts;
  }

  /// The weights that the iteration's pass was made with, where they follow the losses.
  void add_weights(nlohmann::ordered_json& row) const {
    if (config_.calibration.adapt == Adapt::none) return;
    const std::vector<double> weights = adapted_weights(config_.calibration, losses_);
    for (std::size_t d = 0; d < weights.size(); ++d)
      row["weights"][config_.calibration.domains[d].name] = weights[d];
  }

  void commit(const ScoreTable& scores, const nlohmann::ordered_json& row) {
    save(CommitKind::iteration, plan_.iteration, [&] {
      return Saved{state_image(plan_, scores, means_),
                   {{"metrics", row}, {"losses", to_json(losses_, config_.calibration)}},
                   {}};
    });
  }

  struct Saved {
    std::vector<std::byte> state;
    nlohmann::ordered_json facts;  // of the manifest, beside those that every commit has
    std::vector<CommitPart> parts;
  };

  /// Rank 0 makes and writes what is saved; all ranks agree that it is there.
  void save(CommitKind kind, std::int64_t iteration, const std::function<Saved()>& make) {
    monitor_.enter("save");
    fault::hit("save.enter");
    on_root("save", [&] {
      directory_->require_lock();
      Saved saved = make();
      Commit commit{kind, iteration, std::move(saved.state), {}, std::move(saved.parts)};
      commit.manifest = {{"schema", 2},
                         {"plan_digest", plan_.digest()},
                         {"config_sha256", provenance_.at("config_sha256")},
                         {"inputs", to_json(inputs_)},
                         {"layout", provenance_.at("layout")}};
      commit.manifest.update(saved.facts);
      directory_->commits().publish(commit, directory_->attempt());
      if (kind == CommitKind::pass) return;
      write_plan_file();
      directory_->commits().prune(config_.keep_last, config_.keep_every);
    });
    fault::hit("save.exit");
    monitor_.status().last_commit = CommitStore::directory_name(iteration, kind);
    monitor_.leave();
  }

  void write_plan_file() const {
    const std::vector<std::byte> image = plan_image_of(plan_, means_);
    replace_file(directory_->path() / "plan.h5",
                 std::string_view(reinterpret_cast<const char*>(image.data()), image.size()));
  }

  /// The evaluations of the model as it is; what an interrupted process had done of them is not
  /// done again.
  std::vector<TaskOutcome> evaluate_state(std::int64_t i, const std::string& weights) {
    std::optional<fs::path> place;
    if (directory_) place = directory_->path();
    const std::string dtype(torch_name(to_dtype(options_.dtype)));
    KeptEvaluations kept(world_, place, {i, weights, dtype}, inputs_);
    return evaluate_all(
        config_.evaluation, held_->model(), grid_,
        {config_.calibration.micro_batch_tokens, false, score_hooks(), held_->layer_by_layer()},
        kept.keeper());
  }

  void evaluate_and_record(nlohmann::ordered_json row, std::int64_t i, std::int64_t last) {
    const bool milestone = i == start_.iteration || i == last || i % config_.evaluation.every == 0;
    std::vector<TaskOutcome> outcomes;
    if (milestone && !make_evaluations(config_.evaluation).empty()) {
      monitor_.enter("evaluate");
      fault::hit("evaluate.enter");
      outcomes = evaluate_state(i, plan_.digest());
      fault::hit("evaluate.exit");
      monitor_.leave();
    }
    on_root("record", [&] {
      add_evaluations(row, outcomes);
      for (const auto& [phase, seconds] : monitor_.take_seconds()) {
        const double before = row["seconds"].value(phase, 0.0);
        row["seconds"][phase] = before + seconds;
      }
      directory_->record_metrics(row);
      remove_file(KeptEvaluations::file_in(directory_->path()));
      monitor_.status().eta_seconds = print_iteration(row, last, start_.iteration);
      monitor_.write_status();
    });
  }

  void write_exports() {
    monitor_.enter("export");
    fault::hit("export.enter");
    for (const ExportConfig& target : config_.exports) {
      agree_to_continue(world_, "export", {}, monitor_.hooks());
      on_root("export", [&] {
        directory_->require_lock();
        try {
          write_run_export(
              *source_, rules_, *directory_, target,
              {plan_, means_, provenance_, directory_->metrics(), [&] { leave_on_request(); },
               false,
               config_.refit.enabled ? refit_of_run(directory_->path(), plan_, source_->config)
                                     : std::nullopt});
        } catch (const stop::Stopped&) {
          // The agreement below tells the others.
        }
      });
      agree_to_continue(world_, "export", {}, monitor_.hooks());
    }
    fault::hit("export.exit");
    monitor_.leave();
  }

  /// Rank 0 alone writes exports; an interrupted one leaves nothing behind and is written when the
  /// run continues.
  void leave_on_request() {
    monitor_.poll();
    monitor_.progress(++exported_parts_, 0, "parts");
    if (stop::requests() > 0) throw stop::Stopped(stop::requests());
  }

  void finish(const std::string& state, int code, const std::string& reason) {
    if (!directory_) return;
    RunStatus& status = monitor_.status();
    const std::string phase = status.phase;
    monitor_.leave();
    if (state == "failed") status.phase = phase;  // where it failed
    status.state = state;
    status.exit_code = code;
    status.reason = reason;
    monitor_.write_status();
    if (code == 0)
      print_end(*source_, config_, rules_, plan_, *directory_, monitor_.elapsed(), forecast_bytes_);
  }

  /// What all ranks throw together rank 0 reports; what one throws alone that one reports itself,
  /// since it is about to end the whole job.
  void report_failure(const std::exception& exception) {
    const bool agreed = dynamic_cast<const AgreedError*>(&exception) != nullptr;
    const Error error = as_error(exception, fmt::format("rank {}", world_.rank()));
    const int code = static_cast<int>(error.code());
    if (agreed && directory_ && directory_->abandon()) return;
    if (directory_)
      finish("failed", code, error.what());
    else if (!agreed)
      report_lone_failure(request_.run_dir, code, error.what());
  }

  const RunRequest& request_;
  const RunConfig& config_;
  CommRuntime& runtime_;
  Communicator& world_;
  ProcessGrid grid_;
  Monitor monitor_;
  std::optional<Source> source_;
  PruneRules rules_;
  PruningPlan start_;                  // before the first iteration of this run
  PruningPlan plan_;                   // now
  std::optional<FeatureMeans> means_;  // of what fell, where that is compensated for
  ComputeOptions options_;
  std::string sums_;                          // how those of tensors cross ranks
  std::optional<Watchdog::LastWork> ending_;  // before the grid's reducers
  RunConfig decided_;                         // with what is left to this machine decided
  std::int64_t forecast_bytes_ = 0;           // of a rank; 0 until it is known
  Inputs inputs_;
  std::optional<RunDirectory> directory_;  // rank 0 only
  nlohmann::ordered_json provenance_;
  std::optional<PausedPass> paused_;          // continued by the first iteration
  std::optional<PassBoundaries> boundaries_;  // of passes that are paused between two layers
  DomainLosses losses_;                       // of earlier passes
  std::optional<HeldModel> held_;
  Stragglers stragglers_;
  std::int64_t exported_parts_ = 0;
  std::int64_t read_before_ = kernel_bytes_read();  // by this process before the run
};

}  // namespace

void run_pruning(CommRuntime& runtime, const RunRequest& request) {
  PruningRun(runtime, request).execute();
}

}  // namespace espalier
