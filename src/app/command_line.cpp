#include "command_line.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include "commands.h"
#include "espalier/core/error.h"
#include "espalier/pipeline/foreign_errors.h"
#include "espalier/pipeline/provenance.h"
#include "print_error.h"

namespace espalier {
namespace {

constexpr const char* kFrozen =
    "Keys whose change is accepted although they are frozen when a run is resumed";

CLI::App* add(CLI::App& app, const char* name, const char* what, const char* examples) {
  CLI::App* command = app.add_subcommand(name, what);
  command->footer(std::string("Examples:\n") + examples);
  return command;
}

void add_config(CLI::App* command, CommandOptions& o) {
  command
      ->add_option("CONFIG", o.path,
                   "YAML configuration (docs/configuration.md, configs/reference.yaml)")
      ->required();
  command->add_option("--set", o.set, "Override a key: --set prune.target=0.3 (repeatable)")
      ->allow_extra_args(false);
  command->add_option("--tensor", o.tensor, "Tensor-parallel ranks; data ranks = ranks / tensor");
}

void add_choice(CLI::App* command, CommandOptions& o) {
  command->add_option("--run-dir", o.run_dir, "Use a run's model instead of the configuration's");
  command->add_option("--plan", o.plan, "Use the model as this plan.h5 leaves it");
  command->add_option("--iteration", o.iteration,
                      "With --run-dir: after this iteration (default: newest commit)");
}

void add_run_flags(CLI::App* command, CommandOptions& o) {
  command->add_option("--allow-change", o.allow_change, kFrozen)->allow_extra_args(false);
  command->add_flag(
      "--fast-verify", o.fast_verify,
      "Compare inputs by size, time and first MiB; by content only where the time differs");
  command
      ->add_option("--max-hours", o.max_hours,
                   "Stop (exit 75) before this time is over; the last commit stands")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--lock-wait", o.lock_wait, "Seconds to wait for the run directory's lock")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
}

void define_parallel(CLI::App& app, CommandOptions& o,
                     std::vector<std::pair<CLI::App*, Command>>& commands) {
  CLI::App* run = add(
      app, "run", "Prune a model: score, rank, remove, commit; resumable at any moment",
      "  espalier run configs/quickstart.yaml --run-dir runs/a\n"
      "  mpirun -n 8 espalier run config.yaml --run-dir runs/a --tensor 4 --set prune.target=0.4");
  add_config(run, o);
  run->add_option("--run-dir", o.run_dir, "Directory for everything the run writes")->required();
  run->add_option("--resume", o.resume,
                  "auto: continue if there is a commit; never; require: only continue")
      ->check(CLI::IsMember({"auto", "never", "require"}))
      ->capture_default_str();
  add_run_flags(run, o);
  commands.emplace_back(run, command_run);

  CLI::App* resume =
      add(app, "resume",
          "Continue a run with the configuration in its directory, on any number of ranks",
          "  espalier resume runs/a\n  mpirun -n 4 espalier resume runs/a --tensor 2");
  resume->add_option("DIR", o.path, "Run directory")->required();
  resume->add_option("--tensor", o.tensor, "Tensor-parallel ranks");
  resume->add_option("--set", o.set, "Override a key that is free at resume (repeatable)")
      ->allow_extra_args(false);
  add_run_flags(resume, o);
  commands.emplace_back(resume, command_resume);

  CLI::App* score = add(
      app, "score", "Write the importance scores of all units; prunes nothing",
      "  espalier score config.yaml --out scores.h5\n"
      "  mpirun -n 2 espalier score config.yaml --run-dir runs/a --iteration 10 --out scores.h5");
  add_config(score, o);
  add_choice(score, o);
  score->add_option("--out", o.out, "HDF5 file to write; must not exist")->required();
  commands.emplace_back(score, command_score);

  CLI::App* eval = add(
      app, "eval", "Perplexities of a model, a run's state or an exported directory",
      "  espalier eval config.yaml --model runs/a/export/exact\n"
      "  mpirun -n 2 espalier eval config.yaml --run-dir runs/a --iteration 10 --out eval.json");
  add_config(eval, o);
  add_choice(eval, o);
  eval->add_option("--model", o.model, "Checkpoint directory instead of the configuration's");
  eval->add_option("--out", o.out, "JSON file to write; must not exist");
  eval->add_option("--logits", o.logits,
                   "HDF5 file for logits of the first rows of each evaluation file (small models)");
  eval->add_option("--logit-rows", o.logit_rows, "Rows per evaluation file for --logits")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  commands.emplace_back(eval, command_eval);
}

void define_local(CLI::App& app, CommandOptions& o,
                  std::vector<std::pair<CLI::App*, Command>>& commands) {
  CLI::App* exported = add(
      app, "export", "Write the pruned model of a run, at any sparsity up to the one it reached",
      "  espalier export runs/a --out model-50\n"
      "  espalier export runs/a --out model-30 --sparsity 0.3");
  exported->add_option("PATH", o.path, "Run directory, or a plan.h5 together with --model")
      ->required();
  exported->add_option("--model", o.model,
                       "Checkpoint that a plan file belongs to, or where a run's model is now");
  exported->add_option("--out", o.out, "Directory to create; must not exist")->required();
  exported
      ->add_option("--format", o.format,
                   "exact: widths per layer (remote code); uniform: one width, stock classes")
      ->check(CLI::IsMember({"exact", "uniform"}))
      ->capture_default_str();
  exported->add_option(
      "--sparsity", o.sparsity,
      "Largest plan not above this, in --measure; not below what the run's source had lost");
  exported->add_option("--measure", o.measure, "Default: the run's own prune.measure")
      ->check(CLI::IsMember({"structures", "parameters", "total_parameters"}));
  commands.emplace_back(exported, command_export);

  CLI::App* inspect =
      add(app, "inspect", "Widths per layer of a run, a commit or a model",
          "  espalier inspect runs/a\n  espalier inspect runs/a/export/exact --json");
  inspect->add_option("PATH", o.path, "Run directory, commit or model directory")->required();
  inspect->add_flag("--json", o.json, "As JSON");
  commands.emplace_back(inspect, command_inspect);

  CLI::App* config =
      add(app, "config", "Print a resolved configuration, the schema, or what a key means",
          "  espalier config configs/quickstart.yaml\n  espalier config --explain prune.ranking");
  config->add_option("CONFIG", o.path, "Configuration to resolve; origins go to stderr");
  config->add_flag("--print", o.print, "Print CONFIG resolved (the default)");
  config->add_flag("--schema", o.schema, "Every key as JSON");
  config->add_flag("--reference", o.reference, "The commented reference configuration");
  config->add_option("--explain", o.explain, "One key in words");
  config->add_option("--set", o.set, "Override a key (repeatable)")->allow_extra_args(false);
  commands.emplace_back(config, command_config);

  CLI::App* verify =
      add(app, "verify", "Check hashes, plans, shapes and values of a run, a commit or a model",
          "  espalier verify runs/a\n  espalier verify runs/a/export/exact --deep");
  verify->add_option("PATH", o.path, "Run directory, commit or model directory")->required();
  verify->add_flag("--deep", o.deep, "Also read every weight: finite (models), unchanged (runs)");
  commands.emplace_back(verify, command_verify);

  CLI::App* status =
      add(app, "status", "Where a run is; works while it runs, from anywhere, and after a crash",
          "  espalier status runs/a\n  espalier status runs/a --exit-code");
  status->add_option("DIR", o.path, "Run directory")->required();
  status->add_flag("--json", o.json, "As JSON");
  status->add_flag("--exit-code", o.exit_code, "Exit with the run's code (0 while running)");
  status->add_flag("--follow", o.follow, "Repeat every 5 s until the run ends");
  commands.emplace_back(status, command_status);

  CLI::App* stop = add(app, "stop", "Ask a run to commit and stop (exit 75)",
                       "  espalier stop runs/a\n  espalier stop /scratch/runs/b");
  stop->add_option("DIR", o.path, "Run directory")->required();
  commands.emplace_back(stop, command_stop);

  CLI::App* doctor = add(app, "doctor", "Facts for rehearsing failures",
                         "  espalier doctor --list-faults\n"
                         "  ESPALIER_FAULT='point=save.pre_rename;action=kill9' espalier run "
                         "config.yaml --run-dir runs/a");
  doctor->add_flag("--list-faults", o.list_faults, "Every fault point with its meaning");
  commands.emplace_back(doctor, command_doctor);
}

std::string version_text() {
  std::string text = "espalier";
  const nlohmann::ordered_json facts = program_facts();
  for (const auto& [name, value] : facts.items())
    text += fmt::format("{}{} {}", name == "version" ? " " : "\n  ", name == "version" ? "" : name,
                        value.get<std::string>());
  return text;
}

/// Usage is wrong on every rank alike, before MPI is there to ask.
int rank_by_launcher() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"})
    if (const char* text = std::getenv(name)) return std::atoi(text);
  return 0;
}

/// The library's own words do not name the nearest command.
int usage_error(const CLI::App& app, const CLI::ParseError& error, int argc, char** argv) {
  std::string text = error.what();
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(command->get_name());
  if (argc > 1 && argv[1][0] != '-' &&
      std::find(names.begin(), names.end(), argv[1]) == names.end()) {
    text = fmt::format("there is no command '{}'", argv[1]);
    if (const std::string near = nearest_name(argv[1], names); !near.empty())
      text += fmt::format("; did you mean '{}'?", near);
  }
  if (rank_by_launcher() == 0) {
    fmt::print(stderr,
               "espalier: {} (exit 64)\n  do      espalier --help, espalier COMMAND --help\n",
               text);
  } else {
    // The first rank that ends with an error has the others ended: the one that speaks goes first.
    std::this_thread::sleep_for(std::chrono::seconds(1));
  }
  return static_cast<int>(ExitCode::usage);
}

}  // namespace

