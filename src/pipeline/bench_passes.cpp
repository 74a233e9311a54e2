#include "bench_passes.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <utility>

#include <ATen/ATen.h>

#include "bench_facts.h"
#include "bench_rates.h"
#include "espalier/core/hash.h"
#include "espalier/model/memory.h"
#include "espalier/model/tensor_ops.h"
#include "espalier/pipeline/collectives.h"
#include "espalier/pipeline/memory_forecast.h"
#include "espalier/pipeline/peak_memory.h"
#include "espalier/score/linear_flops.h"

namespace espalier {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

/// A device takes so long to reach its clock.
constexpr double kDeviceWarmUpSeconds = 10;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

const char* name_of(Recompute recompute) { return recompute == Recompute::all ? "all" : "auto"; }

/// The phases of a pass that took `all`, `reading` of which were for layers.
std::map<std::string, double> phases_of(const ScorePass& done, double all, double reading) {
  std::map<std::string, double> phases = done.seconds;
  if (reading > 0) {
    phases["load"] = reading;
    phases["calibrate"] -= reading;
  }
  double named = 0;
  for (const auto& [phase, seconds] : phases) named += seconds;
  phases["other"] = std::max(0.0, all - named);
  return phases;
}

}  // namespace

BenchPasses::BenchPasses(CommRuntime& runtime, const BenchRequest& request, Order order)
    : runtime_(runtime),
      request_(request),
      config_(request.config),
      world_(runtime.world()),
      grid_(world_, static_cast<int>(request.config.tensor)) {
  config_.order = order;
}

Json BenchPasses::run(std::vector<PassSetting> settings) {
  prepare();
  settings_ = std::move(settings);
  if (settings_.empty()) {
    for (const Criterion criterion : request_.criteria) settings_.push_back(choose(criterion));
  } else {
    // The first pass also maps memory and builds kernels.
    for (std::size_t i = 0; i < settings_.size(); ++i) rate(request_.criteria[i], settings_[i]);
  }
  measure();
  Json result = told();
  monitor_.enter("refit");
  result["refit"] = refit_rates(request_.model, options_, rows_at_once(settings_.front()), world_);
  monitor_.enter("collectives");
  result["collectives"] = collective_times(grid_, options_.device);
  monitor_.leave();
  return result;
}

// ---- the work -----------------------------------------------------------------------------------

void BenchPasses::prepare() {
  together(world_, "open", [&] {
    options_ = compute_options(config_, to_scalar_type(request_.model.dtype), runtime_);
  });
  sums_ = connect_collectives(config_, options_, grid_);
  available_ =
      world_.min(available_memory(options_.device) / ranks_on_device(options_.device, runtime_));
  place_boundaries();
  for (const Criterion criterion : request_.criteria) require_room(criterion, smallest());
  monitor_.enter("load");
  model_.emplace(request_, config_, options_, runtime_, grid_, monitor_.hooks("parts"));
}

std::int64_t BenchPasses::most_rows() const {
  return (request_.sequences + grid_.data_size() - 1) / grid_.data_size();
}

/// Layer by layer every half runs forward twice, whatever is said.
PassSetting BenchPasses::smallest() const {
  const Recompute recompute =
      goes_by_layer() ? Recompute::all : request_.recompute.value_or(Recompute::automatic);
  if (!request_.micro_batch_tokens) return {1, recompute};
  return {std::min(most_rows(), sequences_per_micro_batch(*request_.micro_batch_tokens,
                                                          request_.sequence_tokens)),
          recompute};
}

