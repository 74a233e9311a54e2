#include "espalier/pipeline/time_forecast.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "espalier/calib/token_file.h"
#include "espalier/core/error.h"
#include "espalier/core/json.h"
#include "espalier/core/text.h"
#include "espalier/pipeline/bench.h"
#include "espalier/prune/plan.h"
#include "espalier/prune/unit_tensors.h"
#include "espalier/refit/flops.h"
#include "espalier/refit/refit.h"
#include "espalier/refit/solve.h"
#include "espalier/score/linear_flops.h"
#include "espalier/score/obs_order.h"
#include "espalier/score/score.h"
#include "espalier/score/unit_sums.h"
#include "espalier/store/files.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr std::size_t kMostBenchBytes = std::size_t{16} << 20;

[[noreturn]] void not_a_bench(const fs::path& path, const std::string& why) {
  throw Error(ExitCode::bad_content, "this is not what a bench measured", why,
              "Write it with 'espalier bench CONFIG --out FILE'.", path.string());
}

/// Members of the object, each checked as it is read.
class Facts {
 public:
  Facts(const Json& json, const fs::path& path) : json_(json), path_(path) {}

  double positive(const char* key) const {
    const Json& value = member(key);
    if (!value.is_number() || !(value.get<double>() > 0) || !std::isfinite(value.get<double>()))
      not_a_bench(path_, fmt::format("{} is not a positive number", key));
    return value.get<double>();
  }
  std::string text(const char* key) const {
    const Json& value = member(key);
    if (!value.is_string()) not_a_bench(path_, fmt::format("{} is not a text", key));
    return value.get<std::string>();
  }
  const Json& list(const char* key) const {
    const Json& value = member(key);
    if (!value.is_array()) not_a_bench(path_, fmt::format("{} is not a list", key));
    return value;
  }
  Facts object(const char* key) const {
    const Json& value = member(key);
    if (!value.is_object()) not_a_bench(path_, fmt::format("{} is not an object", key));
    return {value, path_};
  }
  [[noreturn]] void refuse(const std::string& why) const { not_a_bench(path_, why); }

 private:
  const Json& member(const char* key) const {
    if (!json_.is_object() || !json_.contains(key))
      not_a_bench(path_, fmt::format("{} is missing", key));
    return json_.at(key);
  }

  const Json& json_;
  const fs::path& path_;
};

/// What a rank made of float64 matrices and of the sums of a refit.
struct WideRates {
  double sums_flops_per_s = 0;
  double solving_flops_per_s = 0;
};

WideRates wide_rates_of(const Facts& bench) {
  const Facts refit = bench.object("refit");
  const double ranks = bench.object("machine").positive("ranks");
  return {refit.positive("sums_flops_per_s") / ranks,
          refit.positive("solving_flops_per_s") / ranks};
}

/// What a pass of the bench came to.
struct Rate {
  double flops_per_s = 0;  // of a rank, recomputed forwards included
  double executed = 1;     // share of what a criterion needs, 1 and more
  Order order = Order::sample_major;
  /// Layer by layer: what reading layers took of the pass, for each number that a rank read.
  double load_seconds_per_parameter = 0;
  std::int64_t tensor = 1;
  std::int64_t sequence_tokens = 0;
};

/// A pass of obs ends with the ordering, which grows with the widths and not with the tokens: its
/// rate is that of what comes before, halves that ran twice included.
Rate rate_before_ordering(const Facts& pass, double ranks) {
  Rate rate;
  rate.flops_per_s =
      pass.positive("model_flops") / pass.object("seconds_by_phase").positive("calibrate") / ranks;
  return rate;
}

/// `load_seconds` of the pass do not grow with the tokens.
Rate rate_of_pass(const Facts& pass, double ranks, double load_seconds) {
  const double hardware = pass.positive("hardware_flops_per_s"), seconds = pass.positive("seconds");
  if (!(load_seconds < seconds)) pass.refuse("load takes longer than the pass");
  Rate rate;
  rate.flops_per_s = hardware / ranks * seconds / (seconds - load_seconds);
  rate.executed = std::max(1.0, hardware / pass.positive("model_flops_per_s"));
  return rate;
}

/// What `auto` stands for where nothing decided it.
Order order_of(const RunConfig& config) {
  return config.order == Order::layer_major ? Order::layer_major : Order::sample_major;
}

