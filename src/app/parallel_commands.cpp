#include <filesystem>
#include <functional>

#include <c10/util/Exception.h>
#include <fmt/format.h>

#include "commands.h"
#include "espalier/comm/process_grid.h"
#include "espalier/comm/runtime.h"
#include "espalier/core/batch.h"
#include "espalier/core/fault.h"
#include "espalier/core/json.h"
#include "espalier/core/log.h"
#include "espalier/core/stop.h"
#include "espalier/core/text.h"
#include "espalier/pipeline/bench.h"
#include "espalier/pipeline/exporting.h"
#include "espalier/pipeline/measure_model.h"
#include "espalier/pipeline/run.h"
#include "espalier/pipeline/run_directory.h"
#include "espalier/pipeline/source.h"
#include "output.h"
#include "print_error.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;

/// What a process says that is asked to stop for the third time.
std::string last_words() {
  constexpr const char* kText = "asked to stop three times: leaving at once; commits stand";
  return log::current().json ? log::json_line_without_time(log::Level::error, kText)
                             : fmt::format("espalier: {}\n", kText);
}

/// LibTorch prints its warnings on stderr, where they would be no JSON.
class LogWarnings : public c10::WarningHandler {
 public:
  void process(const c10::Warning& warning) override {
    log::warning("LibTorch: {}", warning.msg());
  }
};

/// Runs `work` on all ranks. What every rank throws together is printed by rank 0 and all ranks
/// return its code; what one rank throws alone is printed by that rank and ends the whole job,
/// since its peers may wait for it.
int run_on_ranks(const CommandOptions& options,
                 const std::function<void(CommRuntime&, Watchdog&)>& work) {
  // First: a request that comes while MPI starts must not kill.
  stop::install_handlers(last_words());
  std::unique_ptr<CommRuntime> runtime = std::make_unique<CommRuntime>();
  const int rank = runtime->world().rank();
  log::Options log = log::current();
  log.rank = rank;
  log::configure(log);
  // Until the very end: the last barrier may hang too.
  Watchdog watchdog(rank, runtime->world().size(), {options.hang_timeout, print_error});
  LogWarnings warnings;
  const c10::WarningUtils::WarningHandlerGuard guard(&warnings);
  int code = 0;
  const auto fail = [&](const Error& error, bool agreed) {
    if (rank == 0 || !agreed) print_error(error);
    code = static_cast<int>(error.code());
    if (!agreed && runtime->world().size() > 1) runtime->abort(code);
  };
  try {
    together(runtime->world(), "start", [&] { fault::initialise(rank, runtime->world().size()); });
    work(*runtime, watchdog);
  } catch (const stop::Stopped&) {
    if (rank == 0)
      log::info("stopped on request after the last commit; the same command continues (exit 75)");
    code = static_cast<int>(ExitCode::stopped);
  } catch (const AgreedError& error) {
    fail(error, true);
  } catch (const std::exception& error) {
    watchdog.give_way();
    fail(as_error(error, fmt::format("rank {}", rank)), false);
  }
  runtime->finish();
  return code;
}

RunConfig read_config(Communicator& world, const fs::path& file, const CommandOptions& options,
                      ConfigUse use) {
  RunConfig config;
  together(world, "read the configuration", [&] {
    std::vector<std::string> overrides = options.set;
    if (options.tensor) overrides.push_back(fmt::format("parallel.tensor={}", *options.tensor));
    config = read_run_config(file, overrides, use, [](const fs::path& model) {
      return problems_of([&] { static_cast<void>(open_source(model)); });
    });
  });
  if (world.rank() == 0)
    for (const std::string& note : config.notes) log::info("note: {}", note);
  return config;
}

RunRequest run_request(RunConfig config, const fs::path& run_dir, const CommandOptions& options,
                       ResumeMode resume, Watchdog& watchdog) {
  RunRequest request;
  request.config = std::move(config);
  request.run_dir = run_dir;
  request.directory.resume = resume;
  request.directory.allowed_changes = options.allow_change;
  request.directory.lock_wait_seconds = options.lock_wait;
  request.fast_verify = options.fast_verify;
  request.strict_paths = options.strict_paths;
  request.max_seconds =
      options.max_hours ? *options.max_hours * 3600 : batch::seconds_left().value_or(0);
  request.watchdog = &watchdog;
  return request;
}

ModelChoice model_choice(Communicator& world, const CommandOptions& options) {
  together(world, "read the command line", [&] {
    if (options.iteration && options.run_dir.empty())
      throw Error(ExitCode::usage, "--iteration without --run-dir", "it is an iteration of a run",
                  "Name the run with --run-dir DIR.");
    if (!options.plan.empty() && !options.run_dir.empty())
      throw Error(ExitCode::usage, "--plan and --run-dir exclude each other",
                  "each of them says what was removed", "Give one of them.");
  });
  return {options.model, options.plan, options.run_dir, options.iteration};
}

