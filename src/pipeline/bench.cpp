#include "espalier/pipeline/bench.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <fstream>
#include <limits>
#include <map>
#include <utility>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include "bench_widths.h"
#include "espalier/calib/calibration.h"
#include "espalier/comm/process_grid.h"
#include "espalier/core/error.h"
#include "espalier/core/hash.h"
#include "espalier/core/host.h"
#include "espalier/core/log.h"
#include "espalier/core/text.h"
#include "espalier/model/memory.h"
#include "espalier/model/random_weights.h"
#include "espalier/model/tensor_ops.h"
#include "espalier/model/work_meter.h"
#include "espalier/pipeline/collectives.h"
#include "espalier/pipeline/memory_forecast.h"
#include "espalier/pipeline/monitor.h"
#include "espalier/pipeline/peak_memory.h"
#include "espalier/pipeline/provenance.h"
#include "espalier/pipeline/source.h"
#include "espalier/score/linear_flops.h"
#include "espalier/score/score.h"
#include "espalier/store/files.h"
#include "gemm_rate.h"
#include "refit_rate.h"

namespace espalier {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

/// Sizes at which sums over ranks are timed.
constexpr std::array<std::int64_t, 4> kCollectiveBytes{
    std::int64_t{4} << 10, std::int64_t{64} << 10, std::int64_t{1} << 20, std::int64_t{16} << 20};
constexpr int kCollectiveRounds = 5;
/// The arithmetic of a refit is timed on so large a matrix at most, and so long.
constexpr std::int64_t kMostRefitInputs = 2048;
constexpr double kRefitSeconds = 0.1;
/// A device takes so long to reach its clock.
constexpr double kDeviceWarmUpSeconds = 10;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

/// The first value of `key` in a file of "key : value" lines; empty where there is none.
std::string value_in(const std::filesystem::path& path, std::string_view key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(key)) continue;
    const std::size_t at = line.find(':');
    const std::size_t begin = at == std::string::npos ? at : line.find_first_not_of(" \t", at + 1);
    if (begin != std::string::npos) return line_text(line.substr(begin));
  }
  return {};
}

std::string machine_name(at::Device device) {
  const char* const gpus = "/proc/driver/nvidia/gpus";
  if (device.is_cuda() && directory_exists(gpus))
    for (const std::filesystem::path& gpu : list_directory(gpus))
      if (const std::string name = value_in(gpu / "information", "Model"); !name.empty())
        return name;
  const std::string cpu = value_in("/proc/cpuinfo", "model name");
  return cpu.empty() ? "unknown" : cpu;
}

const char* name_of(Recompute recompute) { return recompute == Recompute::all ? "all" : "auto"; }

/// How a pass is made.
struct Setting {
  std::int64_t rows = 1;  // sequences of a micro-batch
  Recompute recompute = Recompute::automatic;
};

/// One pass, as all ranks together saw it.
struct Measured {
  double seconds = 0;            // of the slowest rank
  double processor_seconds = 0;  // of all
  double flops = 0;              // of all
  std::int64_t repeated_halves = 0;
  std::int64_t peak_bytes = 0;
  std::map<std::string, double> by_phase, by_kind;  // of rank 0
};

/// The products by themselves, over several sweeps.
struct GemmTotal {
  GemmSweep sum;
  double processor_seconds = 0;
  std::int64_t sweeps = 0;

  double rate() const { return sum.all_flops() / sum.all_seconds(); }
};

class Bench {
 public:
  Bench(CommRuntime& runtime, const BenchRequest& request)
      : runtime_(runtime),
        request_(request),
        world_(runtime.world()),
        grid_(world_, static_cast<int>(request.config.tensor)) {}

  /// As `settings` say, or as it finds best.
  Json run(std::vector<Setting> settings) {
    together(world_, "open", [&] {
      options_ = compute_options(request_.config, to_scalar_type(request_.model.dtype), runtime_);
    });
    sums_ = connect_collectives(request_.config, options_, grid_);
    available_ =
        world_.min(available_memory(options_.device) / ranks_on_device(options_.device, runtime_));
    for (const Criterion criterion : request_.criteria) require_room(criterion, smallest());
    monitor_.enter("load");
    together(world_, "load", [&] {
      model_.emplace(random_causal_lm(request_.model, request_.widths, options_,
                                      grid_.tensor_size(), grid_.tensor_index()));
    });
    if (settings.empty())
      for (const Criterion criterion : request_.criteria) settings.push_back(choose(criterion));
    else
      make_first_passes(settings);
    measure(settings);
    monitor_.enter("refit");
    Json refit = measure_refit(rows_at_once(settings.front()));
    monitor_.enter("collectives");
    Json collectives = Json::array();
    time_collectives("tensor", grid_.tensor(), collectives);
    time_collectives("data", grid_.data(), collectives);
    monitor_.leave();
    settings_ = settings;
    Json result = told(settings, std::move(collectives));
    result["refit"] = std::move(refit);
    return result;
  }

