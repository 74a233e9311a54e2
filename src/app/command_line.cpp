#include "command_line.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include "commands.h"
#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/core/text.h"
#include "espalier/pipeline/foreign_errors.h"
#include "espalier/pipeline/provenance.h"
#include "numbers.h"
#include "output.h"
#include "print_error.h"

namespace espalier {
namespace {

constexpr const char* kFrozen =
    "Key that may differ although it is frozen when a run is resumed (repeatable)";
constexpr const char* kSet = "Override a key: --set prune.target=0.3 (repeatable)";
constexpr const char* kTensor =
    "Tensor-parallel ranks (default: parallel.tensor); the others are data ranks";

const NumberRange kHours{0, 87600, "a number of hours", "1.5"};
const NumberRange kSeconds{0, 1e6, "a number of seconds", "30"};
const NumberRange kRatio{0, 1, "a ratio", "0.3"};
const NumberRange kRanks{1, 1e6, "a whole number of ranks", "2"};
const NumberRange kIteration{0, 1e6, "an iteration, a whole number", "10"};
const NumberRange kGib{0, 1e6, "a number of GiB", "79.1"};
const NumberRange kRows{1, 1e6, "a whole number of rows", "1"};
const NumberRange kLayers{1, 1024, "a whole number of layers", "4"};
const NumberRange kSequences{1, 1e6, "a whole number of sequences", "16"};
const NumberRange kSequenceTokens{2, 1 << 20, "a whole number of tokens from 2", "256"};
const NumberRange kTokens{2, 1e9, "a whole number of tokens from 2", "8192"};
const NumberRange kChannels{2, 1 << 20, "a whole number of channels from 2", "64"};
const NumberRange kRepeats{1, 1000, "a whole number of passes", "3"};

using Commands = std::vector<std::pair<CLI::App*, Command>>;

CLI::App* add(CLI::App& app, const char* name, const char* what, const char* examples) {
  CLI::App* command = app.add_subcommand(name, what);
  command->footer(
      std::string("Every command takes --quiet, --log-level and --log-format: espalier --help.\n\n"
                  "Examples:\n") +
      examples);
  return command;
}

CLI::Validator not_empty() {
  return CLI::Validator(
      [](const std::string& text) {
        return text.empty() ? std::string("it is empty; a name is needed") : std::string();
      },
      "");
}

CLI::Option* add_path(CLI::App* command, const char* name, std::string& path, const char* what,
                      const char* type) {
  return command->add_option(name, path, what)->check(not_empty())->type_name(type);
}

void add_tensor(CLI::App* command, CommandOptions& o) {
  command->add_option("--tensor", o.tensor, kTensor)
      ->transform(whole_number(kRanks))
      ->type_name("RANKS");
}

void add_set(CLI::App* command, CommandOptions& o, const char* what = kSet) {
  command->add_option("--set", o.set, what)->allow_extra_args(false)->type_name("KEY=VALUE");
}

void add_config(CLI::App* command, CommandOptions& o) {
  add_path(command, "CONFIG", o.path,
           "YAML configuration (docs/configuration.md, configs/reference.yaml)", "FILE")
      ->required();
  add_set(command, o);
  add_tensor(command, o);
}

void add_choice(CLI::App* command, CommandOptions& o) {
  add_path(command, "--run-dir", o.run_dir, "The model as this run has pruned it", "DIR");
  add_path(command, "--plan", o.plan, "The model as this plan.h5 leaves it", "FILE");
  command
      ->add_option("--iteration", o.iteration,
                   "With --run-dir: after this iteration (default: newest commit)")
      ->transform(whole_number(kIteration))
      ->type_name("N");
}

std::vector<std::string> criterion_words() {
  for (const KeyInfo& key : config_keys())
    if (key.key == "importance.criterion") return key.values;
  return {};
}

void add_measure(CLI::App* command, CommandOptions& o) {
  command->add_option("--measure", o.measure, "Of --sparsity (default: the run's prune.measure)")
      ->check(CLI::IsMember({"structures", "parameters", "total_parameters"}));
}

void add_run_flags(CLI::App* command, CommandOptions& o) {
  command->add_option("--allow-change", o.allow_change, kFrozen)
      ->allow_extra_args(false)
      ->type_name("KEY");
  command->add_flag(
      "--fast-verify", o.fast_verify,
      "Compare inputs by size, time and first MiB; by content only where the time differs");
  command->add_flag("--strict-paths", o.strict_paths,
                    "Refuse (exit 65) a model or token files that are symbolic links");
  command
      ->add_option(
          "--max-hours", o.max_hours,
          "Stop (exit 75) before this time is over; 0: no limit; default: Slurm's end of the job")
      ->transform(real_number(kHours))
      ->type_name("HOURS");
  command
      ->add_option("--hang-timeout", o.hang_timeout,
                   "End (exit 76) when no rank does a step for so long; 0: never; default: learned")
      ->transform(real_number(kSeconds))
      ->type_name("SECONDS");
  command->add_option("--lock-wait", o.lock_wait, "How long to wait for the run directory's lock")
      ->transform(real_number(kSeconds))
      ->type_name("SECONDS")
      ->capture_default_str();
}

void define_run(CLI::App& app, CommandOptions& o, Commands& commands) {
  CLI::App* run =
      add(app, "run", "Prune a model: score, rank, remove, commit; resumable at any moment",
          "  espalier run configs/quickstart.yaml --run-dir runs/a\n"
          "  mpirun -n 2 espalier run configs/quickstart.yaml --run-dir runs/c --tensor 2 --set "
          "prune.target=0.4");
  add_config(run, o);
  add_path(run, "--run-dir", o.run_dir, "Directory for everything the run writes", "DIR")
      ->required();
  run->add_option("--resume", o.resume,
                  "auto: continue if there is a commit; never; require: only continue")
      ->check(CLI::IsMember({"auto", "never", "require"}))
      ->capture_default_str();
  add_run_flags(run, o);
  commands.emplace_back(run, command_run);

  CLI::App* resume =
      add(app, "resume",
          "Continue a run with the configuration in its directory, on any number of ranks",
          "  espalier resume runs/a\n  mpirun -n 2 espalier resume runs/a --tensor 2");
  add_path(resume, "DIR", o.path, "Run directory", "DIR")->required();
  add_tensor(resume, o);
  add_set(resume, o, "Override a key that is free at resume (repeatable)");
  add_run_flags(resume, o);
  commands.emplace_back(resume, command_resume);
}

void define_planning(CLI::App& app, CommandOptions& o, Commands& commands) {
  CLI::App* plan = add(
      app, "plan",
      "What a run will do and the memory it needs, from config.json alone; 69 when it does not fit",
      "  espalier plan configs/quickstart.yaml\n"
      "  espalier plan configs/quickstart.yaml --ranks 4 --tensor 2 --memory 16 --json");
  add_config(plan, o);
  plan->add_option("--ranks", o.ranks, "Ranks of the job (default: one tensor group)")
      ->transform(whole_number(kRanks))
      ->type_name("N");
  plan->add_option("--memory", o.memory, "What one rank can have, in GiB")
      ->transform(real_number(kGib))
      ->type_name("GIB");
  add_path(plan, "--bench", o.bench,
           "What 'espalier bench --out FILE' measured: time is told as well", "FILE");
  plan->add_flag("--json", o.json, "As JSON");
  commands.emplace_back(plan, command_plan);
}

void define_measuring(CLI::App& app, CommandOptions& o, Commands& commands) {
  CLI::App* score =
      add(app, "score", "Write the importance scores of all units; prunes nothing",
          "  espalier score configs/quickstart.yaml --out scores.h5\n"
          "  mpirun -n 2 espalier score configs/quickstart.yaml --run-dir runs/a --out pruned.h5");
  add_config(score, o);
  add_choice(score, o);
  add_path(score, "--out", o.out, "HDF5 file to write; must not exist", "FILE")->required();
  commands.emplace_back(score, command_score);

  CLI::App* eval = add(
      app, "eval", "Evaluations of a model, an exported directory, or the smaller plans of a run",
      "  espalier eval configs/quickstart.yaml --model runs/a/export/exact --out eval.json\n"
      "  mpirun -n 2 espalier eval runs/a --sparsity 0.1,0.2,0.3 --out curve.json");
  add_path(eval, "CONFIG", o.path, "YAML configuration, or a run directory: its own, and its model",
           "PATH")
      ->required();
  add_set(eval, o);
  add_tensor(eval, o);
  add_choice(eval, o);
  add_path(eval, "--model", o.model, "Model directory instead of the configuration's", "DIR");
  eval->add_option("--sparsity", o.sparsities,
                   "With a run directory: its smaller plans at these ratios, one after another")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->transform(real_number(kRatio))
      ->type_name("RATIO,...");
  add_measure(eval, o);
  eval->add_flag("--refit", o.refit,
                 "With --sparsity: refit the matrices of every size before it is evaluated");
  add_path(eval, "--out", o.out,
           "JSON file to write; must not exist. With --sparsity a .csv beside it", "FILE");
  add_path(eval, "--items", o.items,
           "JSON lines: what was chosen in each item of a multiple choice, and the log likelihoods",
           "FILE");
  add_path(eval, "--logits", o.logits,
           "HDF5 file for logits of the first rows of each evaluation file (small models)", "FILE");
  eval->add_option("--logit-rows", o.logit_rows, "Rows per evaluation file for --logits")
      ->transform(whole_number(kRows))
      ->type_name("N")
      ->capture_default_str();
  commands.emplace_back(eval, command_eval);
}

void define_bench(CLI::App& app, CommandOptions& o, Commands& commands) {
  CLI::App* bench =
      add(app, "bench",
          "Measure this machine: matrix products and scoring passes on random weights and tokens",
          "  espalier bench configs/quickstart.yaml --repeat 1\n"
          "  mpirun -n 2 espalier bench --shape hidden=64,channels=160,layers=2,heads=4,kv_heads=2,"
          "vocabulary=256 --tokens 256 --json");
  add_path(bench, "CONFIG", o.path, "YAML configuration; of its model only config.json is read",
           "FILE");
  add_set(bench, o);
  add_tensor(bench, o);
  bench
      ->add_option(
          "--shape", o.shape,
          "hidden=,channels=,layers=,heads=,kv_heads=,vocabulary= or a known model: qwen2.5-7b")
      ->check(not_empty())
      ->type_name("SHAPE");
  const auto number = [&](const char* name, std::optional<std::int64_t>& value,
                          const NumberRange& range, const char* what) {
    bench->add_option(name, value, what)->transform(whole_number(range))->type_name("N");
  };
  number("--layers", o.layers, kLayers, "So many layers in place of all");
  number("--sequences", o.sequences, kSequences, "Sequences of a pass (default: 16)");
  number("--sequence-tokens", o.sequence_tokens, kSequenceTokens,
         "Tokens of each (default: rows of CONFIG's token files, else 256)");
  number("--tokens", o.tokens, kTokens, "Tokens of a pass, in place of --sequences");
  number("--micro-batch-tokens", o.micro_batch_tokens, kTokens,
         "As in the configuration (default: the fastest that is found)");
  bench->add_option("--dtype", o.dtype, "Default: CONFIG's, or what the model is stored in")
      ->check(CLI::IsMember({"float64", "float32", "bfloat16", "float16"}));
  bench
      ->add_option("--criterion", o.criteria,
                   "A pass of each (default: CONFIG's, else taylor,taylor_gate)")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::IsMember(criterion_words()))
      ->type_name("NAME,...");
  bench->add_option("--order", o.orders, "A pass in each (default: CONFIG's, else sample_major)")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::IsMember({"sample_major", "layer_major"}))
      ->type_name("NAME,...");
  bench->add_option("--recompute", o.recompute, "Default: the faster one")
      ->check(CLI::IsMember({"auto", "all"}));
  bench->add_option("--collectives", o.collectives, "What sums tensors over ranks")
      ->check(CLI::IsMember({"auto", "nccl", "mpi"}));
  bench->add_option("--plan", o.plan, "CONFIG's model as this plan.h5 leaves it")
      ->check(not_empty())
      ->type_name("FILE");
  add_path(
      bench, "--widths", o.widths,
      "plan.h5, or a JSON list of each layer's channels: measured beside the nearest multiples",
      "FILE");
  number("--width-multiple", o.width_multiple, kChannels,
         "Of these (default: CONFIG's prune.width_multiple, else 64)");
  bench->add_option("--repeat", o.repeats, "Passes of each criterion; the median is told")
      ->transform(whole_number(kRepeats))
      ->type_name("N")
      ->capture_default_str();
  bench->add_flag("--json", o.json, "As one JSON object");
  add_path(bench, "--out", o.out, "JSON file to write as well; must not exist", "FILE");
  commands.emplace_back(bench, command_bench);
}

