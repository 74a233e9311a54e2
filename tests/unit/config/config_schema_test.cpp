#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>

#include "config_fixture.h"

namespace espalier {
namespace {

class ConfigSchema : public ConfigTest {
 protected:
  /// A file with every list filled, so that every key of the schema can be set on it.
  static std::string base() {
    return minimal() +
           "evaluation: {perplexity: [{name: p, tokens: wiki.h5}], multiple_choice: [{name: m, "
           "tokens: wiki.h5}], exact_match: [{name: e, tokens: wiki.h5}]}\n"
           "refit: {domains: [{name: r, tokens: wiki.h5}]}\n"
           "export: [{format: exact, path: export/exact}]\n";
  }
  /// The same, with what some values of the key need.
  static std::string base_for(const std::string& key) {
    return base() + (key == "prune.compensation" ? "importance: {criterion: flap}\n" : "");
  }
};

// Another valid value for every key. A key that is missing here fails the test below.
const std::map<std::string, std::string> kOtherValues{
    {"model.path", "models"},
    {"model.dtype", "float32"},
    {"device", "cpu"},
    {"parallel.tensor", "2"},
    {"parallel.rebalance", "1.5"},
    {"calibration.domains", "[{name: other, tokens: math.h5}, {name: web, tokens: web.h5}]"},
    {"calibration.domains[].name", "other"},
    {"calibration.domains[].tokens", "math.h5"},
    {"calibration.domains[].sequences", "3"},
    {"calibration.domains[].weight", "2.5"},
    {"calibration.domains[].objective", "sft"},
    {"calibration.combine", "weighted_mean"},
    {"calibration.resample", "true"},
    {"calibration.adapt", "loss_gap"},
    {"calibration.overlap", "[7, 2]"},
    {"calibration.micro_batch_tokens", "77"},
    {"calibration.non_finite", "skip-batch"},
    {"calibration.max_skipped", "2"},
    {"calibration.seed", "5"},
    {"importance.criterion", "magnitude"},
    {"importance.normalization", "none"},
    {"importance.reduction", "scores"},
    {"importance.accumulate", "bfloat16"},
    {"importance.damping", "0.5"},
    {"importance.curvature", "scalar"},
    {"prune.kinds", "[attention]"},
    {"prune.attention_unit", "kv_group"},
    {"prune.ranking", "local"},
    {"prune.target", "0.125"},
    {"prune.measure", "total_parameters"},
    {"prune.iterations", "9"},
    {"prune.shape", "geometric"},
    {"prune.rate", "-1"},
    {"prune.width_multiple", "64"},
    {"prune.compensation", "mean"},
    {"prune.protect.first_layers", "0"},
    {"prune.protect.last_layers", "2"},
    {"prune.protect.layers", "[4, 2]"},
    {"prune.protect.min_heads", "0"},
    {"prune.protect.min_channels", "8"},
    {"refit.enabled", "true"},
    {"refit.domains", "calibration"},
    {"refit.domains[].name", "other"},
    {"refit.domains[].tokens", "math.h5"},
    {"refit.domains[].sequences", "3"},
    {"refit.domains[].weight", "2.5"},
    {"refit.domains[].objective", "sft"},
    {"refit.sequences", "7"},
    {"refit.matrices", "all"},
    {"refit.ridge", "0.25"},
    {"refit.shrink_to", "obs"},
    {"execution.order", "sample_major"},
    {"execution.boundaries", "files"},
    {"execution.scratch", "elsewhere"},
    {"execution.recompute", "all"},
    {"execution.share_prompts", "false"},
    {"execution.attention", "flash"},
    {"execution.collectives", "mpi"},
    {"evaluation.every", "2"},
    {"evaluation.perplexity", "[]"},
    {"evaluation.perplexity[].name", "q"},
    {"evaluation.perplexity[].tokens", "web.h5"},
    {"evaluation.multiple_choice", "[]"},
    {"evaluation.multiple_choice[].name", "q"},
    {"evaluation.multiple_choice[].tokens", "web.h5"},
    {"evaluation.exact_match", "[]"},
    {"evaluation.exact_match[].name", "q"},
    {"evaluation.exact_match[].tokens", "web.h5"},
    {"evaluation.exact_match[].max_new_tokens", "7"},
    {"checkpoint.keep_last", "1"},
    {"checkpoint.keep_every", "3"},
    {"export", "[]"},
    {"export[].format", "uniform"},
    {"export[].path", "elsewhere"},
};

// What a resumed run may change ; everything else is frozen.
bool is_free(const std::string& key) {
  return key == "device" || key == "calibration.micro_batch_tokens" ||
         key == "calibration.overlap" || key.starts_with("parallel.") ||
         key.starts_with("refit.") || key.starts_with("execution.") ||
         key.starts_with("checkpoint.");
}

TEST_F(ConfigSchema, EveryKeyCanBeSetAndIsFreeOrFrozen) {
  std::set<std::string> keys;
  for (const KeyInfo& key : config_keys()) {
    SCOPED_TRACE(key.key);
    keys.insert(key.key);
    EXPECT_EQ(key.free_at_resume, is_free(key.key));
    ASSERT_TRUE(kOtherValues.contains(key.key)) << "this test needs another value for the key";
    const std::string path = std::regex_replace(key.key, std::regex("\\[\\]"), "[0]");
    const RunConfig before = read(base_for(key.key));
    const RunConfig after = read(base_for(key.key), {path + "=" + kOtherValues.at(key.key)});
    EXPECT_NE(to_yaml(after), to_yaml(before)) << "the value had no effect";
    EXPECT_EQ(to_yaml(read(to_yaml(after))), to_yaml(after)) << "the value is lost when printed";
    EXPECT_EQ(after.origin.at(path), "--set");
    const std::vector<ConfigDifference> differences = frozen_differences(before, after);
    ASSERT_EQ(differences.size(), key.free_at_resume ? 0u : 1u);
    if (!differences.empty()) {
      EXPECT_EQ(differences[0].key, path);
      EXPECT_NE(differences[0].before, differences[0].after);
    }
  }
  for (const auto& [key, value] : kOtherValues)
    EXPECT_TRUE(keys.contains(key)) << key << " is no key";
}

TEST_F(ConfigSchema, EveryListedValueWorks) {
  for (const KeyInfo& key : config_keys())
    for (const std::string& value : key.values) {
      if (key.type != "string") continue;
      const std::string path = std::regex_replace(key.key, std::regex("\\[\\]"), "[0]");
      EXPECT_EQ(messages(base_for(key.key), {path + "=" + value}), "(accepted)")
          << path << "=" << value;
    }
}

TEST_F(ConfigSchema, KeysAreDescribed) {
  for (const KeyInfo& key : config_keys()) {
    EXPECT_GT(key.meaning.size(), 20u) << key.key;
    EXPECT_FALSE(key.type.empty()) << key.key;
    EXPECT_FALSE(key.default_value.empty()) << key.key;
    EXPECT_NE(key.default_value, "(none)") << key.key;
  }
}

TEST_F(ConfigSchema, TrivialKeysAreAcceptedAndListedNowhere) {
  EXPECT_EQ(messages(base(), {"importance.exact_reduction=false", "export.0.schema=own"}),
            "(accepted)");
  const std::string reference = reference_yaml();
  for (const char* name : {"exact_reduction", "schema:"})
    EXPECT_EQ(reference.find(name), std::string::npos) << name;
}

TEST_F(ConfigSchema, FrozenListsAreComparedAsAWholeWhenTheirLengthDiffers) {
  const RunConfig before = read(base());
  const RunConfig after = read(base(), {"evaluation.perplexity=[]"});
  const auto differences = frozen_differences(before, after);
  ASSERT_EQ(differences.size(), 1u);
  EXPECT_EQ(differences[0].key, "evaluation.perplexity");
  EXPECT_EQ(without_directory(differences[0].before), "[{name: p, tokens: wiki.h5}]");
  EXPECT_EQ(differences[0].after, "[]");
}

std::string committed_reference() {
  std::ifstream stream(std::string(ESPALIER_SOURCE_DIR) + "/configs/reference.yaml",
                       std::ios::binary);
  std::stringstream text;
  text << stream.rdbuf();
  return text.str();
}

TEST_F(ConfigSchema, TheCommittedReferenceIsTheGeneratedOne) {
  EXPECT_EQ(committed_reference(), reference_yaml())
      << "Write it anew: espalier config --reference > configs/reference.yaml";
}

TEST_F(ConfigSchema, TheCommittedConfigurationsAreValid) {
  const std::filesystem::path directory = std::filesystem::path(ESPALIER_SOURCE_DIR) / "configs";
  std::map<std::string, std::size_t> found;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory)) {
    if (!entry.is_regular_file()) continue;
    SCOPED_TRACE(entry.path().string());
    EXPECT_EQ(entry.path().extension(), ".yaml");
    ++found[entry.path().parent_path().lexically_relative(directory).string()];
    const RunConfig c = read_run_config(entry.path(), {}, ConfigUse::print);
    EXPECT_TRUE(c.prune.target.has_value());
    EXPECT_FALSE(c.calibration.domains.empty());
    EXPECT_TRUE(c.notes.empty()) << c.notes.front();
  }
  EXPECT_GE(found["."], 4u);
  EXPECT_GE(found["gisp"], 13u);
  EXPECT_GE(found["multi_domain"], 2u);
}