void print_accuracy(const std::string& name, const nlohmann::ordered_json& facts,
                    const std::string& metric) {
  if (!facts.contains(metric)) return;
  const nlohmann::ordered_json& error = facts.at(metric + "_stderr");
  output::print("{:<16} {:<10} {:.4f}{}  {}\n", name, metric, facts.at(metric).get<double>(),
                error.is_null() ? "" : fmt::format(" +- {:.4f}", error.get<double>()),
                counted(facts.at("items").get<std::int64_t>(), "item"));
}

void print_evaluations(const nlohmann::ordered_json& result) {
  for (const auto& [name, p] : result.at("perplexity").items())
    output::print("{:<16} perplexity {:.6g}  loss {:.8g} nats/token  {} in {} of {}\n", name,
                  p.at("perplexity").get<double>(), p.at("loss").get<double>(),
                  counted(p.at("tokens").get<std::int64_t>(), "token"),
                  counted(p.at("windows").get<std::int64_t>(), "window"),
                  p.at("window_tokens").get<std::int64_t>());
  if (result.contains("multiple_choice"))
    for (const auto& [name, facts] : result.at("multiple_choice").items())
      for (const char* metric : {"acc", "acc_norm"}) print_accuracy(name, facts, metric);
  if (result.contains("exact_match"))
    for (const auto& [name, facts] : result.at("exact_match").items())
      for (const char* metric : {"strict", "flexible"}) print_accuracy(name, facts, metric);
  output::flush();
}

}  // namespace

int command_run(const CommandOptions& options) {
  return run_on_ranks(options, [&](CommRuntime& runtime, Watchdog& watchdog) {
    RunConfig config = read_config(runtime.world(), options.path, options, ConfigUse::run);
    const ResumeMode resume = options.resume == "never"     ? ResumeMode::never
                              : options.resume == "require" ? ResumeMode::require
                                                            : ResumeMode::automatic;
    run_pruning(runtime,
                run_request(std::move(config), options.run_dir, options, resume, watchdog));
  });
}

int command_resume(const CommandOptions& options) {
  return run_on_ranks(options, [&](CommRuntime& runtime, Watchdog& watchdog) {
    const fs::path resolved = fs::path(options.path) / "config.resolved.yaml";
    together(runtime.world(), "resume", [&] {
      if (!is_run_directory(options.path))
        throw Error(ExitCode::missing_input, "this is not a run directory",
                    "it has no config.resolved.yaml",
                    "Start the run with 'espalier run CONFIG --run-dir DIR'.", options.path);
    });
    RunConfig config = read_config(runtime.world(), resolved, options, ConfigUse::run);
    run_pruning(runtime, run_request(std::move(config), options.path, options, ResumeMode::require,
                                     watchdog));
  });
}

int command_score(const CommandOptions& options) {
  return run_on_ranks(options, [&](CommRuntime& runtime, Watchdog&) {
    const ModelChoice choice = model_choice(runtime.world(), options);
    const RunConfig config = read_config(runtime.world(), options.path, options, ConfigUse::score);
    score_model(runtime, config, choice, options.out);
  });
}

namespace {

void print_curve(const nlohmann::ordered_json& curve) {
  for (const auto& point : curve.at("points")) {
    std::string text;
    for (const auto& result : point.at("results"))
      text += fmt::format("  {} {} {:.6g}", one_line(result.at("task").get<std::string>()),
                          result.at("metric").get<std::string>(), result.at("value").get<double>());
    output::print("sparsity {:.6g}  {} parameters{}\n", point.at("sparsity").get<double>(),
                  point.at("parameters").get<std::int64_t>(), text);
  }
  output::flush();
}

/// What --sparsity leaves no room for.
void check_curve_options(Communicator& world, const CommandOptions& options, bool of_run) {
  together(world, "read the command line", [&] {
    if (!of_run)
      throw Error(ExitCode::usage, "--sparsity without a run", "it names smaller plans of a run",
                  "Name the run directory in the place of CONFIG: espalier eval RUN --sparsity "
                  "0.1,0.2.",
                  options.path);
    if (!options.plan.empty() || !options.run_dir.empty() || options.iteration ||
        !options.logits.empty())
      throw Error(ExitCode::usage,
                  "--sparsity excludes --plan, --run-dir, --iteration and --logits",
                  "the plans are those of the run in the place of CONFIG", "Leave them out.");
  });
}

void evaluate_curve(CommRuntime& runtime, const CommandOptions& options, const fs::path& file) {
  const RunConfig config = read_config(runtime.world(), file, options, ConfigUse::eval);
  const nlohmann::ordered_json curve =
      evaluate_family(runtime, config,
                      {options.path, options.model, options.sparsities, measure_of(options.measure),
                       options.out, options.refit});
  together(runtime.world(), "print", [&] {
    if (runtime.world().rank() == 0) print_curve(curve);
  });
}

}  // namespace

