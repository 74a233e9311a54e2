#include "espalier/pipeline/measure_model.h"

#include <algorithm>
#include <array>
#include <functional>
#include <memory>
#include <numeric>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "espalier/calib/calibration.h"
#include "espalier/comm/process_grid.h"
#include "espalier/core/error.h"
#include "espalier/core/fault.h"
#include "espalier/core/json.h"
#include "espalier/core/log.h"
#include "espalier/core/paths.h"
#include "espalier/core/text.h"
#include "espalier/eval/evaluation.h"
#include "espalier/model/load.h"
#include "espalier/model/tensor_ops.h"
#include "espalier/pipeline/collectives.h"
#include "espalier/pipeline/commit.h"
#include "espalier/pipeline/family.h"
#include "espalier/pipeline/held_model.h"
#include "espalier/pipeline/memory_forecast.h"
#include "espalier/pipeline/monitor.h"
#include "espalier/pipeline/refitting.h"
#include "espalier/pipeline/run_report.h"
#include "espalier/pipeline/source.h"
#include "espalier/score/score.h"
#include "espalier/store/files.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;

/// A model that is loaded as some plan left it.
struct ChosenModel {
  Source source;
  AttentionUnit unit;
  std::string plan_digest;
  std::int64_t iteration = 0;
  ModelWidths widths;
  std::int64_t bytes_read = 0;  // by the rank that read most, while it loaded
  /// With what was left to the machine decided.
  RunConfig decided;
  std::unique_ptr<HeldModel> held;
};

/// Runs `work` on what an option names; its errors say which option, not the configuration's key.
template <class Work>
auto named_by(const char* option, const fs::path& value, const Work& work) {
  try {
    return work();
  } catch (const Error& error) {
    std::vector<Problem> problems = error.problems();
    for (Problem& problem : problems)
      problem.where = fmt::format("{} {}{}{}", option, value.string(),
                                  problem.where.empty() ? "" : ": ", problem.where);
    throw Error(std::move(problems));
  }
}

Source source_of(const RunConfig& config, const ModelChoice& choice) {
  if (choice.model.empty()) return open_source(config.model_path);
  return named_by("--model", choice.model, [&] {
    if (!directory_exists(choice.model))
      throw Error(ExitCode::missing_input,
                  path_exists(choice.model) ? "the model is not a directory"
                                            : "there is no such model directory",
                  "config.json and safetensors files are read from it",
                  "Name a Hugging Face model directory or an export with --model.");
    return open_source(choice.model);
  });
}

/// The plan of a run's commit, once the model is known to be the one that the run began with.
PruningPlan plan_of_run(const ModelChoice& choice, const Source& source) {
  const CommitStore commits(choice.run_dir / "ckpt");
  std::vector<std::string> rejected;
  std::optional<Commit> commit;
  if (choice.iteration)
    commit = commits.read(*choice.iteration);
  else
    commit = commits.newest_valid(rejected);
  if (!commit)
    throw Error(ExitCode::missing_input, "the run has no valid commit",
                rejected.empty() ? "there is none yet" : rejected.front(),
                "Let it finish an iteration first; 'espalier verify' says what is damaged.");
  const std::string how = require_same_model(source, *commit, Thoroughness::facts);
  log::info("model    as the run began: {}", how);
  return read_plan(Hdf5Reader::from_image(commit->state, "state.h5"), "", source.config);
}

PruningPlan chosen_plan(const ModelChoice& choice, const Source& source) {
  if (!choice.run_dir.empty())
    return named_by("--run-dir", choice.run_dir, [&] { return plan_of_run(choice, source); });
  return named_by("--plan", choice.plan,
                  [&] { return read_plan(Hdf5Reader::open(choice.plan), "", source.config); });
}