Rate rate_of(const Facts& pass, Criterion criterion, const Facts& shape) {
  const double tensor = pass.positive("tensor"), ranks = tensor * pass.positive("data");
  const bool by_layer = pass.text("order") == name_of(Order::layer_major);
  const double load = by_layer ? pass.object("seconds_by_phase").positive("load") : 0;
  Rate rate = criterion == Criterion::obs ? rate_before_ordering(pass, ranks)
                                          : rate_of_pass(pass, ranks, load);
  rate.order = by_layer ? Order::layer_major : Order::sample_major;
  if (by_layer)
    rate.load_seconds_per_parameter = load / (shape.positive("decoder_parameters") / tensor);
  rate.tensor = static_cast<std::int64_t>(tensor);
  rate.sequence_tokens = static_cast<std::int64_t>(pass.positive("sequence_tokens"));
  return rate;
}

/// The pass of this criterion; of those that there are, one in this order, then one of this number
/// of tensor ranks.
Rate rate_of(const Facts& bench, const RunConfig& config, const fs::path& path) {
  const char* wanted = name_of(config.importance.criterion);
  const auto closeness = [&](const Rate& rate) {
    return (rate.order == order_of(config) ? 2 : 0) + (rate.tensor == config.tensor ? 1 : 0);
  };
  std::optional<Rate> found;
  std::set<std::string> names;
  for (const Json& entry : bench.list("passes")) {
    const Facts pass(entry, path);
    names.insert(line_text(pass.text("criterion")));
    if (pass.text("criterion") != wanted) continue;
    const Rate rate = rate_of(pass, config.importance.criterion, bench.object("shape"));
    if (!found || closeness(rate) > closeness(*found)) found = rate;
  }
  if (!found)
    throw Error(ExitCode::config, fmt::format("importance.criterion = {}", wanted),
                fmt::format("the bench has passes of {}", fmt::join(names, ", ")),
                fmt::format("Measure it: espalier bench CONFIG --criterion {} --out FILE.", wanted),
                path.string());
  return *found;
}

/// Tokens that go through the model, and those of them that predict.
struct Load {
  std::int64_t tokens = 0;
  /// Of these, no padding.
  std::int64_t real_tokens = 0;
  std::int64_t predictions = 0;
  std::int64_t micro_batches = 0;
  std::int64_t data_sets = 0;
};

Load load_of(const std::vector<DomainOutline>& outlines, const std::vector<DomainConfig>& domains) {
  Load load;
  for (std::size_t d = 0; d < outlines.size(); ++d) {
    const DomainOutline& domain = outlines[d];
    if (!domain.known)
      throw Error(ExitCode::config,
                  fmt::format("the tokens of domain '{}' are not known", one_line(domain.name)),
                  "its token file is not there, and time is counted in tokens",
                  "Write it first (launch/tokenize.py), or leave --bench out.",
                  domains[d].tokens.string());
    load.tokens += domain.computed_tokens;
    load.real_tokens += domain.tokens;
    load.predictions += domain.tokens - domain.sequences;
    load.micro_batches += domain.micro_batches;
  }
  return load;
}

Load evaluation_load(const RunConfig& config, std::int64_t vocabulary,
                     std::vector<std::string>& notes) {
  Load load;
  for (const auto* list : {&config.evaluation.perplexity, &config.evaluation.multiple_choice})
    for (const NamedTokens& data : *list) {
      if (!path_exists(data.tokens)) {
        notes.push_back(fmt::format("without evaluation '{}', whose token file is not there",
                                    one_line(data.name)));
        continue;
      }
      const TokenFile file = TokenFile::open(data.tokens, vocabulary, Counting::every_token);
      load.tokens += file.rows() * file.sequence_tokens();
      load.predictions += file.rows() * (file.sequence_tokens() - 1);
      ++load.data_sets;
    }
  if (!config.evaluation.exact_match.empty())
    notes.emplace_back("without exact_match, whose answers are as long as the model makes them");
  return load;
}

/// How much longer data ranks take than if each had the same share.
double waiting(std::int64_t micro_batches, std::int64_t data_ranks) {
  if (micro_batches == 0) return 1;
  const std::int64_t rounds = (micro_batches + data_ranks - 1) / data_ranks;
  return static_cast<double>(rounds * data_ranks) / static_cast<double>(micro_batches);
}