TEST_F(ConfigSchema, TheReferenceHoldsTheDefaults) {
  std::filesystem::create_directories(directory_ / "data");
  std::filesystem::create_directories(directory_ / "models" / "my-model");
  std::ofstream(directory_ / "data" / "web.h5") << "x";
  const RunConfig reference = read(reference_yaml());
  EXPECT_TRUE(reference.notes.empty());
  const RunConfig defaults = read(
      "model: {path: models/my-model}\n"
      "calibration: {domains: [{name: web, tokens: data/web.h5}]}\n"
      "prune: {target: 0.5}\n");
  EXPECT_EQ(to_yaml(reference), to_yaml(defaults));
  for (const auto& [key, origin] : reference.origin) EXPECT_NE(origin, "default") << key;
}

TEST_F(ConfigSchema, TheCommentedElementsOfTheReferenceAreValid) {
  std::filesystem::create_directories(directory_ / "data");
  std::filesystem::create_directories(directory_ / "models" / "my-model");
  for (const char* name : {"web.h5", "wikitext2.h5", "arc_easy.h5", "gsm8k.h5"})
    std::ofstream(directory_ / "data" / name) << "x";
  std::string text = std::regex_replace(
      reference_yaml(), std::regex("(perplexity|multiple_choice|exact_match): \\[\\]"), "$1:");
  text = std::regex_replace(text, std::regex("domains: calibration"), "domains:");
  text = std::regex_replace(text, std::regex("export: \\[\\]"), "export:");
  text = std::regex_replace(text, std::regex("# - "), "- ");
  text = std::regex_replace(
      text, std::regex("#   (tokens|path|max_new_tokens|sequences|weight|objective): "), "  $1: ");
  const RunConfig c = read(text);
  ASSERT_EQ(c.evaluation.perplexity.size(), 1u);
  EXPECT_EQ(c.evaluation.perplexity[0].name, "wikitext2");
  ASSERT_EQ(c.evaluation.multiple_choice.size(), 1u);
  EXPECT_EQ(c.evaluation.multiple_choice[0].name, "arc_easy");
  ASSERT_EQ(c.evaluation.exact_match.size(), 1u);
  EXPECT_EQ(c.evaluation.exact_match[0].max_new_tokens, 256);
  ASSERT_TRUE(c.refit.domains.has_value());
  ASSERT_EQ(c.refit.domains->size(), 1u);
  EXPECT_EQ(c.refit.domains->front().name, "web");
  ASSERT_EQ(c.exports.size(), 1u);
  EXPECT_EQ(c.exports[0].path, "export/exact");
}

TEST_F(ConfigSchema, NoLineOfTheReferenceIsTooLong) {
  std::istringstream stream(reference_yaml());
  for (std::string line; std::getline(stream, line);) EXPECT_LE(line.size(), 100u) << line;
}

}  // namespace
}  // namespace espalier
