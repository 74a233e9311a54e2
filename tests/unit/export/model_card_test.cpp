#include <gtest/gtest.h>

#include "unit/export/sample_checkpoint.h"

namespace espalier {
namespace {

using namespace testing;

/// The lines between the first two "---" of the card of an export of a source with `readme`.
std::string metadata_of(const fs::path& out) {
  const std::string card = read_text(out / "README.md");
  EXPECT_TRUE(card.starts_with("---\n"));
  return card.substr(4, card.find("\n---\n", 4) - 3);
}

struct CardCase {
  std::string card(const std::string& directory, const std::string& readme,
                   const ModelCard& extra = {}) {
    const SampleCheckpoint source(place.path() / directory, sample_config("qwen2", true),
                                  DType::bf16);
    if (!readme.empty()) write_text(source.directory / "README.md", readme);
    ExportOptions options = options_for(place.path() / "out");
    options.card = extra;
    export_exact(source.open(), source.config, dense_widths(source.config),
                 uneven_widths(source.config), options);
    return read_text(options.out / "README.md");
  }
  TemporaryDirectory place;
};

constexpr const char* kTail =
    "library_name: transformers\npipeline_tag: text-generation\ntags:\n- espalier\n- pruned\n";

TEST(ModelCard, TakesTheLicenseOverAndNamesTheSourceAsBase) {
  CardCase sample;
  sample.card(
      "Small-1B",
      "---\r\nlicense: other\r\nlicense_name: qwen\r\nlicense_link: https://example.org/l\r\n"
      "base_model: a/parent\r\nlanguage:\r\n- en\r\n- fr\r\ntags:\r\n- chat\r\n---\r\n# Old "
      "card\r\n");
  EXPECT_EQ(metadata_of(sample.place.path() / "out"),
            std::string("base_model: \"Small-1B\"\nlicense: other\nlicense_name: qwen\n"
                        "license_link: https://example.org/l\nlanguage:\n- en\n- fr\n") +
                kTail);
  EXPECT_EQ(read_text(sample.place.path() / "out/README.md").find("Old card"), std::string::npos);
}

TEST(ModelCard, TheCallersNameComesFirstThenAHubCachesThenTheDirectorys) {
  CardCase given;
  EXPECT_NE(given.card("x", "", {.base_model = "org/model", .facts = {}, .text = {}})
                .find("base_model: \"org/model\"\n"),
            std::string::npos);
  CardCase cached;
  EXPECT_NE(cached.card("hub/models--Qwen--Qwen2.5-0.5B/snapshots/060db6", "")
                .find("base_model: \"Qwen/Qwen2.5-0.5B\"\n"),
            std::string::npos);
  CardCase plain;
  EXPECT_NE(plain.card("dir/tiny", "").find("base_model: \"tiny\"\n"), std::string::npos);
}

TEST(ModelCard, WithoutMetadataALicenseFileIsPointedAt) {
  CardCase sample;
  write_text(sample.place.path() / "m/LICENSE", "terms");
  const std::string card = sample.card("m", "# no metadata\nlicense: mit\n");
  EXPECT_EQ(metadata_of(sample.place.path() / "out"),
            std::string("base_model: \"m\"\nlicense: other\nlicense_link: LICENSE\n") + kTail);
  EXPECT_EQ(read_text(sample.place.path() / "out/LICENSE"), "terms");
}

TEST(ModelCard, AMetadataBlockThatNeverEndsIsNone) {
  CardCase sample;
  sample.card("m", "---\nlicense: mit\n# but no end\n");
  EXPECT_EQ(metadata_of(sample.place.path() / "out"), std::string("base_model: \"m\"\n") + kTail);
}

TEST(ModelCard, ShowsTheNumbersTheFactsAndEveryLayer) {
  CardCase sample;
  const std::string card = sample.card(
      "m", "",
      {.base_model = {}, .facts = {{"Calibration", "3 domains"}}, .text = "## More\n\ntext"});
  // 6 + 0 ... counted by hand: kept heads 3 + 0 + 1 + 3 of 24, KV heads 2 + 0 + 1 + 2 of 12,
  // channels 10 of 40.
  EXPECT_NE(card.find("| Query heads | 7 of 24 (29.2 %) |"), std::string::npos) << card;
  EXPECT_NE(card.find("| KV heads | 5 of 12 (41.7 %) |"), std::string::npos);
  EXPECT_NE(card.find("| MLP channels | 10 of 40 (25.0 %) |"), std::string::npos);
  EXPECT_NE(card.find("| Calibration | 3 domains |"), std::string::npos);
  EXPECT_NE(card.find("| 3 | 3 of 6 | 2 of 3 | [1, 2] | 1 of 10 |"), std::string::npos);
  EXPECT_NE(card.find("| 1 | 0 of 6 | 0 of 3 | [] | 6 of 10 |"), std::string::npos);
  EXPECT_NE(card.find("trust_remote_code=True"), std::string::npos);
  EXPECT_TRUE(card.ends_with("## More\n\ntext\n"));
}

TEST(ModelCard, PrunedAgainItStillNamesTheFirstModel) {
  const TemporaryDirectory place;
  const SampleCheckpoint source(place.path() / "source", sample_config("llama", true), DType::f32);
  write_text(source.directory / "README.md", "---\nlicense: apache-2.0\n---\n");
  ExportOptions options = options_for(place.path() / "a");
  options.card.base_model = "org/first";
  const ModelWidths kept = uneven_widths(source.config);
  export_exact(source.open(), source.config, dense_widths(source.config), kept, options);
  export_exact(CheckpointReader::open(place.path() / "a"), read_model_config(place.path() / "a"),
               kept, kept, options_for(place.path() / "b"));
  EXPECT_EQ(metadata_of(place.path() / "b"),
            std::string("base_model: \"org/first\"\nlicense: apache-2.0\n") + kTail);
}

}  // namespace
}  // namespace espalier