void define_reading(CLI::App& app, CommandOptions& o, Commands& commands) {
  CLI::App* exported = add(
      app, "export", "Write the pruned model of a run, at any sparsity up to the one it reached",
      "  espalier export runs/a --out model-50\n"
      "  mpirun -n 2 espalier export runs/a --out model-30 --sparsity 0.3 --refit");
  add_path(exported, "PATH", o.path, "Run directory, or a plan.h5 together with --model", "PATH")
      ->required();
  add_path(exported, "--model", o.model,
           "Model directory that a plan file belongs to, or where a run's model is now", "DIR");
  add_path(exported, "--out", o.out, "Directory to create; must not exist", "DIR")->required();
  exported
      ->add_option("--format", o.format,
                   "exact: widths per layer (remote code); uniform: one width, stock classes")
      ->check(CLI::IsMember({"exact", "uniform"}))
      ->capture_default_str();
  exported
      ->add_option("--sparsity", o.sparsity,
                   "Largest plan not above this, in --measure; not below what the source had lost")
      ->transform(real_number(kRatio))
      ->type_name("RATIO");
  add_measure(exported, o);
  exported->add_flag("--no-compensation", o.no_compensation,
                     "Leave out the biases that a run with prune.compensation: mean gives");
  exported->add_flag("--refit", o.refit,
                     "Refit the matrices of this size, on any number of ranks; the default "
                     "where the run does");
  exported->add_flag("--no-refit", o.no_refit, "Keep the dense model's columns");
  add_set(exported, o);
  add_tensor(exported, o);
  commands.emplace_back(exported, command_export);

  CLI::App* inspect =
      add(app, "inspect",
          "Widths per layer of a run, a commit, a model or a plan; the sizes that a run offers",
          "  espalier inspect runs/a\n  espalier inspect runs/a/export/exact --json");
  add_path(inspect, "PATH", o.path, "Run directory, commit, model directory, or plan.h5", "PATH")
      ->required();
  add_path(inspect, "--model", o.model, "Model directory that a plan file belongs to", "DIR");
  inspect->add_flag("--json", o.json, "As JSON");
  commands.emplace_back(inspect, command_inspect);

  CLI::App* config =
      add(app, "config", "Print a resolved configuration, the schema, or what a key means",
          "  espalier config configs/quickstart.yaml\n  espalier config --explain prune.ranking");
  add_path(config, "CONFIG", o.path, "Configuration to resolve; origins go to stderr", "FILE");
  config->add_flag("--print", o.print, "Print CONFIG resolved (the default)");
  config->add_flag("--schema", o.schema, "Every key as JSON");
  config->add_flag("--reference", o.reference, "The commented reference configuration");
  config->add_option("--explain", o.explain, "One key in words")->type_name("KEY");
  add_set(config, o);
  commands.emplace_back(config, command_config);

  CLI::App* verify =
      add(app, "verify", "Check hashes, plans, shapes and values of a run, a commit or a model",
          "  espalier verify runs/a\n  espalier verify runs/a/export/exact --deep");
  add_path(verify, "PATH", o.path, "Run directory, commit or model directory", "PATH")->required();
  verify->add_flag("--deep", o.deep, "Also read every weight: finite (models), unchanged (runs)");
  commands.emplace_back(verify, command_verify);
}