  /// Of the passes that were measured.
  const std::vector<Setting>& settings() const { return settings_; }

 private:
  // ---- the work ---------------------------------------------------------------------------------

  std::int64_t most_rows() const {
    return (request_.sequences + grid_.data_size() - 1) / grid_.data_size();
  }
  Setting smallest() const {
    if (!request_.micro_batch_tokens) return {1, wanted_recompute()};
    return {std::min(most_rows(), sequences_per_micro_batch(*request_.micro_batch_tokens,
                                                            request_.sequence_tokens)),
            wanted_recompute()};
  }
  Recompute wanted_recompute() const { return request_.recompute.value_or(Recompute::automatic); }

  /// Random tokens, of which there is no file.
  Calibration data(std::int64_t sequences, std::int64_t rows) const {
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
    return Calibration::whole(
        TokenFile::from_image(image, "random tokens", request_.model.vocabulary,
                              Counting::every_token),
        "random", rows * S);
  }

  PassShape shape_of(Criterion criterion, std::int64_t tokens) const {
    PassShape shape;
    shape.widths = request_.widths;
    shape.tensor = grid_.tensor_size();
    shape.channel_multiple = options_.channel_multiple;
    shape.scored = request_.scored;
    shape.criterion = criterion;
    shape.unit = request_.config.prune.attention_unit;
    shape.accumulate = request_.config.importance.accumulate;
    shape.curvature = with_matrices(request_.config.importance.curvature);
    shape.dtype = options_.dtype;
    shape.on_cpu = options_.device.is_cpu();
    shape.tokens = tokens;
    return shape;
  }
  MemoryNeed need(Criterion criterion, std::int64_t rows) const {
    return memory_need(request_.model, shape_of(criterion, rows * request_.sequence_tokens));
  }

  void require_room(Criterion criterion, const Setting& setting) {
    MemoryForecast forecast;
    forecast.pass = shape_of(criterion, setting.rows * request_.sequence_tokens);
    forecast.need = need(criterion, setting.rows);
    forecast.sequence = request_.sequence_tokens;
    require_memory(std::move(forecast), request_.model, options_, runtime_, grid_);
  }

  // ---- measuring --------------------------------------------------------------------------------

