#include "espalier/pipeline/memory_forecast.h"

#include <algorithm>
#include <optional>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "espalier/calib/calibration.h"
#include "espalier/core/error.h"
#include "espalier/core/host.h"
#include "espalier/core/log.h"
#include "espalier/core/text.h"
#include "espalier/model/memory.h"
#include "espalier/model/tensor_ops.h"
#include "espalier/pipeline/run_outline.h"
#include "espalier/pipeline/source.h"
#include "espalier/refit/refit.h"
#include "espalier/score/score.h"
#include "espalier/store/files.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;

std::string gib(std::int64_t bytes) {
  const double value = static_cast<double>(bytes) / (1 << 30);
  return fmt::format("{:.{}f}", value, value < 1 ? 3 : 1);
}

/// The micro-batches of a pass: the largest, and how many there are.
struct Extent {
  std::int64_t tokens = 0;
  std::int64_t sequence = 1;
  std::int64_t cached_tokens = 0;
  std::int64_t micro_batches = 0;

  void add(std::int64_t micro_batch_tokens, std::int64_t row, std::int64_t rows) {
    const std::int64_t sequences = sequences_per_micro_batch(micro_batch_tokens, row);
    tokens = std::max(tokens, row * std::min(sequences, rows));
    sequence = std::max(sequence, row);
    micro_batches += (rows + sequences - 1) / sequences;
  }
  void add_file(std::int64_t micro_batch_tokens, const fs::path& path, std::int64_t vocabulary,
                std::optional<std::int64_t> sequences) {
    if (!path_exists(path)) {
      add(micro_batch_tokens, 1, micro_batch_tokens);
      micro_batches += sequences.value_or(1) - 1;
      return;
    }
    const TokenFile file = TokenFile::open(path, vocabulary, Counting::every_token);
    add(micro_batch_tokens, file.sequence_tokens(), sequences.value_or(file.rows()));
  }
};

/// Rows of the item with most options.
std::int64_t largest_item(const OptionRows& options) {
  std::int64_t largest = 1;
  for (std::size_t i = 1; i < options.first.size(); ++i)
    largest = std::max(largest, options.first[i] - options.first[i - 1]);
  return largest;
}

Extent calibration_extent(const CalibrationConfig& config, std::int64_t vocabulary) {
  Extent extent;
  for (const DomainConfig& domain : config.domains) {
    if (domain.objective != Objective::margin || !path_exists(domain.tokens)) {
      extent.add_file(config.micro_batch_tokens, domain.tokens, vocabulary, domain.sequences);
      continue;
    }
    // Items go through the model whole.
    const TokenFile file = TokenFile::open(domain.tokens, vocabulary, Counting::options);
    const std::int64_t row = file.sequence_tokens();
    extent.add(std::max(config.micro_batch_tokens, largest_item(file.options()) * row), row,
               file.rows());
  }
  return extent;
}

/// Of each evaluation that wants nothing but losses.
std::vector<Extent> loss_extents(const RunConfig& config, std::int64_t vocabulary) {
  std::vector<Extent> extents;
  for (const auto* list : {&config.evaluation.perplexity, &config.evaluation.multiple_choice})
    for (const NamedTokens& data : *list)
      extents.emplace_back().add_file(config.calibration.micro_batch_tokens, data.tokens,
                                      vocabulary, std::nullopt);
  return extents;
}

/// Prompts are read together, their answers token by token.
Extent generation_extent(const RunConfig& config, const ExactMatchConfig& data,
                         std::int64_t vocabulary) {
  const std::int64_t bound = config.calibration.micro_batch_tokens;
  std::int64_t prompt = std::max<std::int64_t>(1, bound - data.max_new_tokens);
  std::int64_t rows = 1;
  if (path_exists(data.tokens)) {
    const TokenFile file = TokenFile::open(data.tokens, vocabulary, Counting::nothing);
    prompt = file.longest_row();
    rows = std::min(file.rows(), sequences_per_micro_batch(bound, prompt + data.max_new_tokens));
  }
  const std::int64_t sequence = prompt + data.max_new_tokens;
  return {rows * prompt, sequence, rows * sequence, 1};
}

bool would_fit(const MemoryForecast& forecast, const ModelConfig& model, const PassShape& pass) {
  return memory_for_tensors(memory_need(model, pass).total()) <= forecast.available;
}