void define_watching(CLI::App& app, CommandOptions& o, Commands& commands) {
  CLI::App* status =
      add(app, "status", "Where a run is; works while it runs, from anywhere, and after a crash",
          "  espalier status runs/a\n  espalier status runs/a --exit-code");
  add_path(status, "DIR", o.path, "Run directory", "DIR")->required();
  status->add_flag("--json", o.json, "As JSON");
  status->add_flag("--exit-code", o.exit_code,
                   "Exit with the run's code: 0 while it runs or after it finished, 76 when it "
                   "died");
  status->add_flag("--follow", o.follow, "Repeat every 5 s until the run ends");
  commands.emplace_back(status, command_status);

  CLI::App* stop =
      add(app, "stop", "Ask a run under way to commit and stop (it exits with 75); 66 if none is",
          "  espalier stop runs/a\n  espalier stop runs/a --quiet");
  add_path(stop, "DIR", o.path, "Run directory", "DIR")->required();
  commands.emplace_back(stop, command_stop);

  CLI::App* doctor = add(app, "doctor", "Facts for rehearsing failures",
                         "  espalier doctor --list-faults\n"
                         "  ESPALIER_FAULT='point=save.pre_rename;iter=3;action=kill9' espalier "
                         "run configs/quickstart.yaml --run-dir runs/drill");
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

/// Which rank this is before MPI can be asked.
int rank_by_launcher() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"})
    if (const char* text = std::getenv(name)) return std::atoi(text);
  return 0;
}