  Measured pass(Criterion criterion, std::int64_t sequences, const Setting& setting) {
    std::optional<Calibration> tokens;
    together(world_, "calibrate", [&] { tokens = data(sequences, setting.rows); });
    ScoreRequest request;
    request.importance = request_.config.importance;
    request.importance.criterion = criterion;
    request.unit = request_.config.prune.attention_unit;
    request.scored = request_.scored;
    request.iteration = 1;
    RunConfig config = request_.config;
    config.recompute = setting.recompute;
    request.spare_bytes = spare_memory(config, options_, runtime_);
    monitor_.enter("calibrate");
    grid_.tensor().reset_counters();
    grid_.data().reset_counters();
    world_.barrier();
    world_.reset_counters();
    reset_peak_memory(options_.device);
    Measured result;
    const WorkMeter work;
    const double processor = processor_seconds();
    const Clock::time_point begin = Clock::now();
    const ScorePass done = score(*model_, std::move(*tokens), request, grid_, monitor_.hooks());
    synchronize(options_.device);
    const double mine = seconds_since(begin);
    const double used = processor_seconds() - processor;
    monitor_.leave();
    add_phases(result, done, mine);
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

  std::int64_t largest(std::int64_t value) { return -world_.min(-value); }

  static void add_phases(Measured& result, const ScorePass& done, double all) {
    double named = 0;
    result.by_phase = done.seconds;
    for (const auto& [phase, seconds] : done.seconds) named += seconds;
    result.by_phase["other"] = std::max(0.0, all - named);
  }

  /// Where operations are done when they return.
  void add_kinds(Measured& result, const Work& work, double all) const {
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

  /// The micro-batch size that is fastest, by one round of each without what comes once at the end
  /// of a pass; and whether recomputing everything beats keeping what fits.
  Setting choose(Criterion criterion) {
    Setting best = smallest();
    const auto rate = [&](const Setting& setting) {
      const std::int64_t sequences = std::min(request_.sequences, setting.rows * grid_.data_size());
      const Measured round = pass(criterion, sequences, setting);
      const auto calibrated = round.by_phase.find("calibrate");  // criteria without data have none
      const double seconds =
          calibrated == round.by_phase.end() ? round.seconds : calibrated->second;
      return static_cast<double>(sequences) / world_.max(seconds);
    };
    rate(best);  // the first one also maps memory and builds kernels
    if (request_.micro_batch_tokens) return best;
    double fastest = rate(best);
    int without_gain = 0;
    for (Setting next = best; without_gain < 2;) {
      if (next.rows >= most_rows()) break;
      next.rows = std::min(2 * next.rows, most_rows());
      if (memory_for_tensors(need(criterion, next.rows).total()) > available_) break;
      const double now = rate(next);
      without_gain = now > 1.01 * fastest ? 0 : without_gain + 1;
      if (now > fastest) {
        fastest = now;
        best = next;
      }
    }
    if (!request_.recompute && needs_of(criterion) == Needs::gradients)
      if (rate({best.rows, Recompute::all}) > 1.05 * fastest) best.recompute = Recompute::all;
    return best;
  }

  /// The first pass also maps memory and builds kernels.
  void make_first_passes(const std::vector<Setting>& settings) {
    for (std::size_t i = 0; i < settings.size(); ++i)
      pass(request_.criteria[i], std::min(request_.sequences, settings[i].rows * grid_.data_size()),
           settings[i]);
  }

  std::int64_t rows_at_once(const Setting& setting) const {
    return setting.rows * request_.sequence_tokens;
  }

  void sweep(std::int64_t rows) {
    monitor_.enter("gemm");
    GemmSweep mine;
    double used = 0;
    world_.barrier();
    together(world_, "gemm", [&] {
      const double processor = processor_seconds();
      mine = sweep_gemms(*model_, rows);
      used = processor_seconds() - processor;
    });
    monitor_.leave();
    GemmTotal& total = gemm_[rows];
    world_.all_reduce_sum(std::span<double>(mine.flops));
    std::array<double, 1> sum{used};
    world_.all_reduce_sum(std::span<double>(sum));
    for (std::size_t d = 0; d < mine.flops.size(); ++d) {
      total.sum.flops[d] += mine.flops[d];
      total.sum.seconds[d] += world_.max(mine.seconds[d]);
    }
    total.processor_seconds += sum[0];
    ++total.sweeps;
  }

  void warm_up(std::int64_t rows) {
    const Clock::time_point begin = Clock::now();
    const double wanted = options_.device.is_cpu() ? 0 : kDeviceWarmUpSeconds;
    do {
      sweep(rows);
    } while (world_.max(seconds_since(begin)) < wanted);
    gemm_.clear();
  }

  /// Products and passes in turn, so that a machine that others use is as busy for both.
  void measure(const std::vector<Setting>& settings) {
    warm_up(rows_at_once(settings.front()));
    measured_.resize(settings.size());
    for (std::int64_t round = 0; round < request_.repeats; ++round)
      for (std::size_t i = 0; i < settings.size(); ++i) {
        sweep(rows_at_once(settings[i]));
        measured_[i].push_back(pass(request_.criteria[i], request_.sequences, settings[i]));
      }
  }

  /// What a refit of half the channels does beside its passes; `tokens` are of a micro-batch, half
  /// of which are of each fold.
  Json measure_refit(std::int64_t tokens) {
    RefitRates rates;
    world_.barrier();
    together(world_, "refit", [&] {
      rates = time_refit(std::clamp<std::int64_t>(request_.model.channels / 2, 1, kMostRefitInputs),
                         std::min(request_.model.hidden, kMostRefitInputs),
                         std::max<std::int64_t>(tokens / 2, 1), options_.dtype, options_.device,
                         kRefitSeconds);
    });
    std::array<double, 4> all{rates.sums_flops / rates.sums_seconds,
                              rates.solving_flops / rates.solving_seconds,
                              rates.sums_flops / rates.sums_processor_seconds,
                              rates.solving_flops / rates.solving_processor_seconds};
    world_.all_reduce_sum(std::span<double>(all));
    return {{"inputs", rates.inputs},
            {"outputs", rates.outputs},
            {"rows", rates.rows},
            {"sums_flops_per_s", all[0]},
            {"solving_flops_per_s", all[1]},
            {"sums_flops_per_processor_s", all[2]},
            {"solving_flops_per_processor_s", all[3]}};
  }

  void time_collectives(const char* name, RankGroup& group, Json& list) {
    if (group.size() == 1) return;
    for (const std::int64_t bytes : kCollectiveBytes) {
      at::Tensor values =
          at::zeros({bytes / 4}, at::TensorOptions(at::kFloat).device(options_.device));
      std::vector<double> seconds;
      for (int round = 0; round <= kCollectiveRounds; ++round) {
        group.control().barrier();
        const Clock::time_point begin = Clock::now();
        all_reduce_sum(values, group.reducer());
        synchronize(options_.device);
        if (round > 0) seconds.push_back(seconds_since(begin));  // the first one connects
      }
      std::sort(seconds.begin(), seconds.end());
      list.push_back({{"group", name},
                      {"ranks", group.size()},
                      {"bytes", bytes},
                      {"seconds", world_.max(seconds[seconds.size() / 2])}});
    }
  }

  // ---- telling ----------------------------------------------------------------------------------

  Json told(const std::vector<Setting>& settings, Json collectives) {
    const ModelConfig& m = request_.model;
    Json result{{"schema", 1}};
    Json hosts = Json::array();
    for (const std::string& host : world_.gather_text(host_name())) {
      Json name = utf8_text(host);
      if (std::find(hosts.begin(), hosts.end(), name) == hosts.end()) hosts.push_back(name);
    }
    result["machine"] = {{"name", machine_name(options_.device)},
                         {"device", device_name(options_)},
                         {"threads", at::get_num_threads()},
                         {"ranks", world_.size()},
                         {"hosts", hosts},
                         {"sums_of_tensors", sums_},
                         {"libraries", program_facts()}};
    result["shape"] = {{"name", utf8_text(request_.name)},
                       {"hidden", m.hidden},
                       {"channels", m.channels},
                       {"layers", m.layers},
                       {"heads", m.heads},
                       {"kv_heads", m.kv_heads},
                       {"head_dim", m.head_dim},
                       {"vocabulary", m.vocabulary},
                       {"dtype", std::string(torch_name(to_dtype(options_.dtype)))},
                       {"parameters", count_parameters(m, request_.widths).total},
                       {"dense", request_.widths == dense_widths(m)}};
    const std::int64_t rows = rows_at_once(settings.front());
    const GemmTotal& gemm = gemm_.at(rows);
    result["gemm_flops_per_s"] = gemm.rate();
    result["gemm"] = {{"rows", rows},
                      {"flops", gemm.sum.all_flops()},
                      {"seconds", gemm.sum.all_seconds()},
                      {"processor_seconds", gemm.processor_seconds},
                      {"sweeps", gemm.sweeps},
                      {"forward_flops_per_s", gemm.sum.flops[0] / gemm.sum.seconds[0]},
                      {"input_gradient_flops_per_s", gemm.sum.flops[1] / gemm.sum.seconds[1]},
                      {"weight_gradient_flops_per_s", gemm.sum.flops[2] / gemm.sum.seconds[2]}};
    result["passes"] = Json::array();
    for (std::size_t i = 0; i < settings.size(); ++i)
      result["passes"].push_back(told(request_.criteria[i], settings[i], std::move(measured_[i])));
    result["collectives"] = std::move(collectives);
    return result;
  }

  Json told(Criterion criterion, const Setting& setting, std::vector<Measured> rounds) const {
    Json all = Json::array();
    for (const Measured& round : rounds) all.push_back(round.seconds);
    std::sort(rounds.begin(), rounds.end(),
              [](const Measured& a, const Measured& b) { return a.seconds < b.seconds; });
    const Measured& median = rounds[(rounds.size() - 1) / 2];
    const std::int64_t S = request_.sequence_tokens, tokens = request_.sequences * S;
    const LinearFlops flops =
        linear_flops(request_.model, shape_of(criterion, tokens), request_.sequences * (S - 1));
    const GemmTotal& gemm = gemm_.at(rows_at_once(setting));
    const double hardware = median.flops / median.seconds;
    return {{"criterion", espalier::name_of(criterion)},
            {"order", "sample_major"},
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
                                            (gemm.sum.all_flops() / gemm.processor_seconds)},
            {"seconds_of_each", all},
            {"seconds_by_kind", median.by_kind},
            {"forecast_bytes", need(criterion, setting.rows).total()}};
  }

  CommRuntime& runtime_;
  const BenchRequest& request_;
  Communicator& world_;
  ProcessGrid grid_;
  Monitor monitor_{0};
  ComputeOptions options_;
  std::string sums_;            // how those of tensors cross ranks
  std::int64_t available_ = 0;  // bytes for each rank
  std::optional<CausalLM> model_;
  std::map<std::int64_t, GemmTotal> gemm_;  // by rows
  std::vector<std::vector<Measured>> measured_;
  std::vector<Setting> settings_;
};

Json channels_of(const ModelWidths& widths) {
  Json channels = Json::array();
  for (const LayerWidths& layer : widths.layers) channels.push_back(layer.channels.size());
  return channels;
}

/// The same work on rounded widths, and how much longer it takes on those that `ragged` is of.
Json compared(const Json& ragged, Json rounded, const BenchRequest& request) {
  Json result{{"multiple", request.rounded_to},
              {"channels", channels_of(request.widths)},
              {"parameters", rounded.at("shape").at("parameters")},
              {"gemm_flops_per_s", rounded.at("gemm_flops_per_s")},
              {"gemm", std::move(rounded.at("gemm"))},
              {"passes", std::move(rounded.at("passes"))}};
  const auto quotient = [](const Json& a, const Json& b, const char* key) {
    return a.at(key).get<double>() / b.at(key).get<double>();
  };
  result["gemm_rate_ratio"] = quotient(result, ragged, "gemm_flops_per_s");
  for (std::size_t i = 0; i < result["passes"].size(); ++i) {
    Json& pass = result["passes"][i];
    const Json& other = ragged.at("passes").at(i);
    pass["seconds_ratio"] = quotient(other, pass, "seconds");
    pass["rate_ratio"] = quotient(pass, other, "hardware_flops_per_s");
  }
  return result;
}

std::string ms(double seconds) {
  return seconds < 1 ? fmt::format("{:.3g} ms", 1e3 * seconds) : duration(seconds);
}

std::string gib(const Json& bytes) {
  return fmt::format("{:.2f} GiB", bytes.get<double>() / 1073741824.0);
}

std::string seconds_text(const Json& seconds) {
  std::string text;
  for (const auto& [name, value] : seconds.items())
    text += fmt::format("{}{} {:.2f}", text.empty() ? "" : ", ", name, value.get<double>());
  return text;
}

std::string pass_text(const Json& pass) {
  const auto number = [&](const char* key) { return pass.at(key).get<double>(); };
  const auto count = [&](const char* key) { return pass.at(key).get<std::int64_t>(); };
  std::string text = fmt::format(
      "pass     {}: {} of {} in micro-batches of {}, tensor {} x data {}, {}, recompute {} ({} ran "
      "twice)\n",
      pass.at("criterion").get<std::string>(), counted(count("sequences"), "sequence"),
      counted(count("sequence_tokens"), "token"), counted(count("micro_batch_tokens"), "token"),
      count("tensor"), count("data"), pass.at("order").get<std::string>(),
      pass.at("recompute").get<std::string>(), counted(count("repeated_halves"), "half layer"));
  text +=
      fmt::format("         {:.3f} s, {:.1f} tokens/s; model {}, hardware {} = {:.3f} of gemm\n",
                  number("seconds"), number("tokens_per_s"), rate_text(number("model_flops_per_s")),
                  rate_text(number("hardware_flops_per_s")), number("gemm_fraction"));
  text += fmt::format("         seconds: {}\n", seconds_text(pass.at("seconds_by_phase")));
  if (!pass.at("seconds_by_kind").empty())
    text += fmt::format("         of these: {}\n", seconds_text(pass.at("seconds_by_kind")));
  text += fmt::format("         memory a rank: at least {} forecast, peak {}\n",
                      gib(pass.at("forecast_bytes")), gib(pass.at("peak_bytes")));
  return text;
}

std::string spread_text(const Json& numbers) {
  std::int64_t least = std::numeric_limits<std::int64_t>::max(), most = 0;
  for (const Json& number : numbers) {
    least = std::min(least, number.get<std::int64_t>());
    most = std::max(most, number.get<std::int64_t>());
  }
  return least < most ? fmt::format("{}-{}", least, most) : fmt::format("{}", most);
}

std::string rounded_text(const Json& result) {
  const Json& rounded = result.at("rounded");
  std::string text = fmt::format(
      "rounded  {} channels a layer at multiples of {}, in place of {}; gemm {}, {:.3f} x the "
      "rate\n",
      spread_text(rounded.at("channels")), rounded.at("multiple").get<std::int64_t>(),
      spread_text(result.at("shape").at("layer_channels")),
      rate_text(rounded.at("gemm_flops_per_s").get<double>()),
      rounded.at("gemm_rate_ratio").get<double>());
  for (const Json& pass : rounded.at("passes")) {
    text += pass_text(pass);
    text +=
        fmt::format("ratio    {}: ragged takes {:.3f} x as long; rounded has {:.3f} x the rate\n",
                    pass.at("criterion").get<std::string>(), pass.at("seconds_ratio").get<double>(),
                    pass.at("rate_ratio").get<double>());
  }
  return text;
}

}  // namespace