/// What calibration.micro_batch_tokens bounds of a pass.
std::int64_t micro_batch_tokens(const PassShape& pass) {
  return std::max(pass.tokens, pass.cached_tokens);
}

std::string with_need(const ModelConfig& model, const PassShape& pass, const std::string& change) {
  return fmt::format("{} ({} GiB a rank)", change, gib(memory_need(model, pass).total()));
}

Error too_little(const MemoryForecast& forecast, const ModelConfig& model, std::int64_t sharing) {
  std::vector<std::string> changes = fitting_changes(forecast, model);
  return Error(
      ExitCode::unsuitable,
      fmt::format("not enough memory on {}: a rank needs {} GiB and can have {}", host_name(),
                  gib(forecast.need.total()), gib(forecast.available)),
      fmt::format("{}, with micro-batches of {}{}", memory_text(forecast),
                  counted(micro_batch_tokens(forecast.pass), "token"),
                  sharing > 1 ? fmt::format("; {} ranks share what is free here", sharing) : ""),
      changes.empty()
          ? "No single change is enough: combine a smaller calibration.micro_batch_tokens with "
            "more "
            "tensor ranks on more nodes. 'espalier plan' does this arithmetic without a run."
          : fmt::format("Any of these would fit: {}.", fmt::join(changes, "; ")));
}

}  // namespace

std::int64_t MemoryForecast::expected() const {
  const std::int64_t tensors = need.total() + need.kept_graphs;
  return pass.on_cpu ? resident_with_tensors(tensors) : tensors;
}

void expect_graphs(MemoryForecast& forecast, const ModelConfig& model) {
  if (!forecast.keeps_graphs || forecast.available == 0) return;
  forecast.pass.spare_bytes = tensors_for_memory(forecast.available - forecast.need.weights);
  forecast.need = memory_need(model, forecast.pass);
}

MemoryForecast forecast_memory(const RunConfig& config, ConfigUse use, const ModelConfig& model,
                               const ModelWidths& widths, const ScoredHalves& scored,
                               at::ScalarType dtype, std::int64_t data_ranks) {
  PassShape pass;
  pass.widths = widths;
  pass.tensor = static_cast<int>(config.tensor);
  pass.channel_multiple = config.prune.width_multiple;
  pass.scored = scored;
  pass.criterion = config.importance.criterion;
  pass.unit = config.prune.attention_unit;
  pass.accumulate = config.importance.accumulate;
  pass.curvature = config.importance.curvature;
  pass.dtype = dtype;
  // Where the configuration leaves it open, the larger of both.
  pass.on_cpu = config.device == DeviceChoice::cpu;
  pass.domains = static_cast<std::int64_t>(config.calibration.domains.size());
  MemoryForecast forecast;
  forecast.keeps_graphs = config.recompute == Recompute::automatic;
  const auto consider = [&](const Extent& extent) {
    pass.tokens = extent.tokens;
    pass.cached_tokens = extent.cached_tokens;
    // Answers are generated token by token, each of which goes through the whole model.
    pass.layer_by_layer = config.order == Order::layer_major && extent.cached_tokens == 0;
    const std::int64_t of_rank = (extent.micro_batches + data_ranks - 1) / data_ranks;
    pass.boundary_tokens = config.boundaries == BoundaryStore::files ? 0 : of_rank * extent.tokens;
    const MemoryNeed need = memory_need(model, pass);
    if (need.total() <= forecast.need.total()) return;
    forecast.boundary_tokens = of_rank * extent.tokens;
    forecast.pass = pass;
    forecast.need = need;
    forecast.sequence = extent.sequence;
  };
  if (use != ConfigUse::eval) consider(calibration_extent(config.calibration, model.vocabulary));
  pass.criterion = Criterion::magnitude;  // an evaluation only wants losses
  if (use == ConfigUse::score) return forecast;
  for (const Extent& extent : loss_extents(config, model.vocabulary)) consider(extent);
  for (const ExactMatchConfig& data : config.evaluation.exact_match)
    consider(generation_extent(config, data, model.vocabulary));
  return forecast;
}

