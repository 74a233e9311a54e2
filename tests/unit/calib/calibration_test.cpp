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

/// Items of so many options each, rows of 6 tokens, of which the last ones are the answer; the last
/// option is right, and of the second item the first one too. Row i holds i everywhere.
std::filesystem::path option_file(const TemporaryDirectory& directory, const std::string& name,
                                  const std::vector<std::int64_t>& options) {
  constexpr std::int64_t S = 6;
  std::vector<std::int32_t> tokens, length, item, option;
  std::vector<std::uint8_t> mask, correct;
  for (std::size_t i = 0; i < options.size(); ++i)
    for (std::int64_t k = 0; k < options[i]; ++k) {
      const auto row = static_cast<std::int64_t>(item.size());
      item.push_back(static_cast<std::int32_t>(i));
      option.push_back(static_cast<std::int32_t>(k));
      correct.push_back(k + 1 == options[i] || (i == 1 && k == 0) ? 1 : 0);
      length.push_back(static_cast<std::int32_t>(4 + row % 3));
      tokens.insert(tokens.end(), S, static_cast<std::int32_t>(row));
      for (std::int64_t t = 0; t < S; ++t) mask.push_back(t >= 2 && t < length.back() ? 1 : 0);
    }
  const auto n = static_cast<std::int64_t>(item.size());
  Hdf5Writer file;
  file.write("/tokens", std::span<const std::int32_t>(tokens), {n, S});
  file.write("/length", std::span<const std::int32_t>(length), {n});
  file.write("/loss_mask", std::span<const std::uint8_t>(mask), {n, S});
  file.write("/item", std::span<const std::int32_t>(item), {n});
  file.write("/option", std::span<const std::int32_t>(option), {n});
  file.write("/correct", std::span<const std::uint8_t>(correct), {n});
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

TEST(Calibration, RightAndWrongOptionsAreAveragedByThemselves) {
  const TemporaryDirectory directory;
  const auto path = option_file(directory, "a.h5", {2, 5, 3, 4});
  const Calibration data =
      Calibration::draw(config_of({{"a", path, {}, 2.0, Objective::margin}}, 18), 1, 100);
  // 14 rows: 5 right ones, 9 wrong ones.
  const DomainDraw& draw = data.domains()[0];
  for (std::size_t i = 0; i < draw.rows.size(); ++i)
    EXPECT_DOUBLE_EQ(draw.shares[i], draw.right[i] == 1 ? 1.0 / 5 : -1.0 / 9) << i;
  double right = 0, wrong = 0;
  for (const MicroBatch& m : data.micro_batches()) {
    const CalibrationBatch read = data.read(m, Differentiated::pooled_loss, at::kCPU);
    std::int64_t n = 0;
    for (std::size_t row = 0; row < read.predictions.size(); ++row)
      for (std::int64_t i = 0; i < read.predictions[row]; ++i, ++n) {
        const double weight = read.batch.weights_N[n].item<double>();
        EXPECT_DOUBLE_EQ(weight, read.shares[row] / static_cast<double>(read.predictions[row]));
        (weight > 0 ? right : wrong) += weight;
      }
    EXPECT_EQ(n, read.batch.weights_N.numel());
  }
  EXPECT_NEAR(right, 1, 1e-15);
  EXPECT_NEAR(wrong, -1, 1e-15);
}

TEST(Calibration, ItemsAreDrawnAndGoThroughTheModelWhole) {
  const TemporaryDirectory directory;
  const std::vector<std::int64_t> options{2, 5, 3, 4, 2, 2, 5, 3};
  const auto path = option_file(directory, "a.h5", options);
  // Three rows of six tokens at once: less than some items have.
  CalibrationConfig config = config_of({{"a", path, 5, 1.0, Objective::margin}}, 18);
  config.resample = true;
  std::map<std::int64_t, int> times;
  for (std::int64_t iteration = 1; iteration <= 8; ++iteration) {
    const Calibration data = Calibration::draw(config, iteration, 100);
    ASSERT_EQ(data.domains()[0].begins.size(), 5u);
    std::vector<std::int64_t> rows;
    for (const MicroBatch& m : data.micro_batches()) {
      const std::vector<std::int64_t> batch = data.rows_of(m);
      const at::Tensor samples_SB =
          data.read(m, Differentiated::domain_loss, at::kCPU).batch.samples_SB;
      ASSERT_EQ(samples_SB.size(1), static_cast<std::int64_t>(batch.size()));
      EXPECT_TRUE(batch.size() <= 3 || samples_SB.size(0) == 1) << "more than fits, of one item";
      EXPECT_TRUE(at::equal(samples_SB.sum(0), at::ones(samples_SB.size(1), at::kDouble)));
      rows.insert(rows.end(), batch.begin(), batch.end());
      // Whole: the rows of each sample are those of an item of the file.
      std::int64_t row = 0;
      for (std::int64_t s = 0; s < samples_SB.size(0); ++s) {
        const auto size = samples_SB[s].sum().item<double>();
        std::int64_t first = 0;
        std::size_t item = 0;
        while (first < batch[static_cast<std::size_t>(row)]) first += options[item++];
        EXPECT_EQ(first, batch[static_cast<std::size_t>(row)]);
        EXPECT_EQ(size, options[item]);
        ++times[static_cast<std::int64_t>(item)];
        row += static_cast<std::int64_t>(size);
      }
    }
    EXPECT_EQ(rows, data.domains()[0].rows);
  }
  // 8 draws of 5 of 8 items: each has been there five times.
  for (const auto& [item, count] : times) EXPECT_EQ(count, 5) << "item " << item;
  EXPECT_EQ(times.size(), options.size());
}

TEST(Calibration, WithoutAMicroBatchTheRestIsAveragedAnew) {
  const TemporaryDirectory directory;
  const auto path = option_file(directory, "a.h5", {2, 5, 3, 4});
  Calibration data =
      Calibration::draw(config_of({{"a", path, {}, 1.0, Objective::margin}}, 18), 1, 100);
  const std::vector<MicroBatch> all = data.micro_batches();
  ASSERT_EQ(all.size(), 4u);
  const MicroBatch second = all[1];  // the item with two right options of five
  data.exclude(std::vector<MicroBatch>{second});
  const DomainDraw& draw = data.domains()[0];
  EXPECT_EQ(draw.rows, (std::vector<std::int64_t>{0, 1, 7, 8, 9, 10, 11, 12, 13}));
  EXPECT_EQ(draw.begins, (std::vector<std::size_t>{0, 2, 5}));
  EXPECT_DOUBLE_EQ(draw.shares[0], -1.0 / 6);
  EXPECT_DOUBLE_EQ(draw.shares[1], 1.0 / 3);
}

TEST(Calibration, MoreItemsThanThereAreNamesBoth) {
  const TemporaryDirectory directory;
  const auto path = option_file(directory, "a.h5", {2, 5, 3});
  try {
    Calibration::draw(config_of({{"a", path, 4, 1.0, Objective::margin}}, 8), 1, 100);
    FAIL() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::config);
    EXPECT_NE(std::string(e.what()).find("sequences = 4"), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("3 items"), std::string::npos) << e.what();
  }
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

TEST(Calibration, OfAFileThatIsNowhere) {
  Hdf5Writer file;
  const std::vector<std::int32_t> tokens{0, 1, 2, 3, 4, 5};
  file.write("/tokens", std::span<const std::int32_t>(tokens), {3, 2});
  file.attribute("/", "format", std::string("espalier-tokens"));
  file.attribute("/", "version", std::int64_t{1});
  const std::vector<std::byte> image = file.finish();
  const Calibration data = Calibration::whole(
      TokenFile::from_image(image, "made up", 6, Counting::every_token), "random", 4);
  EXPECT_EQ(data.sequences(), 3);
  ASSERT_EQ(data.micro_batches().size(), 2u);
  const CalibrationBatch batch =
      data.read(data.micro_batches()[0], Differentiated::pooled_loss, at::kCPU);
  EXPECT_TRUE(batch.batch.tokens_BT.equal(at::tensor({0, 1, 2, 3}, at::kLong).view({2, 2})));
  EXPECT_EQ(batch.real_tokens, 4);
  const Calibration beyond = Calibration::whole(
      TokenFile::from_image(image, "made up", 5, Counting::every_token), "random", 2);
  try {
    beyond.read(beyond.micro_batches()[2], Differentiated::pooled_loss, at::kCPU);
    ADD_FAILURE() << "an id beyond the vocabulary was taken";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("made up"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace espalier
