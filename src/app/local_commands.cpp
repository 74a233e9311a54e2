#include <algorithm>
#include <chrono>
#include <filesystem>
#include <thread>

#include <fmt/format.h>

#include "commands.h"
#include "espalier/config/run_config.h"
#include "espalier/core/error.h"
#include "espalier/core/fault.h"
#include "espalier/core/json.h"
#include "espalier/core/log.h"
#include "espalier/core/text.h"
#include "espalier/export/export_model.h"
#include "espalier/pipeline/exporting.h"
#include "espalier/pipeline/family.h"
#include "espalier/pipeline/memory_forecast.h"
#include "espalier/pipeline/run_directory.h"
#include "espalier/pipeline/run_outline.h"
#include "espalier/pipeline/source.h"
#include "espalier/pipeline/time_forecast.h"
#include "espalier/pipeline/verify.h"
#include "output.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;

/// The model and the plan behind a run directory, a commit or a model directory.
struct Inspected {
  ModelConfig config;
  ModelWidths widths;
  std::optional<PruningPlan> plan;
  fs::path model;
  std::vector<std::string> notes;
  /// Rows of sizes_of(), of a run.
  nlohmann::ordered_json sizes = nlohmann::ordered_json::array();
};

Inspected inspect_plan(const fs::path& file, const fs::path& model) {
  if (model.empty())
    throw Error(ExitCode::usage, "a plan file without --model", "a plan names units, not weights",
                "Name the model that it belongs to with --model DIR.", file.string());
  ModelConfig config = read_model_config(model);
  PruningPlan plan = read_plan(Hdf5Reader::open(file), "", config);
  ModelWidths widths = widths_of(config, plan);
  return {std::move(config), std::move(widths), std::move(plan), model, {}};
}

/// What a run on this model began with. Needs no weights.
PruningPlan base_of(const ModelConfig& model, const fs::path& directory, AttentionUnit unit) {
  if (!model.exported) return dense_plan(model, unit);
  ExportedWidths exported = read_exported_widths(directory, model);
  return exported.plan ? std::move(*exported.plan) : plan_of_widths(model, exported.widths, unit);
}

Inspected inspect(const fs::path& path, const fs::path& of_plan) {
  if (file_exists(path)) return inspect_plan(path, of_plan);
  fs::path commit_dir, run;
  if (is_commit(path)) {
    commit_dir = path;
    run = run_of_commit(path);
  } else if (is_run_directory(path)) {
    run = path;
  }
  if (run.empty()) {
    Source source = open_source(path);
    return {source.config, source.widths, source.plan, path, source.notes};
  }
  const RunConfig config = read_run_config(run / "config.resolved.yaml", {}, ConfigUse::print);
  const ModelConfig model = read_model_config(model_of_run(config));
  std::vector<std::string> rejected;
  const std::optional<Commit> commit = commit_dir.empty()
                                           ? CommitStore(run / "ckpt").newest_valid(rejected)
                                           : read_commit(commit_dir);
  if (!commit)
    throw Error(ExitCode::missing_input, "the run has no valid commit",
                rejected.empty() ? "there is none yet" : rejected.front(),
                "Let it finish an iteration first.", run.string());
  if (commit->kind == CommitKind::pass)
    throw Error(ExitCode::missing_input, "a paused pass has no plan to look at",
                "it holds the sums of an iteration under way",
                "Inspect the run directory, or one of its ckpt/iter-* directories.",
                commit_dir.string());
  PruningPlan plan = read_plan(Hdf5Reader::from_image(commit->state, "state.h5"), "", model);
  nlohmann::ordered_json sizes = nlohmann::ordered_json::array();
  if (commit_dir.empty())
    sizes = sizes_of(model, prune_rules(model, config.prune), plan,
                     base_of(model, model_of_run(config), plan.attention_unit));
  ModelWidths widths = widths_of(model, plan);
  return {model, std::move(widths), std::move(plan), config.model_path, {}, std::move(sizes)};
}