/// Random tokens, of which there is no file.
Calibration BenchPasses::data(std::int64_t sequences, std::int64_t rows) const {
  const std::int64_t S = request_.sequence_tokens;
  std::vector<std::int32_t> tokens;
  tokens.reserve(static_cast<std::size_t>(sequences * S));
  for (std::int64_t i = 0; i < sequences * S; ++i) {
    const std::uint64_t words[] = {static_cast<std::uint64_t>(i)};
    tokens.push_back(static_cast<std::int32_t>(
        counter_hash(words) % static_cast<std::uint64_t>(request_.model.vocabulary)));
  }
  Hdf5Writer file;
  file.write("/tokens", std::span<const std::int32_t>(tokens), {sequences, S});
  file.attribute("/", "format", std::string("espalier-tokens"));
  file.attribute("/", "version", std::int64_t{1});
  const std::vector<std::byte> image = file.finish();
  return Calibration::whole(TokenFile::from_image(image, "random tokens", request_.model.vocabulary,
                                                  Counting::every_token),
                            "random", rows * S);
}

PassShape BenchPasses::shape_of(Criterion criterion, std::int64_t tokens) const {
  PassShape shape;
  shape.widths = request_.widths;
  shape.tensor = grid_.tensor_size();
  shape.channel_multiple = options_.channel_multiple;
  shape.scored = request_.scored;
  shape.criterion = criterion;
  shape.unit = config_.prune.attention_unit;
  shape.accumulate = config_.importance.accumulate;
  shape.curvature = with_matrices(config_.importance.curvature);
  shape.dtype = options_.dtype;
  shape.on_cpu = options_.device.is_cpu();
  shape.tokens = tokens;
  shape.layer_by_layer = goes_by_layer();
  if (shape.layer_by_layer && config_.boundaries != BoundaryStore::files)
    shape.boundary_tokens = most_rows() * request_.sequence_tokens;
  return shape;
}

MemoryNeed BenchPasses::need(Criterion criterion, std::int64_t rows) const {
  return memory_need(request_.model, shape_of(criterion, rows * request_.sequence_tokens));
}

bool BenchPasses::has_room(Criterion criterion, std::int64_t rows) const {
  return memory_for_tensors(need(criterion, rows).total()) <= available_;
}

/// As a run decides: in memory where that fits.
void BenchPasses::place_boundaries() {
  if (config_.boundaries != BoundaryStore::automatic) return;
  config_.boundaries = BoundaryStore::memory;
  for (const Criterion criterion : request_.criteria)
    if (!has_room(criterion, smallest().rows)) config_.boundaries = BoundaryStore::files;
}

MemoryForecast BenchPasses::forecast(Criterion criterion, const PassSetting& setting) const {
  MemoryForecast forecast;
  forecast.pass = shape_of(criterion, rows_at_once(setting));
  forecast.need = need(criterion, setting.rows);
  forecast.sequence = request_.sequence_tokens;
  forecast.boundary_tokens = most_rows() * request_.sequence_tokens;
  forecast.keeps_graphs = setting.recompute == Recompute::automatic;
  forecast.available = available_;
  expect_graphs(forecast, request_.model);
  return forecast;
}

void BenchPasses::require_room(Criterion criterion, const PassSetting& setting) {
  require_memory(forecast(criterion, setting), request_.model, options_, runtime_, grid_);
}

// ---- measuring ----------------------------------------------------------------------------------

ScoreRequest BenchPasses::score_request(Criterion criterion, const PassSetting& setting) const {
  ScoreRequest request;
  request.importance = config_.importance;
  request.importance.criterion = criterion;
  request.unit = config_.prune.attention_unit;
  request.scored = request_.scored;
  request.iteration = 1;
  RunConfig config = config_;
  config.recompute = setting.recompute;
  request.spare_bytes = spare_memory(config, options_, runtime_);
  request.layer_by_layer = model_->layer_by_layer();
  return request;
}