namespace {

/// What may be tried in this order: what costs least first, then what needs less memory.
std::vector<RunConfig> candidates(const RunConfig& config) {
  const bool free_curvature = config.importance.criterion == Criterion::obs &&
                              config.importance.curvature == Curvature::automatic;
  std::vector<Curvature> curvatures{config.importance.curvature};
  if (free_curvature) curvatures = {Curvature::full, Curvature::scalar};
  std::vector<Order> orders{config.order};
  if (config.order == Order::automatic) orders = {Order::sample_major, Order::layer_major};
  std::vector<BoundaryStore> stores{config.boundaries};
  if (config.boundaries == BoundaryStore::automatic)
    stores = {BoundaryStore::memory, BoundaryStore::files};
  std::vector<RunConfig> all;
  for (const Curvature curvature : curvatures)
    for (const Order order : orders)
      for (const BoundaryStore store : stores) {
        if (order == Order::sample_major && store != stores.front()) continue;
        RunConfig& one = all.emplace_back(config);
        one.importance.curvature = curvature;
        one.order = order;
        one.boundaries = store;
      }
  return all;
}

std::string described(const RunConfig& config) {
  std::string text = name_of(config.order);
  if (config.order == Order::layer_major)
    text += config.boundaries == BoundaryStore::files ? ", boundaries in files"
                                                      : ", boundaries in memory";
  if (config.importance.criterion == Criterion::obs)
    text += config.importance.curvature == Curvature::scalar ? ", curvature scalar"
                                                             : ", curvature full";
  return text;
}

/// Of the refit at the end, with the model that it is about.
std::int64_t refit_bytes(const RunConfig& candidate, const MemoryQuestion& question) {
  if (!question.left) return 0;
  return forecast_refit(candidate, question.model, *question.left, question.dtype,
                        question.data_ranks)
      .total();
}

}  // namespace

std::optional<ModelWidths> widths_at_refit(const RunConfig& config, const ModelConfig& model) {
  if (!config.refit.enabled || !config.prune.target) return std::nullopt;
  return expected_widths(model, prune_rules(model, config.prune), outline_run(config, model),
                         *config.prune.target);
}

MemoryChoice choose_for_memory(const RunConfig& config, const MemoryQuestion& question) {
  MemoryChoice choice;
  std::optional<MemoryChoice> for_passes;  // where the refit has no room in any
  std::optional<std::int64_t> least;
  // With room for what is no tensor.
  const auto fits = [&](std::int64_t bytes) {
    return question.available == 0 || memory_for_tensors(bytes) <= question.available;
  };
  for (RunConfig& candidate : candidates(config)) {
    MemoryForecast forecast =
        forecast_memory(candidate, question.use, question.model, question.widths, question.scored,
                        question.dtype, question.data_ranks);
    forecast.available = question.available;
    const std::int64_t pass = forecast.need.total(), refit = refit_bytes(candidate, question);
    choice.tried.push_back(fmt::format("{} ({} GiB{})", described(candidate), gib(pass),
                                       refit > pass ? ", its refit " + gib(refit) : ""));
    choice.fits = fits(pass);
    if (!choice.fits && least && *least <= pass) continue;
    least = pass;
    choice.config = std::move(candidate);
    choice.forecast = std::move(forecast);
    if (choice.fits && fits(refit)) return choice;
    if (choice.fits && !for_passes) for_passes = choice;
  }
  return for_passes ? std::move(*for_passes) : choice;
}

std::string choice_text(const MemoryChoice& choice) {
  if (choice.tried.size() < 2 || !choice.fits) return {};
  const std::vector<std::string> before(choice.tried.begin(), choice.tried.end() - 1);
  return fmt::format("{}: {} GiB a rank would not hold {}", choice.tried.back(),
                     gib(choice.forecast.available), fmt::join(before, ", nor "));
}

MemoryChoice choose_for_memory(const RunConfig& config, MemoryQuestion question,
                               const ComputeOptions& options, const CommRuntime& runtime,
                               const ProcessGrid& grid) {
  question.dtype = options.dtype;
  question.data_ranks = grid.data_size();
  question.available =
      grid.world().min(available_memory(options.device) / ranks_on_device(options.device, runtime));
  RunConfig here = config;  // where the device is known
  here.device = options.device.is_cpu() ? DeviceChoice::cpu : DeviceChoice::cuda;
  MemoryChoice choice;
  together(grid.world(), "look at the memory", [&] { choice = choose_for_memory(here, question); });
  choice.config.device = config.device;
  if (!grid.is_root()) return choice;
  if (const std::string text = choice_text(choice); !text.empty()) log::info("order    {}", text);
  const bool chose_curvature = config.importance.criterion == Criterion::obs &&
                               config.importance.curvature == Curvature::automatic;
  if (chose_curvature)
    log::info("obs      curvature {}",
              choice.config.importance.curvature == Curvature::full ? "full" : "scalar");
  return choice;
}