nlohmann::ordered_json inspection(const Inspected& seen) {
  const ParameterCount dense = count_parameters(seen.config, dense_widths(seen.config));
  const ParameterCount kept = count_parameters(seen.config, seen.widths);
  nlohmann::ordered_json layers = nlohmann::ordered_json::array();
  for (const LayerWidths& layer : seen.widths.layers)
    layers.push_back({{"query_heads", layer.query_heads.size()},
                      {"groups", layer.groups(seen.config)},
                      {"channels", layer.channels.size()}});
  return {{"model", utf8_text(seen.model.string())},
          {"family", name_of(seen.config.family)},
          {"hidden", seen.config.hidden},
          {"head_dim", seen.config.head_dim},
          {"dense",
           {{"heads", seen.config.heads},
            {"kv_heads", seen.config.kv_heads},
            {"channels", seen.config.channels},
            {"parameters", dense.total},
            {"decoder_parameters", dense.decoder}}},
          {"parameters", kept.total},
          {"decoder_parameters", kept.decoder},
          {"iteration", seen.plan ? seen.plan->iteration : 0},
          {"plan_digest", seen.plan ? seen.plan->digest() : ""},
          {"layers", layers},
          {"serving", serving_facts(seen.config, seen.widths)},
          {"sizes", seen.sizes},
          {"notes", seen.notes}};
}

std::string spread_text(const nlohmann::ordered_json& spread) {
  if (spread[0] == spread[1]) return json_text(spread[0]);
  return json_text(spread[0]) + "-" + json_text(spread[1]);
}

void print_serving_row(const std::string& sparsity, const nlohmann::ordered_json& row) {
  std::string degrees;
  for (const auto& degree : row["tensor_parallel"])
    degrees += (degrees.empty() ? "" : ",") + json_text(degree);
  output::print("{:>10}  {:>9}  {:>7}  {:>13}  {:>8}  {:<7}  {:<6}  {}\n", sparsity,
                spread_text(row["heads"]), spread_text(row["kv_heads"]),
                spread_text(row["channels"]), json_text(row["channel_multiple"]),
                row["uniform"].get<bool>() ? "yes" : "no",
                row["whole_groups"].get<bool>() ? "yes" : "no", degrees.empty() ? "-" : degrees);
}

/// The sizes of a run that are worth taking, or what a server wants to know of one size.
void print_serving(const nlohmann::ordered_json& facts) {
  output::put(
      "  sparsity      heads       KV       channels  multiple  uniform  groups  "
      "tensor-parallel\n");
  for (const auto& row : facts["sizes"])
    print_serving_row(fmt::format("{:.6f}", row["sparsity"].get<double>()), row);
  if (facts["sizes"].empty()) print_serving_row("-", facts["serving"]);
}

void print_key(const KeyInfo& key) {
  output::print("{}\n  {}\n  type {}, default {}\n", key.key, key.meaning, key.type,
                key.default_value);
  if (!key.values.empty()) {
    output::put("  values:");
    for (const std::string& value : key.values) output::put(" " + value);
    output::put("\n");
  }
  output::print("  {} when a run is resumed\n",
                key.free_at_resume ? "may change" : "must stay the same");
}

void explain(const std::string& name) {
  std::vector<std::string> names;
  for (const KeyInfo& key : config_keys()) {
    names.push_back(key.key);
    if (key.key == name) return print_key(key);
  }
  const std::string near = nearest_name(name, names);
  throw Error(ExitCode::usage, fmt::format("there is no key '{}'", one_line(name)), {},
              near.empty() ? "'espalier config --reference' lists all keys."
                           : fmt::format("Did you mean '{}'?", near));
}