int run_command_line(int argc, char** argv) {
  register_foreign_errors();
  CLI::App app("Distributed structured pruning of large language models", "espalier");
  app.require_subcommand(1);
  app.footer(
      "Examples:\n  espalier run configs/quickstart.yaml --run-dir runs/a\n"
      "  mpirun -n 8 espalier run config.yaml --run-dir runs/a --tensor 8");
  CommandOptions options;
  app.set_version_flag("--version", version_text);
  app.add_option("--log-level", options.log_level, "debug, info, warning or error")
      ->check(CLI::IsMember({"debug", "info", "warning", "error"}));
  app.add_option("--log-format", options.log_format, "text or json")
      ->check(CLI::IsMember({"text", "json"}));
  app.add_flag("--quiet", options.quiet, "Only warnings and errors");
  app.fallthrough();
  std::vector<std::pair<CLI::App*, Command>> commands;
  define_parallel(app, options, commands);
  define_local(app, options, commands);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {
    return app.exit(success);
  } catch (const CLI::ParseError& error) {
    return usage_error(app, error, argc, argv);
  }
  try {
    for (const auto& [command, function] : commands)
      if (command->parsed()) return function(options);
  } catch (const std::exception& exception) {
    const Error error = as_error(exception, {});
    std::fputs(error_text(error).c_str(), stderr);
    return static_cast<int>(error.code());
  }
  return static_cast<int>(ExitCode::usage);
}

}  // namespace espalier
