#include "espalier/score/paused_pass.h"

#include <cmath>
#include <limits>

#include <gtest/gtest.h>

#include "espalier/core/error.h"

namespace espalier {
namespace {

PausedPass sample() {
  return {"abc",       3,    17,      {{0.5, -1e-300}, {2, 3}}, {{1, 2, 3}, {4, 5, 6}},
          {0.25, 0.1}, 4096, {100, 7}};
}

PausedPass through_a_file(const PausedPass& pass) {
  return read_sums(Hdf5Reader::from_image(sums_image(pass), "sums.h5"));
}

TEST(PausedPass, KeepsEveryBit) {
  const PausedPass before = sample(), after = through_a_file(before);
  EXPECT_EQ(after.work, before.work);
  EXPECT_EQ(after.iteration, before.iteration);
  EXPECT_EQ(after.micro_batches, before.micro_batches);
  EXPECT_EQ(after.attention, before.attention);
  EXPECT_EQ(after.mlp, before.mlp);
  EXPECT_EQ(after.loss, before.loss);
  EXPECT_EQ(after.tokens, before.tokens);
  EXPECT_EQ(after.real_tokens, before.real_tokens);
}

FinishedLayers finished() {
  FinishedLayers layers;
  layers.traversals = 1;
  layers.layers = 5;
  layers.alone_attention = {{1, -1}, {0.1, 7}};
  layers.alone_mlp = {{}, {}};
  layers.reduced_attention = {{1e300}, {-0.0}};
  layers.reduced_mlp = {{3}, {4}};
  layers.skipped = {{1, {4, 9}}, {0, {2}}, {1, {5}}};
  return layers;
}

TEST(PausedPass, KeepsFinishedLayers) {
  PausedPass pass = sample();
  EXPECT_FALSE(through_a_file(pass).finished.has_value());
  pass.finished = finished();
  const PausedPass after = through_a_file(pass);
  ASSERT_TRUE(after.finished.has_value());
  EXPECT_EQ(after.attention, pass.attention);
  EXPECT_EQ(after.finished->traversals, 1);
  EXPECT_EQ(after.finished->layers, 5);
  EXPECT_EQ(after.finished->alone_attention, pass.finished->alone_attention);
  EXPECT_EQ(after.finished->alone_mlp, pass.finished->alone_mlp);
  EXPECT_EQ(after.finished->reduced_attention, pass.finished->reduced_attention);
  EXPECT_EQ(after.finished->reduced_mlp, pass.finished->reduced_mlp);
  ASSERT_EQ(after.finished->skipped.size(), 3u);
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(after.finished->skipped[i].domain, pass.finished->skipped[i].domain);
    EXPECT_EQ(after.finished->skipped[i].rows, pass.finished->skipped[i].rows);
  }
  pass.finished = FinishedLayers{};
  EXPECT_TRUE(through_a_file(pass).finished->skipped.empty());
}

/// Programs that know sums only go on reading these.
TEST(PausedPass, HasTheVersionThatItsReadersKnow) {
  PausedPass pass = sample();
  const auto version = [&] {
    return Hdf5Reader::from_image(sums_image(pass), "sums.h5").attribute_i64("/", "version");
  };
  EXPECT_EQ(version(), 2);
  pass.finished = finished();
  EXPECT_EQ(version(), 3);
}

TEST(PausedPass, RefusesLayersThatCannotBeFinished) {
  const std::vector<void (*)(FinishedLayers&)> spoilt{
      [](FinishedLayers& layers) { layers.layers = -1; },
      [](FinishedLayers& layers) { layers.traversals = -1; },
      [](FinishedLayers& layers) { layers.alone_mlp.pop_back(); },
      [](FinishedLayers& layers) { layers.reduced_attention.clear(); },
      [](FinishedLayers& layers) { layers.reduced_mlp[0][0] = std::nan(""); },
      [](FinishedLayers& layers) { layers.skipped[1].domain = 2; },
      [](FinishedLayers& layers) { layers.skipped[2].rows[0] = -1; },
  };
  for (std::size_t i = 0; i < spoilt.size(); ++i) {
    PausedPass pass = sample();
    pass.finished = finished();
    spoilt[i](*pass.finished);
    EXPECT_THROW(through_a_file(pass), Error) << i;
  }
}

TEST(PausedPass, SaysWhatIsDone) {
  PausedPass pass = sample();
  EXPECT_EQ(what_is_done(pass), "17 micro-batches");
  pass.finished = finished();
  EXPECT_EQ(what_is_done(pass), "1 traversal and 5 layers of the next");
  pass.finished->traversals = 0;
  EXPECT_EQ(what_is_done(pass), "5 layers");
}

TEST(PausedPass, MayHaveNoRowsOrNoUnits) {
  PausedPass none = sample();
  none.attention = none.mlp = {};
  EXPECT_EQ(through_a_file(none).attention.size(), 0u);
  PausedPass only_channels = sample();
  only_channels.attention = {{}, {}};
  EXPECT_EQ(through_a_file(only_channels).attention, only_channels.attention);
}

TEST(PausedPass, RefusesWhatCannotBeASum) {
  PausedPass infinite = sample();
  infinite.mlp[1][2] = std::numeric_limits<double>::infinity();
  EXPECT_THROW(through_a_file(infinite), Error);
  PausedPass uneven = sample();
  uneven.mlp.pop_back();
  EXPECT_THROW(through_a_file(uneven), Error);
  PausedPass negative = sample();
  negative.tokens = -1;
  EXPECT_THROW(through_a_file(negative), Error);
  PausedPass before_the_first = sample();
  before_the_first.iteration = 0;
  EXPECT_THROW(through_a_file(before_the_first), Error);
  PausedPass ragged_loss = sample();
  ragged_loss.loss[1] = std::nan("");
  EXPECT_THROW(through_a_file(ragged_loss), Error);
  Hdf5Writer other;
  other.attribute("/", "format", std::string("espalier-plan"));
  other.attribute("/", "version", std::int64_t{1});
  const std::vector<std::byte> image = other.finish();
  EXPECT_THROW(read_sums(Hdf5Reader::from_image(image, "plan.h5")), Error);
}

/// Rows of no units cost a file nothing, and a reader 24 bytes each.
TEST(PausedPass, RefusesMoreRowsThanAModelHasDomains) {
  PausedPass pass = sample();
  pass.attention.assign(100000, {});
  pass.mlp.assign(100000, {});
  try {
    through_a_file(pass);
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::bad_content);
    EXPECT_NE(std::string(error.what()).find("100000"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace espalier
