#include "espalier/calib/calibration.h"

#include <map>
#include <numeric>
#include <set>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "espalier/core/error.h"
#include "espalier/store/files.h"
#include "support/random_model.h"

namespace espalier {
namespace {

using testing::TemporaryDirectory;

/// A token file of n rows of S tokens; row i holds i everywhere, so that rows can be told apart.
std::filesystem::path token_file(const TemporaryDirectory& directory, const std::string& name,
                                 std::int64_t n, std::int64_t S,
                                 const std::vector<std::int32_t>& length = {},
                                 const std::vector<std::uint8_t>& mask = {}) {
  std::vector<std::int32_t> tokens;
  for (std::int64_t i = 0; i < n; ++i)
    tokens.insert(tokens.end(), static_cast<std::size_t>(S), static_cast<std::int32_t>(i));
  Hdf5Writer file;
  file.write("/tokens", std::span<const std::int32_t>(tokens), {n, S});
  if (!length.empty()) file.write("/length", std::span<const std::int32_t>(length), {n});
  if (!mask.empty()) file.write("/loss_mask", std::span<const std::uint8_t>(mask), {n, S});
  file.attribute("/", "format", std::string("espalier-tokens"));
  file.attribute("/", "version", std::int64_t{1});
  const std::vector<std::byte> image = file.finish();
  const std::filesystem::path path = directory.path() / name;
  write_new_file(path, std::span<const std::byte>(image), WriteScope::other);
  return path;
}

CalibrationConfig config_of(std::vector<DomainConfig> domains, std::int64_t micro_batch_tokens) {
  CalibrationConfig config;
  config.domains = std::move(domains);
  config.micro_batch_tokens = micro_batch_tokens;
  config.seed = 3;
  return config;
}

TEST(Calibration, DrawsWithoutReplacementInFileOrderAndAnewOnlyWhenResampling) {
  const TemporaryDirectory directory;
  const auto path = token_file(directory, "a.h5", 50, 4);
  CalibrationConfig config = config_of({{"a", path, 20, 1.0, Objective::causal_lm}}, 8);
  const std::vector<std::int64_t> first = Calibration::draw(config, 1, 100).domains()[0].rows;
  EXPECT_EQ(first.size(), 20u);
  EXPECT_TRUE(std::is_sorted(first.begin(), first.end()));
  EXPECT_EQ(std::set<std::int64_t>(first.begin(), first.end()).size(), 20u);
  EXPECT_EQ(Calibration::draw(config, 2, 100).domains()[0].rows, first)
      << "the same rows in every iteration";
  config.resample = true;
  EXPECT_NE(Calibration::draw(config, 2, 100).domains()[0].rows,
            Calibration::draw(config, 3, 100).domains()[0].rows);
  config.domains[0].name = "b";
  EXPECT_NE(Calibration::draw(config, 2, 100).domains()[0].rows,
            Calibration::draw(config_of({{"a", path, 20, 1.0, Objective::causal_lm}}, 8), 2, 100)
                .domains()[0]
                .rows);
}

TEST(Calibration, ResamplingUsesAFileUpBeforeItRepeats) {
  const TemporaryDirectory directory;
  // Draws that end with the file, that leave a rest, and that are more than half of it.
  for (const std::int64_t wanted : {5, 6, 7, 13, 19}) {
    const auto path = token_file(directory, fmt::format("{}.h5", wanted), 20, 4);
    CalibrationConfig config = config_of({{"a", path, wanted, 1.0, Objective::causal_lm}}, 8);
    config.resample = true;
    std::map<std::int64_t, std::int64_t> times;
    for (std::int64_t iteration = 1; iteration <= 50; ++iteration) {
      const std::vector<std::int64_t> rows =
          Calibration::draw(config, iteration, 100).domains()[0].rows;
      ASSERT_EQ(std::set<std::int64_t>(rows.begin(), rows.end()).size(), rows.size())
          << "a row twice in one draw";
      for (const std::int64_t row : rows) ++times[row];
      std::int64_t least = iteration, most = 0;
      for (std::int64_t row = 0; row < 20; ++row) {
        least = std::min(least, times[row]);
        most = std::max(most, times[row]);
      }
      EXPECT_LE(most - least, 1) << wanted << " of 20, iteration " << iteration;
    }
  }
}

TEST(Calibration, MoreSequencesThanRowsNamesBoth) {
  const TemporaryDirectory directory;
  const auto path = token_file(directory, "a.h5", 5, 4);
  try {
    Calibration::draw(config_of({{"a", path, 6, 1.0, Objective::causal_lm}}, 8), 1, 100);
    FAIL() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::config);
    EXPECT_NE(std::string(e.what()).find("sequences = 6"), std::string::npos);
    EXPECT_NE(std::string(e.what()).find("5 sequences"), std::string::npos);
  }
}

TEST(Calibration, MicroBatchesOfAllDomainsAreInterleavedEvenly) {
  const TemporaryDirectory directory;
  const auto a = token_file(directory, "a.h5", 8, 4), b = token_file(directory, "b.h5", 3, 8);
  const Calibration data = Calibration::draw(
      config_of({{"a", a, {}, 1.0, Objective::causal_lm}, {"b", b, {}, 1.0, Objective::causal_lm}},
                8),
      1, 100);
  std::string order;
  for (const MicroBatch& m : data.micro_batches()) {
    order += m.domain == 0 ? 'a' : 'b';
    EXPECT_EQ(m.end - m.begin, m.domain == 0 ? 2u : 1u) << "floor(8 / S) whole sequences";
  }
  EXPECT_EQ(order, "abababa") << "4 of a at 1/8, 3/8, 5/8, 7/8; 3 of b at 1/6, 3/6, 5/6";
  EXPECT_EQ(data.micro_batches_of(1).size(), 3u);
}

TEST(Calibration, WeightsMakeThePooledMeanOfDomainMeans) {
  const TemporaryDirectory directory;
  const auto a = token_file(directory, "a.h5", 4, 5),
             b = token_file(directory, "b.h5", 2, 9, {9, 3});
  const Calibration data = Calibration::draw(
      config_of({{"a", a, {}, 1.0, Objective::causal_lm}, {"b", b, {}, 3.0, Objective::causal_lm}},
                1),
      1, 100);
  std::vector<double> sum(2, 0.0);
  for (const MicroBatch& m : data.micro_batches())
    sum[m.domain] +=
        data.read(m, Differentiated::pooled_loss, at::kCPU).batch.weights_N.sum().item<double>();
  EXPECT_NEAR(sum[0], 0.25, 1e-15);
  EXPECT_NEAR(sum[1], 0.75, 1e-15);
  const CalibrationBatch short_row =
      data.read(data.micro_batches_of(1)[1], Differentiated::domain_loss, at::kCPU);
  EXPECT_EQ(short_row.batch.tokens_BT.size(1), 3) << "padding that no row needs is cut off";
  EXPECT_EQ(short_row.predictions, std::vector<std::int64_t>{2});
  EXPECT_DOUBLE_EQ(short_row.batch.weights_N[0].item<double>(), 0.5 / 2)
      << "1 / sequences / counted tokens";
}

TEST(Calibration, ChecksEveryRowThatAnyIterationMayDraw) {
  const TemporaryDirectory directory;
  // Row 7 holds id 7; which rows are drawn depends on nothing but seed, name and iteration.
  const auto path = token_file(directory, "a.h5", 8, 4);
  CalibrationConfig config = config_of({{"a", path, 3, 1.0, Objective::causal_lm}}, 8);
  const auto drawn = Calibration::draw(config, 0, 100).domains()[0].rows;
  const std::int64_t top = drawn.back();
  EXPECT_NO_THROW(Calibration::draw(config, 0, top + 1).check({}));
  EXPECT_THROW(Calibration::draw(config, 0, top).check({}), Error);
  config.resample = true;
  EXPECT_THROW(Calibration::draw(config, 0, 7).check({}), Error);
  EXPECT_NO_THROW(Calibration::draw(config, 0, 8).check({}));
}

TEST(Calibration, ChecksAllFilesAtOnce) {
  const TemporaryDirectory directory;
  const auto a = token_file(directory, "a.h5", 8, 4),
             b = token_file(directory, "b.h5", 2, 4, {4, 1});
  const Calibration data = Calibration::draw(
      config_of({{"a", a, {}, 1.0, Objective::causal_lm}, {"b", b, {}, 1.0, Objective::causal_lm}},
                8),
      0, 5);
  try {
    data.check({});
    FAIL() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.problems().size(), 2u);
    EXPECT_NE(std::string(e.what()).find("/tokens[5, 0] = 5"), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("row 1 has no token"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace espalier