/// The configuration for standard output; where its values come from beside it.
void print_resolved(const CommandOptions& options) {
  const RunConfig config = read_run_config(options.path, options.set, ConfigUse::print);
  output::put(to_yaml(config));
  log::Block block{"where the values of the configuration come from", {}, {}};
  for (const auto& [key, origin] : config.origin) {
    if (origin == "default") continue;
    block.text += fmt::format("{:<40} {}\n", key, origin);
    block.facts["origins"][key] = origin;
  }
  log::write(log::Level::info, block);
}

nlohmann::ordered_json schema_json() {
  nlohmann::ordered_json keys = nlohmann::ordered_json::array();
  for (const KeyInfo& key : config_keys())
    keys.push_back({{"key", key.key},
                    {"type", key.type},
                    {"default", key.default_value},
                    {"values", key.values},
                    {"meaning", key.meaning},
                    {"free_at_resume", key.free_at_resume}});
  return keys;
}

}  // namespace

std::optional<Measure> measure_of(const std::string& name) {
  if (name.empty()) return std::nullopt;
  if (name == "structures") return Measure::structures;
  if (name == "parameters") return Measure::parameters;
  return Measure::total_parameters;
}

namespace {

/// Whether all token files are there.
bool knows_rows(const CalibrationConfig& data, const ModelConfig& model) {
  const std::vector<DomainOutline> domains = outline_domains(data, model);
  return std::all_of(domains.begin(), domains.end(),
                     [](const DomainOutline& domain) { return domain.known; });
}

}  // namespace

int command_plan(const CommandOptions& options) {
  std::vector<std::string> overrides = options.set;
  if (options.tensor) overrides.push_back(fmt::format("parallel.tensor={}", *options.tensor));
  const RunConfig config = read_run_config(options.path, overrides, ConfigUse::print);
  const ModelConfig model = read_model_config(config.model_path);
  const std::int64_t ranks = options.ranks.value_or(config.tensor);
  if (ranks % config.tensor != 0)
    throw Error(ExitCode::unsuitable,
                fmt::format("{} with --tensor {}", counted(ranks, "rank"), config.tensor),
                "the ranks form groups of that many", "Give a multiple of it with --ranks.");
  MemoryChoice choice =
      forecast_run(config, model, ranks / config.tensor,
                   static_cast<std::int64_t>(options.memory.value_or(0) * (1 << 30)));
  MemoryForecast& forecast = choice.forecast;
  forecast.ranks = ranks;
  const RunOutline outline = outline_run(config, model);
  std::optional<TimeForecast> time;
  if (!options.bench.empty())
    time = forecast_time(choice.config, model, outline, forecast.ranks, options.bench);
  nlohmann::ordered_json facts = to_json(forecast, model);
  std::optional<RefitNeed> refit;
  if (const std::optional<ModelWidths> left = widths_at_refit(config, model)) {
    refit = forecast_refit(choice.config, model, *left, forecast.pass.dtype, ranks / config.tensor);
    facts["refit"] = to_json(*refit);
  }
  if (options.json) {
    if (time) facts["time"] = to_json(*time);
    facts["run"] = to_json(outline, config, model);
    output::put(json_text(facts, 2) + "\n");
  } else {
    output::put(outline_text(outline, config, model));
    output::print("layout   {} = tensor {} x data {}, {}, {}\n", counted(forecast.ranks, "rank"),
                  config.tensor, forecast.ranks / config.tensor, facts["dtype"].get<std::string>(),
                  name_of(config.importance.criterion));
    output::print("memory   at least {}{}; micro-batches of {}\n", memory_text(forecast),
                  expected_text(forecast),
                  counted(facts["micro_batch_tokens"].get<std::int64_t>(), "token"));
    if (const std::string text = choice_text(choice); !text.empty())
      output::print("order    {}\n", text);
    if (refit)
      output::print(
          "refit    about {}{}{}\n", refit_text(*refit),
          knows_rows(refit_data(config), model)
              ? ""
              : "; for rows as long as a micro-batch, since token files are not there",
          forecast.available > 0 && refit->total() > forecast.available ? ": it may not fit" : "");
    if (forecast.available > 0)
      output::print("         {}\n",
                    forecast.fits() ? "fits" : "does not fit; each of these would:");
    for (const auto& change : facts.value("fitting_changes", nlohmann::ordered_json::array()))
      output::print("         {}\n", change.get<std::string>());
    if (time) output::put(time_text(*time));
  }
  return forecast.fits() ? 0 : static_cast<int>(ExitCode::unsuitable);
}