MeasuredPass BenchPasses::pass(Criterion criterion, std::int64_t sequences,
                               const PassSetting& setting) {
  std::optional<Calibration> tokens;
  together(world_, "calibrate", [&] { tokens = data(sequences, setting.rows); });
  const ScoreRequest request = score_request(criterion, setting);
  monitor_.enter("calibrate");
  grid_.tensor().reset_counters();
  grid_.data().reset_counters();
  world_.barrier();
  world_.reset_counters();
  reset_peak_memory(options_.device);
  MeasuredPass result;
  const WorkMeter work;
  const double processor = processor_seconds(), reading = model_->reading_seconds();
  const Clock::time_point begin = Clock::now();
  const ScorePass done =
      score(model_->model(), std::move(*tokens), request, grid_, monitor_.hooks());
  synchronize(options_.device);
  const double mine = seconds_since(begin);
  const double used = processor_seconds() - processor;
  monitor_.leave();
  result.by_phase = phases_of(done, mine, model_->reading_seconds() - reading);
  add_kinds(result, work.work(), mine);
  result.seconds = world_.max(mine);
  std::array<double, 2> sums{used, work.work().flops};
  world_.all_reduce_sum(std::span<double>(sums));
  result.processor_seconds = sums[0];
  result.flops = sums[1];
  result.repeated_halves = largest(done.repeated_halves);
  result.peak_bytes = largest(peak_memory(options_.device));
  return result;
}

/// Where operations are done when they return.
void BenchPasses::add_kinds(MeasuredPass& result, const Work& work, double all) const {
  if (!options_.device.is_cpu()) return;
  double communication = 0;
  for (const CommCounters& counters :
       {grid_.tensor().counters(), grid_.data().counters(), world_.counters()})
    communication += counters.seconds;
  result.by_kind = {{"products_forward", work.forward_seconds},
                    {"products_backward", work.backward_seconds},
                    {"attention", work.attention_seconds},
                    {"communication", communication}};
  double named = 0;
  for (const auto& [kind, seconds] : result.by_kind) named += seconds;
  result.by_kind["other"] = std::max(0.0, all - named);
}

/// Sequences per second in one round, without what is the same for any size of micro-batch:
/// reading layers, and what comes once at the end of a pass.
double BenchPasses::rate(Criterion criterion, const PassSetting& setting) {
  const std::int64_t sequences = std::min(request_.sequences, setting.rows * grid_.data_size());
  const MeasuredPass round = pass(criterion, sequences, setting);
  const auto calibrated = round.by_phase.find("calibrate");  // criteria without data have none
  const double seconds = calibrated == round.by_phase.end() ? round.seconds : calibrated->second;
  return static_cast<double>(sequences) / world_.max(seconds);
}

/// The micro-batch size that is fastest; and whether recomputing everything beats keeping what
/// fits.
PassSetting BenchPasses::choose(Criterion criterion) {
  PassSetting best = smallest();
  rate(criterion, best);  // the first one also maps memory and builds kernels
  if (request_.micro_batch_tokens) return best;
  double fastest = rate(criterion, best);
  int without_gain = 0;
  for (PassSetting next = best; without_gain < 2;) {
    if (next.rows >= most_rows()) break;
    next.rows = std::min(2 * next.rows, most_rows());
    if (!has_room(criterion, next.rows)) break;
    const double now = rate(criterion, next);
    without_gain = now > 1.01 * fastest ? 0 : without_gain + 1;
    if (now > fastest) {
      fastest = now;
      best = next;
    }
  }
  const bool may_keep = !request_.recompute && !goes_by_layer();
  if (may_keep && needs_of(criterion) == Needs::gradients)
    if (rate(criterion, {best.rows, Recompute::all}) > 1.05 * fastest)
      best.recompute = Recompute::all;
  return best;
}

void BenchPasses::sweep(std::int64_t rows) {
  monitor_.enter("gemm");
  GemmSweep mine;
  world_.barrier();
  together(world_, "gemm", [&] { mine = model_->sweep(rows); });
  monitor_.leave();
  GemmTotal& total = gemm_[rows];
  world_.all_reduce_sum(std::span<double>(mine.flops));
  std::array<double, 1> used{mine.processor_seconds};
  world_.all_reduce_sum(std::span<double>(used));
  for (std::size_t d = 0; d < mine.flops.size(); ++d) {
    total.sum.flops[d] += mine.flops[d];
    total.sum.seconds[d] += world_.max(mine.seconds[d]);
  }
  total.sum.processor_seconds += used[0];
  ++total.sweeps;
}

