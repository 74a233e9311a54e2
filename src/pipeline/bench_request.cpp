#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "bench_widths.h"
#include "espalier/calib/token_file.h"
#include "espalier/config/model_shape.h"
#include "espalier/core/error.h"
#include "espalier/export/export_model.h"
#include "espalier/pipeline/bench.h"
#include "espalier/prune/plan.h"
#include "espalier/score/score.h"
#include "espalier/store/files.h"

namespace espalier {
namespace {

/// What tensor cores like, where nothing else is said.
constexpr std::int64_t kMultiple = 64;

/// Length of the configuration's longest rows, of the token files that are there.
std::int64_t sequence_tokens_of(const RunConfig& config, std::int64_t vocabulary) {
  std::int64_t longest = 0;
  for (const DomainConfig& domain : config.calibration.domains)
    if (path_exists(domain.tokens))
      longest = std::max(
          longest,
          TokenFile::open(domain.tokens, vocabulary, Counting::every_token).sequence_tokens());
  return longest;
}

RunConfig read_config(const BenchChoice& choice) {
  if (choice.config.empty()) {
    if (!choice.overrides.empty())
      throw Error(ExitCode::usage, "--set without CONFIG", "it overrides keys of a configuration",
                  "Name a configuration, or leave --set out.");
    RunConfig config;
    config.tensor = choice.tensor.value_or(1);
    return config;
  }
  std::vector<std::string> overrides = choice.overrides;
  if (choice.tensor) overrides.push_back(fmt::format("parallel.tensor={}", *choice.tensor));
  return read_run_config(choice.config, overrides, ConfigUse::print);
}

void refuse_contradictions(const BenchChoice& choice) {
  Problems problems;
  if (choice.config.empty() && choice.shape.empty())
    problems.add(ExitCode::usage, "bench needs a model", "neither CONFIG nor --shape is given",
                 fmt::format("Name a configuration, or a shape: hidden=1024,channels=2816,layers=8,"
                             "heads=16,kv_heads=4,vocabulary=8192, or one of {}.",
                             fmt::join(known_shapes(), ", ")));
  if (choice.tokens && choice.sequences)
    problems.add(ExitCode::usage, "--tokens and --sequences exclude each other",
                 "each of them says how long a pass is", "Give one of them.");
  if (!choice.plan.empty() && (!choice.shape.empty() || choice.layers))
    problems.add(ExitCode::usage, "--plan excludes --shape and --layers",
                 "a plan belongs to the model of CONFIG", "Leave them out.");
  if (!choice.plan.empty() && !choice.widths.empty())
    problems.add(ExitCode::usage, "--plan and --widths exclude each other",
                 "each of them says what is left of the model", "Give one of them.");
  if (choice.width_multiple && choice.widths.empty())
    problems.add(ExitCode::usage, "--width-multiple without --widths",
                 "it says what the widths of that file are compared with",
                 "Give --widths FILE as well.");
  problems.throw_if_any();
}

/// Reads what --widths names, and what it is compared with.
void choose_widths(BenchRequest& request, const BenchChoice& choice) {
  if (choice.widths.empty()) return;
  request.widths = read_widths(choice.widths, request.model);
  const std::int64_t of_config = request.config.prune.width_multiple;
  request.rounded_to = choice.width_multiple.value_or(of_config > 1 ? of_config : kMultiple);
  if (request.rounded_to > request.model.channels)
    throw Error(ExitCode::usage, fmt::format("multiples of {}", request.rounded_to),
                fmt::format("a layer of the model has {} channels", request.model.channels),
                "Give a smaller --width-multiple.");
}

void choose_model(BenchRequest& request, const BenchChoice& choice) {
  if (!choice.shape.empty()) {
    request.model = config_of_shape(choice.shape, choice.layers);
    request.name = choice.shape;
    request.widths = dense_widths(request.model);
    request.scored = all_halves(request.model);
    return;
  }
  const RunConfig& config = request.config;
  request.model = read_model_config(config.model_path);
  request.name = config.model_path.filename().string();
  request.widths = request.model.exported
                       ? read_exported_widths(config.model_path, request.model).widths
                       : dense_widths(request.model);
  if (choice.layers) {
    request.model = with_layers(std::move(request.model), *choice.layers);
    request.widths = dense_widths(request.model);
  }
  if (!choice.plan.empty())
    request.widths =
        widths_of(request.model, read_plan(Hdf5Reader::open(choice.plan), "", request.model));
  request.scored = prunable_halves(request.model, prune_rules(request.model, config.prune));
}

/// The configuration's where nothing was said.
Collectives collectives_of(const BenchChoice& choice, const RunConfig& config) {
  if (choice.collectives.empty()) return config.collectives;
  if (choice.collectives == "nccl") return Collectives::nccl;
  return choice.collectives == "mpi" ? Collectives::mpi : Collectives::automatic;
}

std::vector<Criterion> criteria_of(const BenchChoice& choice, const RunConfig& config) {
  if (choice.criteria.empty())
    return choice.config.empty() ? std::vector{Criterion::taylor, Criterion::taylor_gate}
                                 : std::vector{config.importance.criterion};
  std::vector<Criterion> criteria;
  for (const std::string& name : choice.criteria) {
    const std::optional<Criterion> criterion = criterion_named(name);
    ESPALIER_CHECK(criterion.has_value(), "a criterion that the command line let through");
    if (std::find(criteria.begin(), criteria.end(), *criterion) == criteria.end())
      criteria.push_back(*criterion);
  }
  return criteria;
}

std::vector<Order> orders_of(const BenchChoice& choice, const RunConfig& config) {
  if (choice.orders.empty())
    return {config.order == Order::layer_major ? Order::layer_major : Order::sample_major};
  std::vector<Order> orders;
  for (const std::string& name : choice.orders) {
    const bool by_layer = name == name_of(Order::layer_major);
    const Order order = by_layer ? Order::layer_major : Order::sample_major;
    if (std::find(orders.begin(), orders.end(), order) == orders.end()) orders.push_back(order);
  }
  return orders;
}

}  // namespace

BenchRequest bench_request(const BenchChoice& choice) {
  refuse_contradictions(choice);
  BenchRequest request;
  request.config = read_config(choice);
  choose_model(request, choice);
  choose_widths(request, choice);
  if (!choice.dtype.empty()) request.config.dtype = dtype_from_torch(choice.dtype);
  request.config.collectives = collectives_of(choice, request.config);
  request.criteria = criteria_of(choice, request.config);
  request.orders = orders_of(choice, request.config);
  const std::int64_t of_files =
      choice.shape.empty() ? sequence_tokens_of(request.config, request.model.vocabulary) : 0;
  request.sequence_tokens =
      choice.sequence_tokens.value_or(of_files > 0 ? of_files : request.sequence_tokens);
  request.sequences = choice.sequences.value_or(request.sequences);
  if (choice.tokens)
    request.sequences = (*choice.tokens + request.sequence_tokens - 1) / request.sequence_tokens;
  request.micro_batch_tokens = choice.micro_batch_tokens;
  if (!choice.recompute.empty())
    request.recompute = choice.recompute == "all" ? Recompute::all : Recompute::automatic;
  else if (request.config.recompute == Recompute::all)
    request.recompute = Recompute::all;
  request.repeats = choice.repeats;
  return request;
}

}  // namespace espalier