/// Inputs of the units of a half, as criterion obs takes them out.
std::vector<std::int64_t> inputs_of_units(const ModelConfig& model, const LayerWidths& widths,
                                          AttentionUnit unit, UnitKind half) {
  if (half == UnitKind::mlp) return std::vector<std::int64_t>(widths.channels.size(), 1);
  std::vector<std::int64_t> inputs(widths.query_heads.size(), model.head_dim);
  if (unit != AttentionUnit::kv_group) return inputs;
  inputs = widths.groups(model);
  for (std::int64_t& heads : inputs) heads *= model.head_dim;
  return inputs;
}

/// FLOP on the rank that orders most. Scored halves are dealt in their order: as many to a data
/// rank in turn as it has tensor ranks, one to each. Layer by layer those of a layer are dealt when
/// it is finished, and ranks wait for the slowest before the next.
double ordering_flops(const ModelConfig& model, const PassShape& shape, std::int64_t tensor,
                      std::int64_t data) {
  std::vector<double> of_rank(static_cast<std::size_t>(tensor * data), 0.0);
  std::size_t next = 0;
  double finished = 0;
  const auto most = [&] { return *std::max_element(of_rank.begin(), of_rank.end()); };
  for (std::int64_t l = 0; l < model.layers; ++l) {
    for (const UnitKind half : {UnitKind::attention, UnitKind::mlp}) {
      if (!is_scored(shape.scored, l, half)) continue;
      const LayerWidths& widths = shape.widths.layers[static_cast<std::size_t>(l)];
      of_rank[next++ % of_rank.size()] +=
          obs_order_flops(inputs_of_units(model, widths, shape.unit, half), model.hidden,
                          shape.curvature == Curvature::full)
              .all();
    }
    if (!shape.layer_by_layer) continue;
    finished += most();
    std::fill(of_rank.begin(), of_rank.end(), 0.0);
    next = 0;
  }
  return finished + most();
}

/// What a pass executes: layer by layer every half that is differentiated runs forward twice.
double executed_flops(const RunConfig& config, const LinearFlops& flops, const Rate& rate) {
  const bool all_twice =
      order_of(config) == Order::layer_major || config.recompute == Recompute::all;
  return all_twice ? flops.needed() + flops.recompute : flops.needed() * rate.executed;
}

/// A rate of what obs needs, as that of what a pass layer by layer executes.
void count_repeats(Rate& rate, const ModelConfig& model, PassShape shape, const Load& load) {
  if (shape.criterion != Criterion::obs || rate.order != Order::layer_major) return;
  shape.widths = dense_widths(model);
  shape.tokens = load.tokens;
  shape.layer_by_layer = true;
  const LinearFlops flops = linear_flops(model, shape, load.predictions);
  rate.executed = (flops.needed() + flops.recompute) / flops.needed();
  rate.flops_per_s *= rate.executed;
}

/// Traversals of the data in an iteration: criteria whose sums are large have one for each domain
/// that is not pooled.
std::int64_t traversals(const RunConfig& config) {
  const Criterion criterion = config.importance.criterion;
  const bool large = criterion == Criterion::obs || criterion == Criterion::taylor;
  return large && config.calibration.combine != Combine::pooled
             ? static_cast<std::int64_t>(config.calibration.domains.size())
             : 1;
}

/// `pass_rate` is of a rank, `left` what the target leaves.
RefitTime refit_time(const RunConfig& config, const ModelConfig& model, const ModelWidths& left,
                     std::int64_t ranks, double pass_rate, const WideRates& rates) {
  const CalibrationConfig data = refit_data(config);
  const Load load = load_of(outline_domains(data, model), data.domains);
  const RefitMatrices matrices =
      chosen_matrices(config.refit.matrices, load.real_tokens, model.hidden);
  const RefitFlops flops =
      refit_flops(model, {dense_widths(model), left, load.tokens, load.real_tokens,
                          config.refit.shrink_to == ShrinkTo::obs, matrices});
  const double longer =
      waiting(load.micro_batches, ranks / config.tensor) / static_cast<double>(ranks);
  const auto ridges = config.refit.ridge ? 1 : static_cast<std::int64_t>(ridge_candidates().size());
  RefitTime time;
  time.streams_flops = flops.streams;
  time.sums_flops = flops.sums;
  time.solving_flops = static_cast<double>((ridges + ranks - 1) / ranks) * flops.ridge.all() +
                       flops.residuals + flops.solution.all();
  time.streams_seconds = flops.streams / pass_rate * longer;
  time.sums_seconds = flops.sums / rates.sums_flops_per_s * longer;
  time.solving_seconds = time.solving_flops / rates.solving_flops_per_s;
  time.written_bytes =
      refitted_elements(model, left, matrices) * static_cast<std::int64_t>(size_of(model.dtype));
  return time;
}

