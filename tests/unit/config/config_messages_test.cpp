#include "config_fixture.h"

namespace espalier {
namespace {

/// Lines put behind (or, where they hold the same section, in place of) the minimal file, and what
/// the program must say: one message a line, the closing line is checked for all.
struct Row {
  /// The model section; nullptr = the valid one.
  const char* model;
  /// nullptr = the valid one.
  const char* calibration;
  /// nullptr = the valid one.
  const char* prune;
  /// What follows.
  const char* rest;
  std::vector<std::string> overrides;
  const char* expected;
  int code;
};

class ConfigMessages : public ConfigTest, public ::testing::WithParamInterface<Row> {};

TEST_P(ConfigMessages, AreExactlyThese) {
  const Row& row = GetParam();
  const auto or_valid = [](const char* text, const char* valid) {
    return std::string(text ? text : valid) + "\n";
  };
  const std::string text =
      or_valid(row.model, "model: {path: models/m}") +
      or_valid(row.calibration, "calibration: {domains: [{name: web, tokens: web.h5}]}") +
      or_valid(row.prune, "prune: {target: 0.5}") + row.rest;
  ExitCode code = ExitCode::ok;
  const std::string got = messages(text, row.overrides, ConfigUse::run, &code);
  const std::string expected = row.expected;
  const auto count = 1 + std::count(expected.begin(), expected.end(), '\n');
  EXPECT_EQ(got, expected + "\n" + std::to_string(count) + (count == 1 ? " error" : " errors") +
                     ". Nothing was started.");
  EXPECT_EQ(static_cast<int>(code), row.code);
}

Row model(const char* text, const char* expected, int code = 78) {
  return {text, nullptr, nullptr, "", {}, expected, code};
}
Row calibration(const char* text, const char* expected, int code = 78) {
  return {nullptr, text, nullptr, "", {}, expected, code};
}
Row prune(const char* text, const char* expected) {
  return {nullptr, nullptr, text, "", {}, expected, 78};
}
Row rest(const char* text, const char* expected, int code = 78) {
  return {nullptr, nullptr, nullptr, text, {}, expected, code};
}
Row set(std::vector<std::string> overrides, const char* expected, int code = 78) {
  return {nullptr, nullptr, nullptr, "", std::move(overrides), expected, code};
}

const std::vector<Row> kRows{
    // what is required
    model("",
          "config.yaml: model.path is missing (it is required). For example: model: {path: "
          "models/my-model}"),
    model("model: {dtype: as_stored}",
          "config.yaml:1:1: model.path is missing (it is required). For example: model: {path: "
          "models/my-model}"),
    calibration("",
                "config.yaml: calibration.domains is missing (it is required). For example: "
                "calibration: {domains: "
                "[{name: web, tokens: data/web.h5}]}"),
    calibration("calibration: {domains: []}",
                "config.yaml:2:24: calibration.domains is empty (at least one domain is needed)"),
    calibration("calibration: {domains: [{name: web}]}",
                "config.yaml:2:25: calibration.domains[0].tokens is missing (it is required). For "
                "example: tokens: "
                "data/web.h5"),
    prune("prune: {iterations: 3}",
          "config.yaml:3:1: prune.target is missing (it is required). For example: prune: {target: "
          "0.5}"),
    rest("export: [{path: x}]",
         "config.yaml:4:10: export[0].format is missing (it is required). For example: format: "
         "exact"),
    // files
    model("model: {path: nowhere}",
          "config.yaml:1:15: model.path: 'nowhere' does not exist (looked in: the config's "
          "directory). Point it at a "
          "Hugging Face model directory.",
          66),
    model("model: {path: web.h5}",
          "config.yaml:1:15: model.path: 'web.h5' is not a directory (looked in: the config's "
          "directory). Point it at "
          "a Hugging Face model directory.",
          66),
    model("model: {path: /nowhere/at/all}",
          "config.yaml:1:15: model.path: '/nowhere/at/all' does not exist. Point it at a Hugging "
          "Face model directory.",
          66),
    calibration("calibration: {domains: [{name: web, tokens: none.h5}]}",
                "config.yaml:2:45: calibration.domains[0].tokens: 'none.h5' does not exist (looked "
                "in: the config's "
                "directory). Write it with launch/tokenize.py or check the path.",
                66),
    calibration("calibration: {domains: [{name: web, tokens: models}]}",
                "config.yaml:2:45: calibration.domains[0].tokens: 'models' is a directory, not a "
                "token file (looked in: "
                "the config's directory). Write it with launch/tokenize.py or check the path.",
                66),
    rest("evaluation: {perplexity: [{name: p, tokens: q.h5}]}",
         "config.yaml:4:45: evaluation.perplexity[0].tokens: 'q.h5' does not exist (looked in: the "
         "config's directory). "
         "Write it with launch/tokenize.py or check the path.",
         66),
    model("model: {path: \"${ESPALIER_NO_SUCH_VARIABLE}/m\"}",
          "config.yaml:1:15: model.path = \"${ESPALIER_NO_SUCH_VARIABLE}/m\" (the environment "
          "variable "
          "'ESPALIER_NO_SUCH_VARIABLE' is not set)"),
    model("model: {path: \"${X\"}", "config.yaml:1:15: model.path = \"${X\" ('${' without '}')"),
    model("model: {path: ~someone/m}",
          "config.yaml:1:15: model.path = ~someone/m (only '~/' is expanded, not another user's "
          "home)"),
    model("model: {path: }", "config.yaml:1:9: model.path = (nothing) (a text is needed)"),
    model("model: {path: [a]}", "config.yaml:1:15: model.path = a list of 1 (a text is needed)"),
    // unknown keys
    prune("prune: {target: 0.5, atention_unit: kv_group}",
          "config.yaml:3:22: unknown key 'prune.atention_unit'. Did you mean "
          "'prune.attention_unit'?"),
    rest("paralel: {tensor: 2}",
         "config.yaml:4:1: unknown key 'paralel'. Did you mean 'parallel'?"),
    rest("target: 0.5", "config.yaml:4:1: unknown key 'target'. Did you mean 'prune.target'?"),
    rest("min_chanels: 3",
         "config.yaml:4:1: unknown key 'min_chanels'. Did you mean 'prune.protect.min_channels'?"),
    rest("parallel: {zebra_crossing: 2}",
         "config.yaml:4:12: unknown key 'parallel.zebra_crossing'. Keys here: tensor, rebalance."),
    calibration("calibration: {domains: [{name: web, tokens: web.h5, wieght: 2}]}",
                "config.yaml:2:53: unknown key 'calibration.domains[0].wieght'. Did you mean "
                "'calibration.domains[0].weight'?"),
    // types and ranges
    rest("parallel: 3", "config.yaml:4:11: parallel = 3 (a map of keys is needed)"),
    rest("parallel: {tensor: two}",
         "config.yaml:4:20: parallel.tensor = two (an integer from 1 to 1048576 is needed)"),
    rest("parallel: {tensor: 0}",
         "config.yaml:4:20: parallel.tensor = 0 (an integer from 1 to 1048576 is needed)"),
    rest("parallel: {tensor: 2.0}",
         "config.yaml:4:20: parallel.tensor = 2.0 (an integer from 1 to 1048576 is needed)"),
    rest("parallel: {tensor: \"2\"}",
         "config.yaml:4:20: parallel.tensor = \"2\" (an integer from 1 to 1048576 is needed)"),
    rest("parallel: {tensor: 010}",
         "config.yaml:4:20: parallel.tensor = 010 (an integer from 1 to 1048576 is needed)"),
    rest("parallel: {tensor: 99999999999999999999}",
         "config.yaml:4:20: parallel.tensor = 99999999999999999999 (an integer from 1 to 1048576 "
         "is needed)"),
    rest("parallel: {rebalance: 0.9}",
         "config.yaml:4:23: parallel.rebalance = 0.9 (a number of at least 1 is needed)"),
    rest("parallel: {rebalance: .inf}",
         "config.yaml:4:23: parallel.rebalance = .inf (a number of at least 1 is needed)"),
    rest("parallel: {rebalance: inf}",
         "config.yaml:4:23: parallel.rebalance = inf (a number of at least 1 is needed)"),
    rest("parallel: {rebalance: nan}",
         "config.yaml:4:23: parallel.rebalance = nan (a number of at least 1 is needed)"),
    prune("prune: {target: .nan}",
          "config.yaml:3:17: prune.target = .nan (a number above 0 and below 1 is needed)"),
    prune("prune: {target: 1}",
          "config.yaml:3:17: prune.target = 1 (a number above 0 and below 1 is needed)"),
    prune("prune: {target: 0}",
          "config.yaml:3:17: prune.target = 0 (a number above 0 and below 1 is needed)"),
    prune("prune: {target: -0.1}",
          "config.yaml:3:17: prune.target = -0.1 (a number above 0 and below 1 is needed)"),
    prune("prune: {target: 50%}",
          "config.yaml:3:17: prune.target = 50% (a number above 0 and below 1 is needed)"),
    prune("prune: {target: 0.5, rate: 0}",
          "config.yaml:3:28: prune.rate = 0 (a number from -50 to 50 other than 0 is needed)"),
    prune("prune: {target: 0.5, iterations: 0}",
          "config.yaml:3:34: prune.iterations = 0 (an integer from 1 to 100000 is needed)"),
    prune("prune: {target: 0.5, protect: {first_layers: -1}}",
          "config.yaml:3:46: prune.protect.first_layers = -1 (`auto` or an integer from 0 to 1000 "
          "is needed)"),
    prune("prune: {target: 0.5, protect: {layers: 3}}",
          "config.yaml:3:40: prune.protect.layers = 3 (a list of integers is needed)"),
    prune("prune: {target: 0.5, protect: {layers: [1, x]}}",
          "config.yaml:3:44: prune.protect.layers[1] = x (an integer from 0 to 999 is needed)"),
    prune("prune: {target: 0.5, kinds: []}",
          "config.yaml:3:29: prune.kinds = a list of 0 (a list of one or more of attention, mlp is "
          "needed)"),
    prune("prune: {target: 0.5, kinds: [mlp, mlp]}",
          "config.yaml:3:35: prune.kinds[1] = mlp (it is in the list already)"),
    prune("prune: {target: 0.5, kinds: [heads]}",
          "config.yaml:3:30: prune.kinds[0] = heads (permitted: attention, mlp)"),
    calibration("calibration: {resample: yes, domains: [{name: web, tokens: web.h5}]}",
                "config.yaml:2:25: calibration.resample = yes (permitted: true, false)"),
    calibration("calibration: {domains: web.h5}",
                "config.yaml:2:24: calibration.domains = web.h5 (a list of maps is needed)"),
    calibration("calibration: {domains: [web.h5]}",
                "config.yaml:2:25: calibration.domains[0] = web.h5 (a map of keys is needed)"),
    calibration("calibration: {domains: [{name: web, tokens: web.h5, sequences: 0}]}",
                "config.yaml:2:64: calibration.domains[0].sequences = 0 (`all` or an integer of at "
                "least 1 is "
                "needed)"),
    calibration(
        "calibration: {domains: [{name: web, tokens: web.h5, weight: -1}]}",
        "config.yaml:2:61: calibration.domains[0].weight = -1 (a number of at least 0 is needed)"),
    calibration("calibration: {domains: [{name: \"a\\nb\", tokens: web.h5}]}",
                "config.yaml:2:32: calibration.domains[0].name = \"a\\x0ab\" (no line breaks, tabs "
                "or NULs)"),
    // values that do not work (yet)
    model("model: {path: models/m, dtype: int8}",
          "config.yaml:1:32: model.dtype = int8 (permitted: as_stored, float64, float32, bfloat16, "
          "float16)"),
    rest("device: gpu", "config.yaml:4:9: device = gpu (permitted: auto, cpu, cuda)"),
    rest("importance: {criterion: tailor}",
         "config.yaml:4:25: importance.criterion = tailor (permitted: taylor, taylor_gate, "
         "taylor_gate_sample, wanda_sp, flap, obs, magnitude, random). Did you mean 'taylor'?"),
    rest("importance: {criterion: sparsegpt}",
         "config.yaml:4:25: importance.criterion = sparsegpt (permitted: taylor, taylor_gate, "
         "taylor_gate_sample, wanda_sp, flap, obs, magnitude, random)"),
    rest("importance: {exact_reduction: true}",
         "config.yaml:4:31: importance.exact_reduction = true (permitted: false)"),
    calibration("calibration: {adapt: gap, domains: [{name: web, tokens: web.h5}]}",
                "config.yaml:2:22: calibration.adapt = gap (permitted: none, loss_gap)"),
    calibration(
        "calibration: {combine: min, domains: [{name: web, tokens: web.h5}]}",
        "config.yaml:2:24: calibration.combine = min (permitted: pooled, weighted_mean, max, "
        "rank_mean, worst_domain)"),
    calibration("calibration: {overlap: 3, domains: [{name: web, tokens: web.h5}]}",
                "config.yaml:2:24: calibration.overlap = 3 (a list of integers is needed)"),
    calibration(
        "calibration: {domains: [{name: web, tokens: web.h5, objective: ranking}]}",
        "config.yaml:2:64: calibration.domains[0].objective = ranking (permitted: causal_lm, sft, "
        "margin)"),
    prune("prune: {target: 0.5, attention_unit: group}",
          "config.yaml:3:38: prune.attention_unit = group (permitted: query_head, equal_per_group, "
          "kv_group)"),
    prune("prune: {target: 0.5, width_multiple: 0}",
          "config.yaml:3:38: prune.width_multiple = 0 (an integer of at least 1 is needed)"),
    rest("execution: {order: layer-wise}",
         "config.yaml:4:20: execution.order = layer-wise (permitted: auto, sample_major, "
         "layer_major)"),
    rest("execution: {attention: cudnn}",
         "config.yaml:4:24: execution.attention = cudnn (permitted: auto, flash, math)"),
    rest("export: [{format: gguf, path: x}]",
         "config.yaml:4:19: export[0].format = gguf (permitted: exact, uniform)"),
    rest("export: [{format: exact, path: x, schema: per_layer_config}]",
         "config.yaml:4:43: export[0].schema = per_layer_config (permitted: own)"),
    // rules over several keys
    rest("importance: {criterion: taylor_gate, reduction: scores}",
         "config.yaml:4:49: importance.reduction = scores (only criterion taylor has gradients to "
         "reduce). Remove it, "
         "or use criterion taylor."),
    prune(
        "prune: {target: 0.5, compensation: mean}",
        "config.yaml:3:36: prune.compensation = mean (only criterion flap takes the means of what "
        "o_proj and down_proj read, and importance.criterion = taylor). Remove it, or use "
        "criterion flap."),
    calibration(
        "calibration: {domains: [{name: web, tokens: web.h5}, {name: web, tokens: math.h5}]}",
        "config.yaml:2:61: calibration.domains[1].name = web (calibration.domains[0] has this name "
        "already)"),
    calibration("calibration: {domains: [{name: web, tokens: web.h5, weight: 0}]}",
                "config.yaml:2:24: the weights of calibration.domains sum to 0 (at least one must "
                "be above 0)"),
    rest("evaluation: {perplexity: [{name: p, tokens: wiki.h5}, {name: p, tokens: web.h5}]}",
         "config.yaml:4:62: evaluation.perplexity[1].name = p (evaluation.perplexity[0] has this "
         "name already)"),
    rest("evaluation: {perplexity: [{name: p, tokens: wiki.h5}], multiple_choice: [{name: p, "
         "tokens: web.h5}]}",
         "config.yaml:4:81: evaluation.multiple_choice[0].name = p (evaluation.perplexity[0] has "
         "this name already)"),
    rest(
        "evaluation: {multiple_choice: [{name: p, tokens: q.h5}]}",
        "config.yaml:4:50: evaluation.multiple_choice[0].tokens: 'q.h5' does not exist (looked in: "
        "the config's directory). Write it with launch/tokenize.py or check the path.",
        66),
    rest("evaluation: {exact_match: [{name: e, tokens: wiki.h5}, {name: e, tokens: web.h5}]}",
         "config.yaml:4:63: evaluation.exact_match[1].name = e (evaluation.exact_match[0] has this "
         "name already)"),
    rest("evaluation: {exact_match: [{name: e, tokens: wiki.h5, max_new_tokens: 0}]}",
         "config.yaml:4:71: evaluation.exact_match[0].max_new_tokens = 0 (an integer from 1 to "
         "1048576 is needed)"),
    rest("export: [{format: exact, path: a/b}, {format: uniform, path: a/./b/}]",
         "config.yaml:4:62: export[1].path = a/b (another export goes to the same path)"),
    // the command line
    set({"prune.target=2"},
        "--set prune.target: prune.target = 2 (a number above 0 and below 1 is needed)"),
    set({"prune.tarket=0.2"},
        "--set prune.tarket: unknown key 'prune.tarket'. Did you mean 'prune.target'?"),
    set({"calibration.domains.3.weight=1"},
        "--set calibration.domains.3.weight: the key cannot be set (the list has 1 element, "
        "numbered from 0)"),
    set({"prune.target.x=1"}, "--set prune.target.x: the key cannot be set ('x' is no key of 0.5)"),
    set({"prune.target"},
        "--set prune.target: 'prune.target' is no override. Write --set key=value, for example "
        "--set prune.target=0.3."),
    set({"=3"},
        "--set : '=3' is no override. Write --set key=value, for example --set prune.target=0.3."),
    set({"prune.kinds=[mlp"}, "--set prune.kinds: invalid YAML: end of sequence flow not found"),
    set({"prune.kinds=*a"},
        "--set prune.kinds: invalid YAML: the referenced anchor is not defined"),
    // everything at once
    {"model: {path: models/m, dtype: f32}",
     nullptr,
     "prune: {target: 7}",
     "devise: cpu",
     {"x=1"},
     "config.yaml:1:32: model.dtype = f32 (permitted: as_stored, float64, float32, bfloat16, "
     "float16)\n"
     "config.yaml:3:17: prune.target = 7 (a number above 0 and below 1 is needed)\n"
     "config.yaml:4:1: unknown key 'devise'. Did you mean 'device'?\n"
     "--set x: unknown key 'x'. Keys here: model, device, parallel, calibration, importance, "
     "prune, refit, execution, evaluation, checkpoint, export.",
     78},
};

INSTANTIATE_TEST_SUITE_P(Table, ConfigMessages, ::testing::ValuesIn(kRows));

class ConfigFile : public ConfigTest {};

TEST_F(ConfigFile, MustBeThereAndBeAFile) {
  const auto error_of = [&](const std::filesystem::path& path, ExitCode code) {
    try {
      read_run_config(path, {}, ConfigUse::run);
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), code);
      return without_directory(e.what());
    }
    return std::string("(accepted)");
  };
  EXPECT_EQ(
      error_of(directory_ / "none.yaml", ExitCode::missing_input),
      "cannot open 'none.yaml' (No such file or directory). Check the path of the configuration.\n"
      "1 error. Nothing was started.");
  EXPECT_EQ(error_of(directory_ / "models", ExitCode::config),
            "'models' is not a regular file. Check the path of the configuration.\n"
            "1 error. Nothing was started.");
}

TEST_F(ConfigFile, MustBeAMap) {
  EXPECT_EQ(messages("- a\n- b\n"),
            "config.yaml:1:1: the file is no map of keys. Start from configs/reference.yaml.\n"
            "1 error. Nothing was started.");
  EXPECT_EQ(messages("", {}, ConfigUse::eval),
            "config.yaml: model.path is missing (it is required). For example: model: {path: "
            "models/my-model}\n"
            "1 error. Nothing was started.");
}

}  // namespace
}  // namespace espalier
