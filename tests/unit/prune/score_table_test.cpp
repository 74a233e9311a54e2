#include "espalier/prune/score_table.h"

#include <cmath>
#include <functional>
#include <limits>

#include <gtest/gtest.h>

#include "espalier/core/error.h"

namespace espalier {
namespace {

ScoreTable sample() {
  ScoreTable table;
  table.attention = {{0, 0, 2}, {1, 3, 0}, {0.5, -1, 1e-300}, {{1, 2, 3}, {4, 5, 6}}};
  table.mlp = {{1}, {6}, {2}, {{7}, {std::numeric_limits<double>::max()}}};
  table.criterion = "taylor_gate";
  table.normalization = "param_mean";
  table.raw_rows = {"web", "math"};
  table.domains = {"web", "math"};
  table.loss = {2.5, 1.25};
  table.tokens = 4096;
  return table;
}

ScoreTable round_trip(const ScoreTable& table, const std::string& group) {
  Hdf5Writer file;
  write_scores(file, group, table);
  const std::vector<std::byte> image = file.finish();
  return read_scores(Hdf5Reader::from_image(image, "scores.h5"), group);
}

void expect_equal(const ScoreList& a, const ScoreList& b) {
  EXPECT_EQ(a.layer, b.layer);
  EXPECT_EQ(a.unit, b.unit);
  EXPECT_EQ(a.score, b.score);
  EXPECT_EQ(a.raw, b.raw);
}

TEST(ScoreFile, RoundTripAtTheRootAndInAGroup) {
  const ScoreTable table = sample();
  for (const std::string group : {"", "/scores"}) {
    const ScoreTable read = round_trip(table, group);
    expect_equal(read.attention, table.attention);
    expect_equal(read.mlp, table.mlp);
    EXPECT_EQ(read.criterion, table.criterion);
    EXPECT_EQ(read.normalization, table.normalization);
    EXPECT_EQ(read.raw_rows, table.raw_rows);
    EXPECT_EQ(read.domains, table.domains);
    EXPECT_EQ(read.loss, table.loss);
    EXPECT_EQ(read.tokens, table.tokens);
  }
}

TEST(ScoreFile, AKindWithoutUnits) {
  ScoreTable table = sample();
  table.attention = {{}, {}, {}, {{}, {}}};
  expect_equal(round_trip(table, "").attention, table.attention);
}

TEST(ScoreFile, ShapesAreTheContracts) {
  Hdf5Writer file;
  write_scores(file, "", sample());
  const std::vector<std::byte> image = file.finish();
  const Hdf5Reader reader = Hdf5Reader::from_image(image, "scores.h5");
  EXPECT_EQ(reader.shape("/attention/raw"), (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(reader.shape("/attention/score"), (std::vector<std::int64_t>{3}));
  EXPECT_EQ(reader.read_f64("/attention/raw").values, (std::vector<double>{1, 2, 3, 4, 5, 6}));
}

TEST(ScoreFile, RefusesListsThatDoNotFitTogether) {
  ScoreTable table = sample();
  table.attention.raw.pop_back();
  Hdf5Writer file;
  EXPECT_THROW(write_scores(file, "", table), Error);
}

ExitCode code_of_reading(const ScoreTable& table) {
  try {
    round_trip(table, "");
  } catch (const Error& error) {
    return error.code();
  }
  return ExitCode::ok;
}

TEST(ScoreFile, ReadingRefusesWhatIsNotAScore) {
  ScoreTable table = sample();
  table.attention.score[1] = std::nan("");
  EXPECT_EQ(code_of_reading(table), ExitCode::bad_content);
  const auto refused = [](const std::function<void(ScoreTable&)>& spoil) {
    ScoreTable spoiled = sample();
    spoil(spoiled);
    return code_of_reading(spoiled) == ExitCode::bad_content;
  };
  EXPECT_TRUE(refused([](ScoreTable& t) { t.mlp.layer[0] = -1; }));
  EXPECT_TRUE(refused([](ScoreTable& t) { t.attention.raw[1][2] = std::nan(""); }));
  EXPECT_TRUE(refused([](ScoreTable& t) { t.loss[1] = std::nan(""); }));
  EXPECT_TRUE(refused([](ScoreTable& t) { t.loss.pop_back(); }));
  EXPECT_TRUE(refused([](ScoreTable& t) { t.tokens = -1; }));
  EXPECT_TRUE(refused([](ScoreTable& t) { t.attention.unit[1] = 1; })) << "the same unit twice";
  EXPECT_TRUE(refused([](ScoreTable& t) { t.attention.layer = {0, 2, 0}; })) << "out of order";
}

}  // namespace
}  // namespace espalier
