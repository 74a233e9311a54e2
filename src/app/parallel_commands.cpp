#include <cstdio>
#include <filesystem>
#include <functional>

#include <fmt/format.h>

#include "commands.h"
#include "espalier/comm/process_grid.h"
#include "espalier/comm/runtime.h"
#include "espalier/core/fault.h"
#include "espalier/core/log.h"
#include "espalier/core/stop.h"
#include "espalier/pipeline/measure_model.h"
#include "espalier/pipeline/run.h"
#include "print_error.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;

void configure_log(const CommandOptions& options, int rank) {
  log::Options log;
  log.rank = rank;
  log.json = options.log_format == "json";
  log.level = options.quiet                    ? log::Level::warning
              : options.log_level == "debug"   ? log::Level::debug
              : options.log_level == "warning" ? log::Level::warning
              : options.log_level == "error"   ? log::Level::error
                                               : log::Level::info;
  log::configure(log);
}

/// Runs `work` on all ranks. What every rank throws together is printed by rank 0 and all ranks
/// return its code; what one rank throws alone is printed by that rank and ends the whole job,
/// since its peers may wait for it.
int run_on_ranks(const CommandOptions& options, const std::function<void(CommRuntime&)>& work) {
  stop::install_handlers();  // first: a request that comes while MPI starts must not kill
  std::unique_ptr<CommRuntime> runtime = std::make_unique<CommRuntime>();
  const int rank = runtime->world().rank();
  configure_log(options, rank);
  int code = 0;
  const auto fail = [&](const Error& error, bool agreed) {
    if (rank == 0 || !agreed) {
      std::fputs(error_text(error).c_str(), stderr);
      std::fflush(stderr);
    }
    code = static_cast<int>(error.code());
    if (!agreed && runtime->world().size() > 1) runtime->abort(code);
  };
  try {
    together(runtime->world(), "start", [&] { fault::initialise(rank, runtime->world().size()); });
    work(*runtime);
  } catch (const stop::Stopped&) {
    if (rank == 0)
      log::info("stopped on request after the last commit; the same command continues (exit 75)");
    code = static_cast<int>(ExitCode::stopped);
  } catch (const AgreedError& error) {
    fail(error, true);
  } catch (const std::exception& error) {
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
    config = read_run_config(file, overrides, use);
  });
  if (world.rank() == 0)
    for (const std::string& note : config.notes) log::info("note: {}", note);
  return config;
}

RunRequest run_request(RunConfig config, const fs::path& run_dir, const CommandOptions& options,
                       ResumeMode resume) {
  RunRequest request;
  request.config = std::move(config);
  request.run_dir = run_dir;
  request.directory.resume = resume;
  request.directory.allowed_changes = options.allow_change;
  request.directory.lock_wait_seconds = options.lock_wait;
  request.fast_verify = options.fast_verify;
  request.max_hours = options.max_hours;
  return request;
}

ModelChoice model_choice(const CommandOptions& options) {
  if (options.iteration && options.run_dir.empty())
    throw Error(ExitCode::usage, "--iteration without --run-dir", {},
                "Name the run with --run-dir DIR.");
  if (!options.plan.empty() && !options.run_dir.empty())
    throw Error(ExitCode::usage, "--plan and --run-dir exclude each other", {},
                "Give one of them.");
  return {options.model, options.plan, options.run_dir, options.iteration};
}

}  // namespace

int command_run(const CommandOptions& options) {
  return run_on_ranks(options, [&](CommRuntime& runtime) {
    RunConfig config = read_config(runtime.world(), options.path, options, ConfigUse::run);
    const ResumeMode resume = options.resume == "never"     ? ResumeMode::never
                              : options.resume == "require" ? ResumeMode::require
                                                            : ResumeMode::automatic;
    run_pruning(runtime, run_request(std::move(config), options.run_dir, options, resume));
  });
}

int command_resume(const CommandOptions& options) {
  return run_on_ranks(options, [&](CommRuntime& runtime) {
    const fs::path resolved = fs::path(options.path) / "config.resolved.yaml";
    together(runtime.world(), "resume", [&] {
      if (!fs::exists(resolved))
        throw Error(ExitCode::missing_input, "this is not a run directory",
                    "it has no config.resolved.yaml",
                    "Start the run with 'espalier run CONFIG --run-dir DIR'.", options.path);
    });
    RunConfig config = read_config(runtime.world(), resolved, options, ConfigUse::run);
    run_pruning(runtime,
                run_request(std::move(config), options.path, options, ResumeMode::require));
  });
}

int command_score(const CommandOptions& options) {
  const ModelChoice choice = model_choice(options);
  return run_on_ranks(options, [&](CommRuntime& runtime) {
    const RunConfig config = read_config(runtime.world(), options.path, options, ConfigUse::score);
    score_model(runtime, config, choice, options.out);
  });
}

int command_eval(const CommandOptions& options) {
  const EvalRequest request{model_choice(options), options.out, options.logits, options.logit_rows};
  return run_on_ranks(options, [&](CommRuntime& runtime) {
    const RunConfig config = read_config(runtime.world(), options.path, options, ConfigUse::eval);
    const nlohmann::ordered_json result = evaluate_model(runtime, config, request);
    if (runtime.world().rank() != 0) return;
    for (const auto& [name, p] : result.at("perplexity").items())
      fmt::print(
          "{:<16} perplexity {:.6g}  loss {:.8g} nats/token  {} tokens in {} windows of {}\n", name,
          p.at("perplexity").get<double>(), p.at("loss").get<double>(),
          p.at("tokens").get<std::int64_t>(), p.at("windows").get<std::int64_t>(),
          p.at("window_tokens").get<std::int64_t>());
  });
}

}  // namespace espalier