/// Before MPI every rank meets the same error. One tells it: the first that ends with an error has
/// the others ended, so those wait for it. One that is still there may have met it alone, unless it
/// is about the command line, which all were given.
void print_early_error(const Error& error) {
  if (rank_by_launcher() != 0) {
    std::this_thread::sleep_for(std::chrono::seconds(5));
    if (error.code() == ExitCode::usage) return;
  }
  print_error(error);
}

std::vector<std::string> option_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options())
    if (const std::string name = option->get_name(); name.starts_with("--")) names.push_back(name);
  return names;
}

/// The command that was named, or the program itself.
const CLI::App& parsed_command(const CLI::App& app) {
  const std::vector<CLI::App*> found = app.get_subcommands();
  return found.empty() ? app : *found.front();
}

/// Words of the command line that nothing takes, in their order.
Error not_understood(const CLI::App& app) {
  const CLI::App& command = parsed_command(app);
  std::vector<std::string> known = option_names(command);
  for (const std::string& name : option_names(app)) known.push_back(name);
  std::string words, near;
  const std::vector<std::string> extras = app.remaining(true);
  for (const std::string& word : extras) {
    words += fmt::format("{}'{}'", words.empty() ? "" : ", ", one_line(word));
    const std::string name = word.substr(0, word.find('='));
    if (near.empty() && word.starts_with("--")) near = nearest_name(name, known);
  }
  const bool option = extras.size() == 1 && extras.front().starts_with("-");
  return Error(ExitCode::usage,
               fmt::format("{} {}", option ? "there is no option" : "nothing takes", words), {},
               fmt::format("{}See {} --help.", near.empty() ? "" : "Did you mean '" + near + "'? ",
                           &command == &app ? "espalier" : "espalier " + command.get_name()));
}