void BenchPasses::warm_up(std::int64_t rows) {
  const Clock::time_point begin = Clock::now();
  const double wanted = options_.device.is_cpu() ? 0 : kDeviceWarmUpSeconds;
  do {
    sweep(rows);
  } while (world_.max(seconds_since(begin)) < wanted);
  gemm_.clear();
}

/// Products and passes in turn, so that a machine that others use is as busy for both.
void BenchPasses::measure() {
  warm_up(rows_at_once(settings_.front()));
  measured_.resize(settings_.size());
  for (std::int64_t round = 0; round < request_.repeats; ++round)
    for (std::size_t i = 0; i < settings_.size(); ++i) {
      sweep(rows_at_once(settings_[i]));
      measured_[i].push_back(pass(request_.criteria[i], request_.sequences, settings_[i]));
    }
}

// ---- telling ------------------------------------------------------------------------------------

Json BenchPasses::told() {
  Json result{{"schema", 1}};
  result["machine"] = bench_machine(options_, sums_, world_);
  result["shape"] = bench_shape(request_, options_);
  const std::int64_t rows = rows_at_once(settings_.front());
  result["gemm_flops_per_s"] = gemm_.at(rows).rate();
  result["gemm"] = to_json(gemm_.at(rows), rows);
  result["passes"] = Json::array();
  for (std::size_t i = 0; i < settings_.size(); ++i)
    result["passes"].push_back(told(request_.criteria[i], settings_[i], std::move(measured_[i])));
  return result;
}

Json BenchPasses::told(Criterion criterion, const PassSetting& setting,
                       std::vector<MeasuredPass> rounds) const {
  Json all = Json::array();
  for (const MeasuredPass& round : rounds) all.push_back(round.seconds);
  std::sort(rounds.begin(), rounds.end(),
            [](const MeasuredPass& a, const MeasuredPass& b) { return a.seconds < b.seconds; });
  const MeasuredPass& median = rounds[(rounds.size() - 1) / 2];
  const std::int64_t S = request_.sequence_tokens, tokens = request_.sequences * S;
  const LinearFlops flops =
      linear_flops(request_.model, shape_of(criterion, tokens), request_.sequences * (S - 1));
  const GemmTotal& gemm = gemm_.at(rows_at_once(setting));
  const double hardware = median.flops / median.seconds;
  Json pass{{"criterion", espalier::name_of(criterion)},
            {"order", espalier::name_of(config_.order)},
            {"recompute", name_of(setting.recompute)},
            {"tensor", grid_.tensor_size()},
            {"data", grid_.data_size()},
            {"sequences", request_.sequences},
            {"sequence_tokens", S},
            {"micro_batch_tokens", rows_at_once(setting)},
            {"seconds", median.seconds},
            {"tokens_per_s", static_cast<double>(tokens) / median.seconds},
            {"model_flops_per_s", flops.needed() / median.seconds},
            {"hardware_flops_per_s", hardware},
            {"peak_bytes", median.peak_bytes},
            {"seconds_by_phase", median.by_phase},
            {"model_flops", flops.needed()},
            {"hardware_flops", median.flops},
            {"repeated_halves", median.repeated_halves},
            {"gemm_flops_per_s", gemm.rate()},
            {"gemm_fraction", hardware / gemm.rate()},
            {"processor_seconds", median.processor_seconds},
            {"processor_gemm_fraction", (median.flops / median.processor_seconds) /
                                            (gemm.sum.all_flops() / gemm.sum.processor_seconds)},
            {"seconds_of_each", all},
            {"seconds_by_kind", median.by_kind},
            {"forecast_bytes", forecast(criterion, setting).expected()}};
  if (goes_by_layer())
    pass["boundaries"] = config_.boundaries == BoundaryStore::files ? "files" : "memory";
  return pass;
}

}  // namespace espalier