MemoryChoice forecast_run(const RunConfig& config, const ModelConfig& model,
                          std::int64_t data_ranks, std::int64_t available) {
  MemoryChoice choice =
      choose_for_memory(config, {ConfigUse::run, model, dense_widths(model),
                                 prunable_halves(model, prune_rules(model, config.prune)),
                                 to_scalar_type(config.dtype.value_or(model.dtype)), data_ranks,
                                 available, widths_at_refit(config, model)});
  expect_graphs(choice.forecast, model);
  return choice;
}

RefitNeed forecast_refit(const RunConfig& config, const ModelConfig& model,
                         const ModelWidths& expected, at::ScalarType dtype,
                         std::int64_t data_ranks) {
  const Extent extent = calibration_extent(refit_data(config), model.vocabulary);
  RefitShape shape;
  shape.source = dense_widths(model);
  shape.kept = expected;
  shape.tensor = static_cast<int>(config.tensor);
  shape.dtype = dtype;
  shape.moments = config.refit.shrink_to == ShrinkTo::obs;
  shape.matrices =
      chosen_matrices(config.refit.matrices, extent.micro_batches * extent.tokens, model.hidden);
  shape.stream_tokens = (extent.micro_batches + data_ranks - 1) / data_ranks * extent.tokens;
  shape.layer_by_layer = config.order == Order::layer_major;
  return refit_need(model, shape);
}

std::string refit_text(const RefitNeed& need) {
  const bool by_layer = need.pruned_layer > 0;
  return fmt::format(
      "{} GiB a rank: a dense layer {}, {}streams {}, sums and solving {}; beside {}, {}",
      gib(need.beside()), gib(need.dense_layer),
      by_layer ? fmt::format("a pruned one {}, ", gib(need.pruned_layer)) : "", gib(need.streams),
      gib(need.sums), by_layer ? "what lies outside the layers" : "what is left of the model",
      gib(need.held));
}

nlohmann::ordered_json to_json(const RefitNeed& need) {
  return {{"held_bytes", need.held},
          {"dense_layer_bytes", need.dense_layer},
          {"pruned_layer_bytes", need.pruned_layer},
          {"stream_bytes", need.streams},
          {"sums_bytes", need.sums},
          {"total_bytes", need.total()}};
}

std::vector<std::string> fitting_changes(const MemoryForecast& forecast, const ModelConfig& model) {
  std::vector<std::string> changes;
  const auto offer = [&](const PassShape& pass, const std::string& change) {
    if (!would_fit(forecast, model, pass)) return false;
    changes.push_back(with_need(model, pass, change));
    return true;
  };
  PassShape pass = forecast.pass;
  const std::int64_t most_rows = micro_batch_tokens(pass) / forecast.sequence;
  for (std::int64_t rows = most_rows; rows > 1;) {
    rows = (rows + 1) / 2;
    const std::int64_t tokens = rows * forecast.sequence;
    const bool generates = pass.cached_tokens > 0;
    pass.tokens = generates ? forecast.pass.tokens / most_rows * rows : tokens;
    pass.cached_tokens = generates ? tokens : 0;
    if (offer(pass, fmt::format("calibration.micro_batch_tokens: {}", tokens))) break;
  }
  pass = forecast.pass;
  for (std::int64_t tensor = 2LL * pass.tensor; tensor <= model.heads; tensor *= 2) {
    pass.tensor = static_cast<int>(tensor);
    const char* ranks = forecast.ranks % tensor == 0 ? "" : ", on a multiple of so many ranks";
    if (offer(pass, fmt::format("--tensor {}{}", tensor, ranks))) break;
  }
  pass = forecast.pass;
  if (!pass.layer_by_layer && pass.cached_tokens == 0) {
    pass.layer_by_layer = true;
    pass.boundary_tokens = forecast.boundary_tokens;
    if (!offer(pass, "execution.order: layer_major")) {
      pass.boundary_tokens = 0;
      offer(pass, "execution.order: layer_major with execution.boundaries: files");
    }
  } else if (pass.boundary_tokens > 0 && pass.cached_tokens == 0) {
    pass.boundary_tokens = 0;
    offer(pass, "execution.boundaries: files");
  }
  pass = forecast.pass;
  if (pass.dtype == at::kFloat || pass.dtype == at::kDouble) {
    pass.dtype = at::kBFloat16;
    offer(pass, "model.dtype: bfloat16");
  }
  pass = forecast.pass;
  if (pass.criterion == Criterion::taylor) {
    pass.criterion = Criterion::taylor_gate;
    offer(pass, "importance.criterion: taylor_gate");
  }
  return changes;
}