void add_differences(const Facts& bench, const RunConfig& config, const ModelConfig& model,
                     const Rate& rate, const RunOutline& outline, TimeForecast& time) {
  const Facts shape = bench.object("shape");
  const std::string dtype(torch_name(config.dtype.value_or(model.dtype)));
  if (shape.text("dtype") != dtype)
    time.notes.push_back(fmt::format("measured in {}, the run computes in {}",
                                     line_text(shape.text("dtype")), dtype));
  if (static_cast<std::int64_t>(shape.positive("hidden")) != model.hidden ||
      static_cast<std::int64_t>(shape.positive("channels")) != model.channels)
    time.notes.emplace_back("measured on a model of other widths");
  if (rate.order != time.order)
    time.notes.push_back(fmt::format(
        "measured {}, the run goes {}{}; measure it with 'espalier bench CONFIG --order {}'",
        name_of(rate.order), name_of(time.order),
        time.order == Order::layer_major
            ? ": every half forward twice is counted, reading layers is not"
            : "",
        name_of(time.order)));
  if (rate.tensor != config.tensor)
    time.notes.push_back(fmt::format("measured with {}, the run has {}",
                                     counted(rate.tensor, "tensor rank"), config.tensor));
  for (const DomainOutline& domain : outline.domains)
    if (domain.sequence_tokens > 2 * rate.sequence_tokens) {
      time.notes.push_back(
          fmt::format("measured on sequences of {}; attention grows with their length",
                      counted(rate.sequence_tokens, "token")));
      break;
    }
}

Json to_json(const RefitTime& time) {
  return {{"seconds", time.seconds()},           {"streams_seconds", time.streams_seconds},
          {"sums_seconds", time.sums_seconds},   {"solving_seconds", time.solving_seconds},
          {"streams_flops", time.streams_flops}, {"sums_flops", time.sums_flops},
          {"solving_flops", time.solving_flops}, {"written_bytes", time.written_bytes}};
}

}  // namespace

TimeForecast forecast_time(const RunConfig& config, const ModelConfig& model,
                           const RunOutline& outline, std::int64_t ranks, const fs::path& path) {
  const Json json = parse_json(read_file(path, kMostBenchBytes), path.string());
  const Facts bench(json, path);
  const PruneRules rules = prune_rules(model, config.prune);
  TimeForecast time;
  time.order = order_of(config);
  const Load scoring = load_of(outline.domains, config.calibration.domains);
  PassShape shape;
  shape.scored = prunable_halves(model, rules);
  shape.criterion = config.importance.criterion;
  shape.unit = config.prune.attention_unit;
  shape.curvature = with_matrices(config.importance.curvature);
  shape.layer_by_layer = time.order == Order::layer_major;
  Rate rate = rate_of(bench, config, path);
  count_repeats(rate, model, shape, scoring);
  const Facts machine = bench.object("machine");
  time.flops_per_s = rate.flops_per_s;
  time.basis = fmt::format(
      "{}{} at {} a rank on {}, {} a rank, as {} says", name_of(config.importance.criterion),
      rate.order == Order::layer_major ? " layer by layer" : "", rate_text(rate.flops_per_s),
      line_text(machine.text("name")),
      counted(static_cast<std::int64_t>(machine.positive("threads")), "thread"),
      line_text(path.string()));
  add_differences(bench, config, model, rate, outline, time);
  const Load evaluating = evaluation_load(config, model.vocabulary, time.notes);
  const std::int64_t data_ranks = ranks / config.tensor;
  const double all_per_s = rate.flops_per_s * static_cast<double>(ranks);
  const auto load_seconds = [&](const ModelWidths& widths, double times) {
    const auto parameters = static_cast<double>(count_parameters(model, widths).decoder);
    const double seconds =
        shape.layer_by_layer ? times * rate.load_seconds_per_parameter * parameters : 0;
    time.load_seconds += seconds / static_cast<double>(config.tensor);
    return seconds / static_cast<double>(config.tensor);
  };
  const auto pass_flops = [&](const ModelWidths& widths) {
    shape.widths = widths;
    shape.criterion = config.importance.criterion;
    shape.tokens = scoring.tokens;
    return executed_flops(config, linear_flops(model, shape, scoring.predictions), rate);
  };
  // A pass that differentiates goes through the layers once more, on the way back.
  const double way_forward = needs_of(config.importance.criterion) == Needs::gradients ? 0.5 : 1;
  const auto evaluate = [&](const ModelWidths& widths) {
    if (evaluating.tokens == 0) return;
    shape.widths = widths;
    shape.criterion = Criterion::magnitude;  // losses only
    shape.tokens = evaluating.tokens;
    ++time.evaluations;
    time.evaluation_seconds +=
        linear_flops(model, shape, evaluating.predictions).needed() / all_per_s +
        load_seconds(widths, way_forward * static_cast<double>(evaluating.data_sets));
  };
  std::optional<WideRates> wide;
  const bool orders = config.importance.criterion == Criterion::obs;
  const bool refits = config.refit.enabled && config.prune.target;
  if (orders || refits) wide = wide_rates_of(bench);
  const auto order = [&](const ModelWidths& widths) {
    shape.widths = widths;
    return static_cast<double>(traversals(config)) *
           ordering_flops(model, shape, config.tensor, data_ranks);
  };
  ModelWidths widths = dense_widths(model);
  evaluate(widths);
  time.iterations = config.prune.target ? config.prune.iterations : 1;
  for (std::int64_t i = 1; i <= time.iterations; ++i) {
    const double flops = pass_flops(widths);
    const double seconds = flops / all_per_s * waiting(scoring.micro_batches, data_ranks) +
                           load_seconds(widths, static_cast<double>(traversals(config)));
    if (i == 1) {
      time.first_flops = flops;
      time.first_seconds = seconds;
    }
    time.last_seconds = seconds;
    time.scoring_seconds += seconds;
    if (orders) {
      const double ordering = order(widths);
      if (i == 1) time.first_ordering_flops = ordering;
      time.ordering_seconds += ordering / wide->solving_flops_per_s;
    }
    if (config.prune.target)
      widths = expected_widths(model, rules, outline, scheduled_target(config.prune, 0, i));
    if (i == time.iterations || i % config.evaluation.every == 0) evaluate(widths);
  }
  if (refits) {
    time.refit = refit_time(config, model, widths, ranks, rate.flops_per_s, *wide);
    evaluate(widths);
  }
  if (!config.prune.target) time.notes.emplace_back("one pass: there is no prune.target");
  return time;
}