ChosenModel choose_model(const RunConfig& config, const ModelChoice& choice) {
  ChosenModel chosen{source_of(config, choice), config.prune.attention_unit, {}, 0, {}, 0, {}, {}};
  chosen.widths = chosen.source.widths;
  if (!choice.run_dir.empty() || !choice.plan.empty()) {
    const PruningPlan plan = chosen_plan(choice, chosen.source);
    require_continuation(chosen.source, plan,
                         choice.plan.empty() ? "the run's plan" : choice.plan.string());
    chosen.widths = widths_of(chosen.source.config, plan);
    chosen.unit = plan.attention_unit;
    chosen.plan_digest = plan.digest();
    chosen.iteration = plan.iteration;
  } else if (chosen.source.plan) {
    chosen.plan_digest = chosen.source.plan->digest();
  }
  return chosen;
}

/// Collective.
std::unique_ptr<HeldModel> hold(const RunConfig& config, const ProcessGrid& grid,
                                const Source& source, const ModelWidths& widths,
                                const ComputeOptions& options, Monitor& monitor) {
  monitor.enter("load");
  return std::make_unique<HeldModel>(config, grid, source, widths, options, temporary_directory(),
                                     monitor.hooks("parts"));
}

/// In one place for good: the layers of a stream are read from its source. Collective.
std::unique_ptr<ChosenModel> open_model(CommRuntime& runtime, const ProcessGrid& grid,
                                        const RunConfig& config, ConfigUse use, Monitor& monitor,
                                        const std::function<ChosenModel()>& choose) {
  std::unique_ptr<ChosenModel> chosen;
  ComputeOptions options;
  together(grid.world(), "open", [&] {
    chosen = std::make_unique<ChosenModel>(choose());
    options = compute_options(config, chosen->source, runtime);
    check_token_files(config, use, chosen->source, grid.world());
  });
  const std::string sums = connect_collectives(config, options, grid);
  if (grid.world().size() > 1 && grid.is_root()) log::info("sums     of tensors over {}", sums);
  const ModelConfig& model = chosen->source.config;
  MemoryChoice choice = choose_for_memory(config, {use, model, chosen->widths, all_halves(model)},
                                          options, runtime, grid);
  chosen->decided = std::move(choice.config);
  for (const std::string& note : chosen->source.notes) log::info("note: {}", note);
  for (const std::string& warning : chosen->source.warnings) log::warning("model: {}", warning);
  require_memory(std::move(choice.forecast), chosen->source.config, options, runtime, grid);
  const std::int64_t read_before = kernel_bytes_read();
  chosen->held = hold(chosen->decided, grid, chosen->source, chosen->widths, options, monitor);
  chosen->bytes_read = static_cast<std::int64_t>(
      grid.world().max(static_cast<double>(kernel_bytes_read() - read_before)));
  return chosen;
}

