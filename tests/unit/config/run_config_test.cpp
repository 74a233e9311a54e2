#include "espalier/config/run_config.h"

#include <cstdlib>

#include "config_fixture.h"

namespace espalier {
namespace {

// The complete file of the documentation, with the values that work.
constexpr const char* kComplete = R"(
model: {path: models/m, dtype: float32}
device: cpu
parallel: {tensor: 8, rebalance: 1.25}
calibration:
  domains:
    - {name: web,  tokens: web.h5,  sequences: 128, weight: 1.5, objective: causal_lm}
    - {name: math, tokens: math.h5, objective: sft}
  combine: weighted_mean
  resample: true
  adapt: none
  micro_batch_tokens: 4096
  seed: 7
importance: {criterion: taylor, normalization: param_mean, reduction: scores, accumulate: float64, exact_reduction: false}
prune:
  kinds: [mlp]
  attention_unit: kv_group
  ranking: global_by_kind
  target: 0.25
  measure: parameters
  iterations: 12
  shape: exponential
  rate: -2.5
  protect: {first_layers: 2, last_layers: 0, layers: [5, 3, 5], min_heads: 2, min_channels: 64}
  width_multiple: 32
execution: {order: sample_major, recompute: all, attention: math}
evaluation:
  every: 3
  perplexity: [{name: wikitext2, tokens: wiki.h5}]
  multiple_choice: []
  exact_match: [{name: gsm8k, tokens: wiki.h5, max_new_tokens: 32}]
checkpoint: {keep_last: 5, keep_every: 0}
export: [{format: exact, path: export/exact, schema: own}, {format: uniform, path: ../u/}]
)";

class RunConfigTest : public ConfigTest {};

TEST_F(RunConfigTest, AMinimalFileHasTheDocumentedDefaults) {
  const RunConfig c = read(minimal());
  EXPECT_EQ(c.source, file());
  EXPECT_EQ(c.model_path, directory_ / "models/m");
  EXPECT_FALSE(c.dtype.has_value());
  EXPECT_EQ(c.device, DeviceChoice::automatic);
  EXPECT_EQ(c.tensor, 1);
  EXPECT_EQ(c.rebalance, 1.10);
  ASSERT_EQ(c.calibration.domains.size(), 1u);
  const DomainConfig& domain = c.calibration.domains[0];
  EXPECT_EQ(domain.name, "web");
  EXPECT_EQ(domain.tokens, directory_ / "web.h5");
  EXPECT_FALSE(domain.sequences.has_value());
  EXPECT_EQ(domain.weight, 1.0);
  EXPECT_EQ(domain.objective, Objective::causal_lm);
  EXPECT_EQ(c.calibration.combine, Combine::pooled);
  EXPECT_FALSE(c.calibration.resample);
  EXPECT_EQ(c.calibration.micro_batch_tokens, 8192);
  EXPECT_EQ(c.calibration.seed, 0);
  EXPECT_EQ(c.importance.criterion, Criterion::taylor);
  EXPECT_EQ(c.importance.normalization, Normalization::gisp);
  EXPECT_EQ(c.importance.reduction, Reduction::gradients);
  EXPECT_EQ(c.importance.accumulate, Accumulate::automatic);
  EXPECT_TRUE(c.prune.attention);
  EXPECT_TRUE(c.prune.mlp);
  EXPECT_EQ(c.prune.attention_unit, AttentionUnit::query_head);
  EXPECT_EQ(c.prune.ranking, Ranking::global);
  EXPECT_EQ(c.prune.target, 0.5);
  EXPECT_EQ(c.prune.measure, Measure::structures);
  EXPECT_EQ(c.prune.iterations, 100);
  EXPECT_EQ(c.prune.shape, ScheduleShape::linear);
  EXPECT_EQ(c.prune.rate, 3.0);
  EXPECT_FALSE(c.prune.protect.first_layers.has_value());
  EXPECT_EQ(c.prune.protect.last_layers, 1);
  EXPECT_TRUE(c.prune.protect.layers.empty());
  EXPECT_EQ(c.prune.protect.min_heads, 1);
  EXPECT_EQ(c.prune.protect.min_channels, 1);
  EXPECT_EQ(c.prune.width_multiple, 1);
  EXPECT_EQ(c.order, Order::automatic);
  EXPECT_EQ(c.recompute, Recompute::automatic);
  EXPECT_EQ(c.attention, AttentionBackend::automatic);
  EXPECT_EQ(c.evaluation.every, 10);
  EXPECT_TRUE(c.evaluation.perplexity.empty());
  EXPECT_EQ(c.keep_last, 2);
  EXPECT_EQ(c.keep_every, 10);
  EXPECT_TRUE(c.exports.empty());
  EXPECT_TRUE(c.notes.empty());
}

TEST_F(RunConfigTest, ReadsEveryKeyOfACompleteFile) {
  const RunConfig c = read(kComplete);
  EXPECT_EQ(c.dtype, DType::f32);
  EXPECT_EQ(c.device, DeviceChoice::cpu);
  EXPECT_EQ(c.tensor, 8);
  EXPECT_EQ(c.rebalance, 1.25);
  ASSERT_EQ(c.calibration.domains.size(), 2u);
  EXPECT_EQ(c.calibration.domains[0].sequences, 128);
  EXPECT_EQ(c.calibration.domains[0].weight, 1.5);
  EXPECT_EQ(c.calibration.domains[1].objective, Objective::sft);
  EXPECT_EQ(c.calibration.combine, Combine::weighted_mean);
  EXPECT_TRUE(c.calibration.resample);
  EXPECT_EQ(c.calibration.micro_batch_tokens, 4096);
  EXPECT_EQ(c.calibration.seed, 7);
  EXPECT_EQ(c.importance.normalization, Normalization::param_mean);
  EXPECT_EQ(c.importance.reduction, Reduction::scores);
  EXPECT_EQ(c.importance.accumulate, Accumulate::float64);
  EXPECT_FALSE(c.prune.attention);
  EXPECT_TRUE(c.prune.mlp);
  EXPECT_EQ(c.prune.attention_unit, AttentionUnit::kv_group);
  EXPECT_EQ(c.prune.ranking, Ranking::global_by_kind);
  EXPECT_EQ(c.prune.target, 0.25);
  EXPECT_EQ(c.prune.measure, Measure::parameters);
  EXPECT_EQ(c.prune.iterations, 12);
  EXPECT_EQ(c.prune.shape, ScheduleShape::exponential);
  EXPECT_EQ(c.prune.rate, -2.5);
  EXPECT_EQ(c.prune.protect.first_layers, 2);
  EXPECT_EQ(c.prune.protect.last_layers, 0);
  EXPECT_EQ(c.prune.protect.layers, (std::vector<std::int64_t>{3, 5}));
  EXPECT_EQ(c.prune.protect.min_heads, 2);
  EXPECT_EQ(c.prune.protect.min_channels, 64);
  EXPECT_EQ(c.prune.width_multiple, 32);
  EXPECT_EQ(c.order, Order::sample_major);
  EXPECT_EQ(c.recompute, Recompute::all);
  EXPECT_EQ(c.attention, AttentionBackend::math);
  EXPECT_EQ(c.evaluation.every, 3);
  ASSERT_EQ(c.evaluation.perplexity.size(), 1u);
  EXPECT_EQ(c.evaluation.perplexity[0].name, "wikitext2");
  EXPECT_EQ(c.evaluation.perplexity[0].tokens, directory_ / "wiki.h5");
  ASSERT_EQ(c.evaluation.exact_match.size(), 1u);
  EXPECT_EQ(c.evaluation.exact_match[0].name, "gsm8k");
  EXPECT_EQ(c.evaluation.exact_match[0].max_new_tokens, 32);
  EXPECT_EQ(c.keep_last, 5);
  EXPECT_EQ(c.keep_every, 0);
  ASSERT_EQ(c.exports.size(), 2u);
  EXPECT_EQ(c.exports[0].format, ExportFormat::exact);
  EXPECT_EQ(c.exports[0].path, "export/exact");
  EXPECT_EQ(c.exports[1].format, ExportFormat::uniform);
  EXPECT_EQ(c.exports[1].path, "../u");
}

TEST_F(RunConfigTest, PrintedYamlReproducesTheConfiguration) {
  for (const std::string& text : {minimal(), std::string(kComplete)}) {
    const RunConfig c = read(text);
    const std::string printed = to_yaml(c);
    const RunConfig again = read(printed);
    EXPECT_EQ(to_yaml(again), printed);
    EXPECT_TRUE(frozen_differences(c, again).empty());
    EXPECT_EQ(again.tensor, c.tensor);
    EXPECT_EQ(again.recompute, c.recompute);
  }
}

TEST_F(RunConfigTest, PrintedTextSurvivesOddNames) {
  const std::filesystem::path odd = directory_ / "a b: #${X} \"q\" é.h5";
  std::ofstream(odd) << "x";
  RunConfig c = read(minimal());
  c.calibration.domains[0].tokens = odd;
  c.calibration.domains[0].name = "yes, no: {1}";
  const RunConfig again = read(to_yaml(c));
  EXPECT_EQ(again.calibration.domains[0].tokens, odd);
  EXPECT_EQ(again.calibration.domains[0].name, "yes, no: {1}");
}

TEST_F(RunConfigTest, NumbersAreReproducedToTheLastBit) {
  RunConfig c = read(minimal());
  for (const double target : {0.1, 1.0 / 3.0, 1e-7, 0.9999999999999999}) {
    c.prune.target = target;
    EXPECT_EQ(read(to_yaml(c)).prune.target, target);
  }
}

TEST_F(RunConfigTest, OverridesReplaceKeysAndListElements) {
  const RunConfig c =
      read(kComplete, {"prune.target=0.75", "calibration.domains.0.weight=2",
                       "calibration.domains[1].name=gsm", "prune.kinds=[attention, mlp]",
                       "prune.protect.layers=[1]", "importance={criterion: random}",
                       "evaluation.perplexity=[]"});
  EXPECT_EQ(c.prune.target, 0.75);
  EXPECT_EQ(c.calibration.domains[0].weight, 2.0);
  EXPECT_EQ(c.calibration.domains[1].name, "gsm");
  EXPECT_TRUE(c.prune.attention);
  EXPECT_EQ(c.prune.protect.layers, std::vector<std::int64_t>{1});
  EXPECT_EQ(c.importance.criterion, Criterion::random);
  EXPECT_EQ(c.importance.normalization, Normalization::gisp);
  EXPECT_TRUE(c.evaluation.perplexity.empty());
  EXPECT_EQ(c.prune.iterations, 12);
}

TEST_F(RunConfigTest, OverridesMakeMissingSections) {
  EXPECT_EQ(read(minimal(), {"prune.protect.last_layers=0", "parallel.tensor=3"})
                .prune.protect.last_layers,
            0);
  const RunConfig c = read("", {"model.path=models/m", "prune.target=0.1",
                                "calibration.domains=[{name: web, tokens: web.h5}]"});
  EXPECT_EQ(c.calibration.domains[0].name, "web");
}

TEST_F(RunConfigTest, EveryValueKnowsWhereItCameFrom) {
  const RunConfig c =
      read("model:\n  path: ${ESPALIER_TEST_DIR}/models/m\n" + minimal().substr(24),
           {"prune.iterations=3", "calibration.domains.0.weight=2"}, ConfigUse::print);
  const auto origin = [&](const char* key) { return without_directory(c.origin.at(key)); };
  EXPECT_EQ(origin("prune.target"), "config.yaml:4");
  EXPECT_EQ(origin("prune.iterations"), "--set");
  EXPECT_EQ(origin("prune.shape"), "default");
  EXPECT_EQ(origin("calibration.domains[0].name"), "config.yaml:3");
  EXPECT_EQ(origin("calibration.domains[0].weight"), "--set");
  EXPECT_EQ(origin("calibration.domains[0].objective"), "default");
  EXPECT_EQ(origin("model.path"), "config.yaml:2, environment");
}

TEST_F(RunConfigTest, PathsExpand) {
  const std::string home = std::getenv("HOME") != nullptr ? std::getenv("HOME") : "";
  ::setenv("HOME", directory_.c_str(), 1);
  EXPECT_EQ(read(minimal(), {"model.path=${ESPALIER_TEST_DIR}/models/m"}).model_path,
            directory_ / "models/m");
  EXPECT_EQ(read(minimal(), {"model.path=~/models/../models/m/"}).model_path,
            directory_ / "models/m");
  EXPECT_EQ(read(minimal(), {"model.path=" + directory_.string()}).model_path, directory_);
  ::setenv("HOME", home.c_str(), 1);
}

TEST_F(RunConfigTest, EachUseNeedsWhatItReads) {
  const std::string no_target =
      "model: {path: models/m}\ncalibration: {domains: [{name: a, tokens: web.h5}]}\n";
  const std::string no_domains = "model: {path: models/m}\n";
  const std::string nothing_there =
      "model: {path: nowhere}\ncalibration: {domains: [{name: a, tokens: none.h5}]}\nprune: "
      "{target: 0.5}\n";
  EXPECT_NE(messages(no_target), "(accepted)");
  EXPECT_EQ(messages(no_target, {}, ConfigUse::score), "(accepted)");
  EXPECT_NE(messages(no_domains, {}, ConfigUse::score), "(accepted)");
  EXPECT_EQ(messages(no_domains, {}, ConfigUse::eval), "(accepted)");
  EXPECT_EQ(messages(no_domains, {}, ConfigUse::print), "(accepted)");
  EXPECT_EQ(messages(nothing_there, {}, ConfigUse::print), "(accepted)");
  EXPECT_NE(messages(nothing_there, {}, ConfigUse::score), "(accepted)");
}

TEST_F(RunConfigTest, NotesAreNoErrors) {
  const RunConfig c = read(minimal(), {"prune.rate=1", "calibration.resample=true",
                                       "evaluation.perplexity=[{name: p, tokens: ./web.h5}]"});
  ASSERT_EQ(c.notes.size(), 3u);
  EXPECT_EQ(c.notes[0],
            "--set prune.rate: prune.rate has no effect (only shape exponential reads it)");
  EXPECT_EQ(c.notes[1],
            "--set calibration.resample: calibration.domains[0] uses all its rows, so resample "
            "changes nothing "
            "there");
  EXPECT_EQ(without_directory(c.notes[2]),
            "config.yaml:2:45: calibration.domains[0] and evaluation 'p' read the same file: that "
            "perplexity is "
            "measured on calibration data");
}

/// Paths of any bytes come back from what is printed.
TEST_F(RunConfigTest, PathsOfAnyBytesArePrintedAndReadBack) {
  const std::string names[] = {"caf\xe9",  "a\nb: c",  "t\tb",     "\x1b[1m", "a\\x41", "\\",
                               "~x/y",     "a\\b\xff", "${X}\xff", "#x",      " x ",    "é\xc3",
                               "'\"\\x5c", "$${X}",    "no",       "1e3",     "- a",    "x\r\ny"};
  for (const std::string& name : names) {
    RunConfig config = read(minimal());
    config.exports.push_back({ExportFormat::exact, name});
    config.model_path = directory_ / name;
    const RunConfig again = read(to_yaml(config), {}, ConfigUse::print);
    ASSERT_EQ(again.exports.size(), 1u);
    EXPECT_EQ(again.exports[0].path.string(), name);
    EXPECT_EQ(again.model_path.string(), (directory_ / name).string());
    EXPECT_TRUE(frozen_differences(config, again).empty()) << name;
  }
}

TEST_F(RunConfigTest, EscapesInPathsAreBytes) {
  const auto path_of = [&](const std::string& value) {
    return read(minimal(), {"model.path=" + value}, ConfigUse::print).model_path.string();
  };
  EXPECT_EQ(path_of("/a/caf\\xe9"), "/a/caf\xe9");
  EXPECT_EQ(path_of("/a/\\x5cx41"), "/a/\\x41");
  EXPECT_EQ(path_of("/a/b\\c"), "/a/b\\c");
  ::setenv("ESPALIER_TEST_ODD", "\\x41\xff", 1);  // what a variable holds stands for itself
  EXPECT_EQ(path_of("/a/${ESPALIER_TEST_ODD}\\x42"),
            "/a/\\x41\xff"
            "B");
  EXPECT_NE(messages(minimal(), {"model.path=/a\\x00b"}).find("NUL"), std::string::npos);
}

/// `link/../x` is beside what the link points to; so it is for the configuration itself.
TEST_F(RunConfigTest, LinksAreRespected) {
  namespace fs = std::filesystem;
  fs::create_directories(directory_ / "real/deep");
  fs::create_directories(directory_ / "real/m");
  fs::remove(directory_ / "link");
  fs::create_directory_symlink("real/deep", directory_ / "link");
  const RunConfig direct = read(minimal(), {"model.path=link/../m"});
  EXPECT_EQ(fs::canonical(direct.model_path), fs::canonical(directory_ / "real/m"));
  EXPECT_EQ(read(minimal(), {"model.path=models/../models/m/."}).model_path,
            directory_ / "models/m");
  // The same words from a configuration that is named through the link, and that is a link.
  fs::rename(file(), directory_ / "real/other.yaml");
  const RunConfig through =
      read_run_config(directory_ / "link/../other.yaml", {"model.path=m"}, ConfigUse::print);
  EXPECT_EQ(fs::canonical(through.model_path), fs::canonical(directory_ / "real/m"));
  fs::create_symlink("real/other.yaml", directory_ / "alias.yaml");
  EXPECT_EQ(read_run_config(directory_ / "alias.yaml", {"model.path=models/m"}, ConfigUse::run)
                .model_path,
            directory_ / "models/m");
}

TEST_F(RunConfigTest, WhatCannotBeLookedAtIsNotMissing) {
  std::filesystem::remove(directory_ / "loop");
  std::filesystem::create_symlink("loop", directory_ / "loop");
  ExitCode code{};
  const std::string text = messages(minimal(), {"model.path=loop"}, ConfigUse::run, &code);
  EXPECT_NE(text.find("symbolic links"), std::string::npos) << text;
  EXPECT_EQ(code, ExitCode::missing_input);
}

}  // namespace
}  // namespace espalier