int command_eval(const CommandOptions& given) {
  return run_on_ranks(given, [&](CommRuntime& runtime, Watchdog&) {
    CommandOptions options = given;
    const bool of_run = is_run_directory(options.path);
    const fs::path file =
        of_run ? fs::path(options.path) / "config.resolved.yaml" : fs::path(options.path);
    if (options.sparsities.empty() && !options.measure.empty())
      throw Error(ExitCode::usage, "--measure without --sparsity", "it says what --sparsity counts",
                  "Give --sparsity RATIO,..., or leave --measure out.");
    if (options.sparsities.empty() && options.refit)
      throw Error(ExitCode::usage, "--refit without --sparsity",
                  "it refits the sizes that --sparsity names",
                  "Give --sparsity RATIO,..., or leave --refit out.");
    if (!options.sparsities.empty()) {
      check_curve_options(runtime.world(), options, of_run);
      return evaluate_curve(runtime, options, file);
    }
    if (of_run && options.run_dir.empty() && options.plan.empty()) options.run_dir = options.path;
    const EvalRequest request{model_choice(runtime.world(), options), options.out, options.logits,
                              options.logit_rows, options.items};
    const RunConfig config = read_config(runtime.world(), file, options, ConfigUse::eval);
    const nlohmann::ordered_json result = evaluate_model(runtime, config, request);
    together(runtime.world(), "print", [&] {
      if (runtime.world().rank() == 0) print_evaluations(result);
    });
  });
}

namespace {

void print_export(const ExportOutcome& outcome) {
  const ExportReport& report = outcome.report;
  for (const std::string& note : report.notes) output::print("note: {}\n", one_line(note));
  output::print("{}: {}, {} of weights, model type {}\n", report.directory.string(),
                counted(report.tensors, "tensor"), counted(report.weight_bytes, "byte"),
                report.model_type);
  if (!report.replaced.empty())
    output::print("refitted {}\n", counted(report.replaced.size(), "matrix", "matrices"));
  output::print(
      "removed {:.4f} of structures, {:.4f} of decoder parameters, {:.4f} of all parameters ({} -> "
      "{})\n",
      outcome.reached.structures, outcome.reached.parameters, outcome.reached.total_parameters,
      report.dense_parameters.total, report.parameters.total);
}

/// What was said, else what the run does.
bool wants_refit(const CommandOptions& options) {
  if (options.refit && options.no_refit)
    throw Error(ExitCode::usage, "--refit and --no-refit exclude each other", {},
                "Give one of them.");
  const bool of_run = is_run_directory(options.path);
  if (options.refit && !of_run)
    throw Error(ExitCode::usage, "--refit without a run", "a plan file names no data to fit on",
                "Name the run directory in the place of the plan.", options.path);
  if (options.refit || options.no_refit || !of_run) return options.refit;
  return read_run_config(fs::path(options.path) / "config.resolved.yaml", options.set,
                         ConfigUse::print)
      .refit.enabled;
}

BenchChoice bench_choice(const CommandOptions& options) {
  return {options.path,
          options.set,
          options.tensor,
          options.shape,
          options.layers,
          options.sequences,
          options.sequence_tokens,
          options.tokens,
          options.micro_batch_tokens,
          options.dtype,
          options.criteria,
          options.orders,
          options.recompute,
          options.collectives,
          options.plan,
          options.repeats,
          options.widths,
          options.width_multiple};
}

}  // namespace

int command_export(const CommandOptions& options) {
  ExportRequest request;
  request.from = options.path;
  request.model = options.model;
  request.out = options.out;
  request.format = options.format == "uniform" ? ExportFormat::uniform : ExportFormat::exact;
  request.compensate = !options.no_compensation;
  request.sparsity = options.sparsity;
  request.measure = measure_of(options.measure);
  request.may_reuse = options.set.empty() && request.compensate;
  if (!wants_refit(options)) {
    const ExportOutcome outcome = export_run(request);
    if (!options.quiet) print_export(outcome);
    return 0;
  }
  return run_on_ranks(options, [&](CommRuntime& runtime, Watchdog&) {
    const RunConfig config =
        read_config(runtime.world(), fs::path(options.path) / "config.resolved.yaml", options,
                    ConfigUse::print);
    const ExportOutcome outcome = export_refitted(runtime, config, request);
    together(runtime.world(), "print", [&] {
      if (runtime.world().rank() == 0 && !options.quiet) print_export(outcome);
    });
  });
}

int command_bench(const CommandOptions& options) {
  return run_on_ranks(options, [&](CommRuntime& runtime, Watchdog&) {
    BenchRequest request;
    together(runtime.world(), "read the command line", [&] {
      request = bench_request(bench_choice(options));
      if (!options.out.empty()) require_new_output(options.out);
    });
    const nlohmann::ordered_json result = run_bench(runtime, request);
    together(runtime.world(), "print", [&] {
      if (runtime.world().rank() != 0) return;
      const std::string text = json_text(result, 2) + "\n";
      if (!options.out.empty()) write_new_output(options.out, text);
      output::put(options.json ? text : bench_text(result));
      output::flush();
    });
  });
}

}  // namespace espalier