void write_image(const fs::path& path, const std::vector<std::byte>& bytes) {
  write_new_output(path,
                   std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

/// Logits of the first rows of one evaluation file: [rows, tokens, vocabulary] in float64.
void add_logits(Hdf5Writer& file, const CausalLM& model, const NamedTokens& data, std::int64_t rows,
                const ProcessGrid& grid) {
  const TokenFile tokens =
      TokenFile::open(data.tokens, model.config().vocabulary, Counting::every_token);
  std::vector<std::int64_t> numbers(static_cast<std::size_t>(std::min(rows, tokens.rows())));
  std::iota(numbers.begin(), numbers.end(), std::int64_t{0});
  std::vector<std::int64_t> predictions;
  const TokenBatch batch =
      make_batch(tokens.read(numbers), std::vector<double>(numbers.size(), 1.0),
                 model.options().device, predictions);
  const at::Tensor x_BTD = forward_hidden(model, batch.tokens_BT, grid.tensor());
  const at::Tensor positions = at::arange(batch.tokens_BT.numel(), batch.tokens_BT.options());
  const at::Tensor logits_NV = logits_at(model, x_BTD, positions, grid.tensor());
  const std::vector<double> values = to_doubles(logits_NV);
  file.write("/" + data.name, std::span<const double>(values),
             {batch.tokens_BT.size(0), batch.tokens_BT.size(1), model.config().vocabulary});
}

std::string item_lines(const std::vector<TaskOutcome>& outcomes) {
  std::string lines;
  for (const TaskOutcome& outcome : outcomes)
    for (const nlohmann::ordered_json& item : outcome.items) lines += json_text(item) + "\n";
  return lines;
}

void require_evaluations(const RunConfig& config) {
  if (make_evaluations(config.evaluation).empty())
    throw Error(ExitCode::config, "the lists of evaluation are empty",
                "there is nothing to evaluate",
                "List token files under evaluation.perplexity, evaluation.multiple_choice or "
                "evaluation.exact_match.",
                config.source.string());
}

/// One size of a family, before the model is loaded.
struct Size {
  double sparsity = 0;
  nlohmann::ordered_json facts;
  PruningPlan plan;
  ModelWidths widths;
};

std::vector<Size> sizes_from(const PlanFamily& family, std::vector<double> sparsities) {
  std::sort(sparsities.begin(), sparsities.end());
  sparsities.erase(std::unique(sparsities.begin(), sparsities.end()), sparsities.end());
  std::vector<Size> sizes;
  for (const double sparsity : sparsities) {
    Size size{sparsity, {{"sparsity", sparsity}}, family.part(sparsity), {}};
    size.facts.update(size_of(family.source.config, family.rules, size.plan));
    size.widths = widths_of(family.source.config, size.plan);
    sizes.push_back(std::move(size));
  }
  return sizes;
}

std::string cell(const std::string& text) {
  if (text.find_first_of(",\"\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + "\"";
}

constexpr std::array kSizeColumns{"sparsity", "sparsity_structures", "sparsity_parameters",
                                  "sparsity_total_parameters", "parameters"};

/// A line for each point: its size, then each metric with its standard error.
std::string csv_of(const nlohmann::ordered_json& points) {
  std::string text;
  for (const char* column : kSizeColumns)
    text += fmt::format("{}{}", text.empty() ? "" : ",", column);
  for (const auto& result : points.front().at("results")) {
    const std::string name = fmt::format("{}.{}", result.at("task").get<std::string>(),
                                         result.at("metric").get<std::string>());
    text += fmt::format(",{},{}", cell(name), cell(name + "_stderr"));
  }
  text += "\n";
  const auto number = [](const nlohmann::ordered_json& value) {
    return value.is_null() ? std::string() : json_text(value);
  };
  for (const auto& point : points) {
    std::string line;
    for (const char* column : kSizeColumns)
      line += (line.empty() ? "" : ",") + number(point.at(column));
    for (const auto& result : point.at("results"))
      line += "," + number(result.at("value")) + "," + number(result.at("stderr"));
    text += line + "\n";
  }
  return text;
}

fs::path csv_beside(const fs::path& json) { return fs::path(json).replace_extension(".csv"); }

/// The same sums as in a model that is loaded at this size: the cut between ranks is the same too.
void slice_to(HeldModel& held, const Source& source, const ModelWidths& widths,
              const ProcessGrid& grid) {
  together(grid.world(), "slice", [&] {
    fault::hit("slice.enter");
    held.let_go();
    held.model().apply(widths);
    recut(held.model(), source.weights());
  });
}

}  // namespace

void require_new_output(const fs::path& path) {
  if (name_exists(path))
    throw Error(ExitCode::cannot_create, "the output exists already", "nothing is overwritten",
                "Name another file, or remove it.", path.string());
  fs::path above = absolute_path(path).parent_path();
  while (!path_exists(above) && above.has_relative_path()) above = above.parent_path();
  if (!directory_exists(above))
    throw Error(ExitCode::cannot_create, "the output cannot be made below a file", {},
                "Name another file.", above.string());
  require_writable(above);
}

void write_new_output(const fs::path& path, std::string_view bytes) {
  require_new_output(path);
  if (path.has_parent_path()) make_directories(path.parent_path());
  replace_file(path, bytes);
}

void score_model(CommRuntime& runtime, const RunConfig& config, const ModelChoice& choice,
                 const fs::path& out) {
  const ProcessGrid grid(runtime.world(), static_cast<int>(config.tensor));
  together(grid.world(), "open", [&] { require_new_output(out); });
  Monitor monitor(0);
  const std::unique_ptr<ChosenModel> opened =
      open_model(runtime, grid, config, ConfigUse::score, monitor,
                 [&] { return choose_model(config, choice); });
  ChosenModel& chosen = *opened;
  monitor.enter("calibrate");
  std::optional<Calibration> data;
  together(grid.world(), "calibrate", [&] {
    data = Calibration::draw(config.calibration, chosen.iteration + 1,
                             chosen.source.config.vocabulary);
  });
  ScoreRequest request;
  request.importance = chosen.decided.importance;
  request.layer_by_layer = chosen.held->layer_by_layer();
  request.combine = config.calibration.combine;
  request.unit = chosen.unit;
  request.scored = all_halves(chosen.source.config);
  request.seed = config.calibration.seed;
  request.iteration = chosen.iteration + 1;
  request.max_skipped = max_skipped(config.calibration);
  request.spare_bytes = spare_memory(config, chosen.held->model().options(), runtime);
  request.share_prompts = config.share_prompts;
  const ScorePass pass =
      score(chosen.held->model(), std::move(*data), request, grid, monitor.hooks());
  monitor.leave();
  together(grid.world(), "save", [&] {
    if (!grid.is_root()) return;
    Hdf5Writer file;
    write_scores(file, "", pass.table);
    write_image(out, file.finish());
  });
  const auto seconds = pass.seconds.at("calibrate");
  log::info("scored {} and {} on {} in {:.2f} s ({:.0f} tokens/s): {}",
            counted(pass.table.attention.score.size(), "attention unit"),
            counted(pass.table.mlp.score.size(), "channel"), counted(pass.table.tokens, "token"),
            seconds, static_cast<double>(pass.table.tokens) / seconds, out.string());
}

nlohmann::ordered_json evaluate_model(CommRuntime& runtime, const RunConfig& config,
                                      const EvalRequest& request) {
  const ProcessGrid grid(runtime.world(), static_cast<int>(config.tensor));
  together(grid.world(), "open", [&] {
    require_evaluations(config);
    if (!request.out.empty()) require_new_output(request.out);
    if (!request.logits.empty()) require_new_output(request.logits);
    if (!request.items.empty()) require_new_output(request.items);
  });
  Monitor monitor(0);
  const std::unique_ptr<ChosenModel> opened =
      open_model(runtime, grid, config, ConfigUse::eval, monitor,
                 [&] { return choose_model(config, request.choice); });
  ChosenModel& chosen = *opened;
  nlohmann::ordered_json result{
      {"schema", 1},
      {"model", utf8_text(chosen.source.reader.directory().string())},
      {"iteration", chosen.iteration},
      {"plan_digest", chosen.plan_digest},
      {"dtype", std::string(torch_name(to_dtype(chosen.held->model().options().dtype)))},
      {"layout", {{"tensor", grid.tensor_size()}, {"data", grid.data_size()}}},
      {"load",
       {{"largest_bytes_read", chosen.bytes_read},
        {"weight_bytes", chosen.held->model().weight_bytes()}}}};
  monitor.enter("evaluate");
  const std::vector<TaskOutcome> outcomes =
      evaluate_all(config.evaluation, chosen.held->model(), grid,
                   {config.calibration.micro_batch_tokens, !request.items.empty(), monitor.hooks(),
                    chosen.held->layer_by_layer()});
  if (!request.logits.empty()) chosen.held->make_whole(grid);
  result.update(facts_of(outcomes));
  result["results"] = results_of(outcomes);
  Hdf5Writer logits;
  if (!request.logits.empty())
    for (const NamedTokens& data : config.evaluation.perplexity)
      add_logits(logits, chosen.held->model(), data, request.logit_rows, grid);
  monitor.leave();
  together(grid.world(), "save", [&] {
    if (!grid.is_root()) return;
    if (!request.out.empty()) write_new_output(request.out, json_text(result, 2) + "\n");
    if (!request.logits.empty()) write_image(request.logits, logits.finish());
    if (!request.items.empty()) write_new_output(request.items, item_lines(outcomes));
  });
  return result;
}

nlohmann::ordered_json evaluate_family(CommRuntime& runtime, const RunConfig& config,
                                       const CurveRequest& request) {
  const ProcessGrid grid(runtime.world(), static_cast<int>(config.tensor));
  together(grid.world(), "open", [&] {
    require_evaluations(config);
    if (request.out.empty()) return;
    if (request.out.extension() != ".json")
      throw Error(ExitCode::usage, "--out does not end in .json",
                  "with --sparsity it names a JSON file, and a CSV file of the same name lies "
                  "beside it",
                  "Give --out FILE.json.", request.out.string());
    require_new_output(request.out);
    require_new_output(csv_beside(request.out));
  });
  Monitor monitor(0);
  std::vector<Size> sizes;
  std::optional<FeatureMeans> means;
  std::int64_t base = 0, last = 0;  // iterations
  Measure measure{};
  const std::unique_ptr<ChosenModel> opened =
      open_model(runtime, grid, config, ConfigUse::eval, monitor, [&] {
        PlanFamily family = family_of_run(request.run, request.model);
        require_continuation(family.source, family.plan, "the plan of " + request.run.string());
        if (request.measure) family.rules.measure = *request.measure;
        measure = family.rules.measure;
        sizes = sizes_from(family, request.sparsities);
        means = family.means;
        base = family.base().iteration;
        last = family.plan.iteration;
        return ChosenModel{std::move(family.source),
                           family.plan.attention_unit,
                           {},
                           family.plan.iteration,
                           sizes.front().widths,
                           0,
                           {},
                           {}};
      });
  ChosenModel& chosen = *opened;
  nlohmann::ordered_json result{
      {"schema", 1},
      {"run", utf8_text(absolute_path(request.run).string())},
      {"model", utf8_text(chosen.source.reader.directory().string())},
      {"measure", measure_key(measure)},
      {"dtype", std::string(torch_name(to_dtype(chosen.held->model().options().dtype)))},
      {"layout", {{"tensor", grid.tensor_size()}, {"data", grid.data_size()}}},
      {"refit", request.refit},
      {"complete", false},
      {"points", nlohmann::ordered_json::array()}};
  for (const Size& size : sizes) {
    std::optional<nlohmann::ordered_json> refitted;
    if (request.refit) {
      const ComputeOptions options = chosen.held->model().options();
      chosen.held.reset();
      chosen.held = hold(chosen.decided, grid, chosen.source, size.widths, options, monitor);
      chosen.held->make_whole(grid);
      monitor.enter("refit");
      std::optional<Refitting> refitting;
      together(grid.world(), "refit", [&] {
        refitting.emplace(RefitSubject{config, chosen.source, size.plan, means, base + 1, last, {}},
                          options.dtype);
      });
      refitted =
          refitting->apply(chosen.held->model(), nullptr, true, grid, runtime, monitor.hooks());
    } else {
      monitor.enter("slice");
      slice_to(*chosen.held, chosen.source, size.widths, grid);
    }
    monitor.enter("evaluate");
    const std::vector<TaskOutcome> outcomes =
        evaluate_all(config.evaluation, chosen.held->model(), grid,
                     {config.calibration.micro_batch_tokens, false, monitor.hooks(),
                      chosen.held->layer_by_layer()});
    nlohmann::ordered_json point = size.facts;
    point["plan_digest"] = size.plan.digest();
    if (refitted)
      point["refit"] = {{"key", refitted->at("key")},
                        {"tokens", refitted->at("tokens")},
                        {"matrices", refitted->at("matrices")}};
    point.update(facts_of(outcomes));
    point["results"] = results_of(outcomes);
    result["points"].push_back(std::move(point));
    result["complete"] = result["points"].size() == sizes.size();
    if (grid.is_root())
      log::info("evaluated sparsity {:.6g}: {} of {}", size.sparsity, result["points"].size(),
                counted(sizes.size(), "size"));
    // After every size: what was measured stays when the job ends early.
    together(grid.world(), "save", [&] {
      if (!grid.is_root() || request.out.empty()) return;
      if (request.out.has_parent_path()) make_directories(request.out.parent_path());
      replace_file(request.out, json_text(result, 2) + "\n");
      replace_file(csv_beside(request.out), csv_of(result["points"]));
    });
  }
  monitor.leave();
  return result;
}

}  // namespace espalier