/// The library's own words do not name the nearest command or option.
Error usage_error(const CLI::App& app, const CLI::ParseError& error, int argc, char** argv) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(command->get_name());
  if (argc > 1 && argv[1][0] != '-' &&
      std::find(names.begin(), names.end(), argv[1]) == names.end()) {
    const std::string near = nearest_name(argv[1], names);
    return Error(ExitCode::usage, fmt::format("there is no command '{}'", one_line(argv[1])), {},
                 near.empty() ? "See espalier --help."
                              : fmt::format("Did you mean '{}'? See espalier --help.", near));
  }
  if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr) return not_understood(app);
  const CLI::App& command = parsed_command(app);
  return Error(ExitCode::usage, error.what(), {},
               &command == &app ? "See espalier --help, espalier COMMAND --help."
                                : fmt::format("See espalier {} --help.", command.get_name()));
}

/// How errors are told while the command line is not understood yet.
void configure_early_log(int argc, char** argv) {
  log::Options log;
  log.rank = rank_by_launcher();
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    log.json = log.json || word == "--log-format=json" ||
               (word == "--log-format" && i + 1 < argc && std::string_view(argv[i + 1]) == "json");
  }
  log::configure(log);
}

void configure_log(const CommandOptions& options) {
  log::Options log = log::current();
  log.json = options.log_format == "json";
  log.level = options.quiet                    ? log::Level::warning
              : options.log_level == "debug"   ? log::Level::debug
              : options.log_level == "warning" ? log::Level::warning
              : options.log_level == "error"   ? log::Level::error
                                               : log::Level::info;
  log::configure(log);
}