Json to_json(const TimeForecast& time) {
  Json json{{"seconds", time.seconds()},
            {"iterations", time.iterations},
            {"first_iteration_seconds", time.first_seconds},
            {"last_iteration_seconds", time.last_seconds},
            {"scoring_seconds", time.scoring_seconds},
            {"evaluations", time.evaluations},
            {"evaluation_seconds", time.evaluation_seconds},
            {"order", name_of(time.order)},
            {"first_iteration_flops", time.first_flops},
            {"rank_flops_per_s", time.flops_per_s},
            {"basis", time.basis},
            {"notes", time.notes}};
  if (time.first_ordering_flops > 0) {
    json["ordering_seconds"] = time.ordering_seconds;
    json["first_ordering_flops"] = time.first_ordering_flops;
  }
  if (time.load_seconds > 0) json["load_seconds"] = time.load_seconds;
  if (time.refit) json["refit"] = to_json(*time.refit);
  return json;
}

std::string time_text(const TimeForecast& time) {
  std::string text = fmt::format(
      "time     about {} in all: {} of {} (the first) to {} (the last){}{}\n",
      duration(time.seconds()), counted(time.iterations, "iteration"), duration(time.first_seconds),
      duration(time.last_seconds),
      time.ordering_seconds > 0 ? fmt::format(", ordering in {}", duration(time.ordering_seconds))
                                : "",
      time.evaluations > 0 ? fmt::format(", {} in {}", counted(time.evaluations, "evaluation"),
                                         duration(time.evaluation_seconds))
                           : "");
  if (time.refit)
    text += fmt::format(
        "         a refit in {}: both streams {}, sums {}, solving {}; up to {:.3g} GB written\n",
        duration(time.refit->seconds()), duration(time.refit->streams_seconds),
        duration(time.refit->sums_seconds), duration(time.refit->solving_seconds),
        static_cast<double>(time.refit->written_bytes) / 1e9);
  if (time.load_seconds > 0)
    text += fmt::format("         {} of it for reading layers\n", duration(time.load_seconds));
  text += fmt::format("         {}\n", time.basis);
  for (const std::string& note : time.notes) text += fmt::format("         note: {}\n", note);
  return text;
}

}  // namespace espalier