std::string memory_text(const MemoryForecast& forecast) {
  const MemoryNeed& need = forecast.need;
  const bool gradients = forecast.pass.criterion == Criterion::taylor;
  std::string text =
      fmt::format("{} GiB a rank: weights {}, {} {}, hidden states {}, working set {}",
                  gib(need.total()), gib(need.weights), gradients ? "sums of gradients" : "sums",
                  gib(need.statistics), gib(need.hidden_states), gib(need.working));
  if (need.cache > 0) text += fmt::format(", keys and values {}", gib(need.cache));
  if (need.boundaries > 0) text += fmt::format(", boundaries {}", gib(need.boundaries));
  return forecast.pass.layer_by_layer ? text + "; layer by layer" : text;
}

std::string expected_text(const MemoryForecast& forecast) {
  std::vector<std::string> with;
  if (forecast.need.kept_graphs > 0) with.emplace_back("graphs that are kept");
  if (forecast.pass.on_cpu) with.emplace_back("the program");
  if (with.empty()) return {};
  return fmt::format("; expected {} with {}", gib(forecast.expected()), fmt::join(with, " and "));
}

nlohmann::ordered_json to_json(const MemoryForecast& forecast, const ModelConfig& model) {
  const MemoryNeed& need = forecast.need;
  nlohmann::ordered_json json{
      {"tensor", forecast.pass.tensor},
      {"ranks", forecast.ranks},
      {"dtype", std::string(torch_name(to_dtype(forecast.pass.dtype)))},
      {"criterion", name_of(forecast.pass.criterion)},
      {"micro_batch_tokens", micro_batch_tokens(forecast.pass)},
      {"weight_bytes", need.weights},
      {"statistics_bytes", need.statistics},
      {"hidden_state_bytes", need.hidden_states},
      {"working_bytes", need.working},
      {"cache_bytes", need.cache},
      {"boundary_bytes", need.boundaries},
      {"order", name_of(forecast.pass.layer_by_layer ? Order::layer_major : Order::sample_major)},
      {"total_bytes", need.total()},
      {"kept_graph_bytes", need.kept_graphs},
      {"expected_bytes", forecast.expected()}};
  if (forecast.available > 0) {
    json["available_bytes"] = forecast.available;
    json["fits"] = forecast.fits();
    if (!forecast.fits()) json["fitting_changes"] = fitting_changes(forecast, model);
  }
  return json;
}

std::int64_t require_memory(MemoryForecast forecast, const ModelConfig& model,
                            const ComputeOptions& options, const CommRuntime& runtime,
                            const ProcessGrid& grid) {
  const std::int64_t sharing = ranks_on_device(options.device, runtime);
  Communicator& world = grid.world();
  forecast.ranks = world.size();
  const std::int64_t mine = available_memory(options.device) / sharing;
  forecast.available = world.min(mine);
  // The rank that has least tells it for all.
  expect_graphs(forecast, model);
  const std::int64_t rank = world.rank();
  const bool tells = world.min(mine == forecast.available ? rank : world.size()) == rank;
  if (grid.is_root())
    log::info("memory   at least {}{}; {} GiB free for each of {}", memory_text(forecast),
              expected_text(forecast), gib(forecast.available), counted(sharing, "rank"));
  together(world, "look at the memory", [&] {
    if (tells && !forecast.fits()) throw too_little(forecast, model, sharing);
  });
  return forecast.expected();
}

}  // namespace espalier