Json run_bench(CommRuntime& runtime, const BenchRequest& request) {
  std::vector<Setting> settings;
  Json result;
  {
    Bench bench(runtime, request);
    result = bench.run({});
    settings = bench.settings();
  }
  if (request.rounded_to == 0) return result;
  result["shape"]["layer_channels"] = channels_of(request.widths);
  BenchRequest rounded = request;
  rounded.widths = with_rounded_channels(rounded.widths, rounded.model, rounded.rounded_to);
  result["rounded"] = compared(result, Bench(runtime, rounded).run(settings), rounded);
  return result;
}

std::string rate_text(double flops_per_s) {
  return flops_per_s < 1e12 ? fmt::format("{:.1f} GFLOP/s", flops_per_s / 1e9)
                            : fmt::format("{:.1f} TFLOP/s", flops_per_s / 1e12);
}

std::string bench_text(const Json& result) {
  const Json &machine = result.at("machine"), &shape = result.at("shape"),
             &gemm = result.at("gemm");
  std::string text = fmt::format(
      "machine  {}, {}, {} of {}\n", machine.at("name").get<std::string>(),
      machine.at("device").get<std::string>(), counted(machine.at("ranks").get<int>(), "rank"),
      counted(machine.at("threads").get<int>(), "thread"));
  if (machine.at("ranks").get<int>() > 1)
    text += fmt::format("sums     of tensors over {}\n",
                        machine.at("sums_of_tensors").get<std::string>());
  text += fmt::format(
      "shape    {}: hidden {}, {} channels, {} layers, {} query / {} KV heads of {}, vocabulary "
      "{}, "
      "{}{}\n",
      one_line(shape.at("name").get<std::string>()), shape.at("hidden").get<std::int64_t>(),
      shape.at("channels").get<std::int64_t>(), shape.at("layers").get<std::int64_t>(),
      shape.at("heads").get<std::int64_t>(), shape.at("kv_heads").get<std::int64_t>(),
      shape.at("head_dim").get<std::int64_t>(), shape.at("vocabulary").get<std::int64_t>(),
      shape.at("dtype").get<std::string>(), shape.at("dense").get<bool>() ? "" : ", pruned");
  text += fmt::format(
      "gemm     {} over all linear maps at {} rows (forward {}, input gradients {}, weight "
      "gradients {})\n",
      rate_text(result.at("gemm_flops_per_s").get<double>()), gemm.at("rows").get<std::int64_t>(),
      rate_text(gemm.at("forward_flops_per_s").get<double>()),
      rate_text(gemm.at("input_gradient_flops_per_s").get<double>()),
      rate_text(gemm.at("weight_gradient_flops_per_s").get<double>()));
  for (const Json& pass : result.at("passes")) text += pass_text(pass);
  if (result.contains("rounded")) text += rounded_text(result);
  const Json& refit = result.at("refit");
  text +=
      fmt::format("refit    {} inputs, {} outputs: sums of {} {}, solving {}\n",
                  refit.at("inputs").get<std::int64_t>(), refit.at("outputs").get<std::int64_t>(),
                  counted(refit.at("rows").get<std::int64_t>(), "token"),
                  rate_text(refit.at("sums_flops_per_s").get<double>()),
                  rate_text(refit.at("solving_flops_per_s").get<double>()));
  for (const Json& sum : result.at("collectives")) {
    const auto bytes = sum.at("bytes").get<double>(), seconds = sum.at("seconds").get<double>();
    text += fmt::format("sum      {} ranks ({}), {:.0f} KiB: {}, {:.2f} GB/s\n",
                        sum.at("ranks").get<int>(), sum.at("group").get<std::string>(),
                        bytes / 1024, ms(seconds), bytes / seconds / 1e9);
  }
  return text;
}

}  // namespace espalier