int command_inspect(const CommandOptions& options) {
  const nlohmann::ordered_json facts = inspection(inspect(options.path, options.model));
  if (options.json) {
    output::put(json_text(facts, 2) + "\n");
    return 0;
  }
  output::print("{} ({}), iteration {}, {} of {} parameters\n",
                one_line(facts["model"].get<std::string>()), facts["family"].get<std::string>(),
                json_text(facts["iteration"]), json_text(facts["parameters"]),
                json_text(facts["dense"]["parameters"]));
  output::print("layer  heads/{}  groups (query heads per KV head)  channels/{}\n",
                json_text(facts["dense"]["heads"]), json_text(facts["dense"]["channels"]));
  std::size_t l = 0;
  for (const auto& layer : facts["layers"])
    output::print("{:>5}  {:>7}  {:<33}  {:>8}\n", l++, json_text(layer["query_heads"]),
                  json_text(layer["groups"]), json_text(layer["channels"]));
  print_serving(facts);
  for (const auto& note : facts["notes"])
    output::print("note: {}\n", one_line(note.get<std::string>()));
  return 0;
}

int command_config(const CommandOptions& options) {
  if (options.schema)
    output::put(json_text(schema_json(), 2) + "\n");
  else if (options.reference)
    output::put(reference_yaml());
  else if (!options.explain.empty())
    explain(options.explain);
  else if (!options.path.empty())
    print_resolved(options);
  else
    throw Error(ExitCode::usage, "config needs something to do", "no CONFIG and no option",
                "Give CONFIG (prints it resolved), --schema, --reference or --explain KEY.");
  return 0;
}

int command_verify(const CommandOptions& options) {
  const Verification result =
      verify_path(options.path, options.deep ? Thoroughness::content : Thoroughness::facts);
  if (options.quiet) return 0;
  for (const std::string& line : result.checked) output::print("ok    {}\n", one_line(line));
  for (const std::string& line : result.warnings) output::print("note  {}\n", one_line(line));
  output::print("{} {} is valid\n", result.kind, options.path);
  return 0;
}

int command_status(const CommandOptions& options) {
  for (;;) {
    const StatusReport report = report_status(options.path);
    output::put((options.json ? json_text(report.status, 2) : report.line) + "\n");
    const bool is_read = output::flush();
    if (!options.follow || report.ended || !is_read)
      return options.exit_code ? report.exit_code : 0;
    std::this_thread::sleep_for(std::chrono::seconds(5));
  }
}

int command_stop(const CommandOptions& options) {
  request_stop(options.path);
  if (!options.quiet)
    output::print("asked {} to commit and stop; it ends with exit code 75\n", options.path);
  return 0;
}

int command_doctor(const CommandOptions& options) {
  if (!options.list_faults)
    throw Error(ExitCode::usage, "doctor needs something to do", "no option says what",
                "Give --list-faults.");
  const std::string any = "any point takes: kill9, stop, sigusr1, throw, alloc-fail, slow:MS";
  log::write(log::Level::info, log::Block{any, any + "\n", {}});
  for (const fault::Point& point : fault::points()) {
    const std::string special = point.special_actions();
    output::print("{:<20} {}{}{}\n", point.name, point.meaning, special.empty() ? "" : "; also ",
                  special);
  }
  return 0;
}

}  // namespace espalier