void add_global_options(CLI::App& app, CommandOptions& o) {
  app.set_version_flag("--version", version_text, "Versions of the program and its libraries");
  app.add_option("--log-level", o.log_level, "Least that is told on stderr")
      ->check(CLI::IsMember({"debug", "info", "warning", "error"}))
      ->capture_default_str();
  app.add_option("--log-format", o.log_format, "json: every line on stderr is one JSON object")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  app.add_flag("--quiet", o.quiet, "Only warnings, errors and what a command was asked for");
}

/// The work's exit code once its answer is written, or that of the error which it prints.
int guarded(const std::function<int()>& work) {
  try {
    const int code = work();
    output::flush();
    return code;
  } catch (const std::exception& exception) {
    const Error error = as_error(exception, {});
    print_early_error(error);
    return static_cast<int>(error.code());
  }
}

int parse_and_run(CLI::App& app, const Commands& commands, const CommandOptions& options, int argc,
                  char** argv) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {
    std::ostringstream text;
    const int code = app.exit(success, text, text);
    output::put(text.str());
    return code;
  } catch (const CLI::ParseError& error) {
    throw usage_error(app, error, argc, argv);
  }
  configure_log(options);
  for (const auto& [command, function] : commands)
    if (command->parsed()) return function(options);
  throw Error(ExitCode::internal, "a command without work", "internal check failed",
              "Please report this with the command.");
}

}  // namespace

int run_command_line(int argc, char** argv) {
  register_foreign_errors();
  configure_early_log(argc, argv);
  CLI::App app("Distributed structured pruning of large language models", "espalier");
  app.require_subcommand(1);
  app.footer(
      "Examples:\n  espalier run configs/quickstart.yaml --run-dir runs/a\n"
      "  mpirun -n 2 espalier run configs/quickstart.yaml --run-dir runs/b --tensor 2");
  app.fallthrough();
  CommandOptions options;
  add_global_options(app, options);
  Commands commands;
  define_run(app, options, commands);
  define_planning(app, options, commands);
  define_measuring(app, options, commands);
  define_bench(app, options, commands);
  define_reading(app, options, commands);
  define_watching(app, options, commands);
  return guarded([&] { return parse_and_run(app, commands, options, argc, argv); });
}

}  // namespace espalier
