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
    EXPECT_EQ(m.places.size(), m.domain == 0 ? 2u : 1u) << "floor(8 / S) whole sequences";
  }
  EXPECT_EQ(order, "abababa") << "4 of a at 1/8, 3/8, 5/8, 7/8; 3 of b at 1/6, 3/6, 5/6";
  EXPECT_EQ(data.micro_batches_of(1).size(), 3u);
}

using Rows = std::vector<std::vector<std::int64_t>>;

Rows batches_of(const Calibration& data) {
  Rows rows;
  for (const MicroBatch& m : data.micro_batches()) rows.push_back(data.rows_of(m));
  return rows;
}

/// Tokens that go through the model for these micro-batches, padding included.
std::int64_t computed(const Rows& batches, const std::vector<std::int32_t>& lengths) {
  std::int64_t tokens = 0;
  for (const std::vector<std::int64_t>& rows : batches) {
    std::int32_t longest = 0;
    for (const std::int64_t row : rows)
      longest = std::max(longest, lengths[static_cast<std::size_t>(row)]);
    tokens += longest * static_cast<std::int64_t>(rows.size());
  }
  return tokens;
}

/// As the file has them, `size` at a time.
Rows in_file_order(std::size_t n, std::size_t size) {
  Rows batches;
  for (std::size_t row = 0; row < n; ++row) {
    if (row % size == 0) batches.emplace_back();
    batches.back().push_back(static_cast<std::int64_t>(row));
  }
  return batches;
}

Calibration drawn_whole(const TemporaryDirectory& directory, const std::string& name,
                        const std::vector<std::int32_t>& lengths, std::int64_t size) {
  const auto n = static_cast<std::int64_t>(lengths.size());
  const auto path = token_file(directory, name, n, 10, lengths);
  return Calibration::draw(config_of({{"a", path, {}, 1.0, Objective::causal_lm}}, 10 * size), 1,
                           100);
}

TEST(Padding, LongSequencesGoTogetherByHand) {
  const TemporaryDirectory directory;
  const std::vector<std::int32_t> lengths{3, 10, 2, 10, 4};
  const Calibration data = drawn_whole(directory, "a.h5", lengths, 2);
  EXPECT_EQ(data.domains()[0].rows, (std::vector<std::int64_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(batches_of(data), (Rows{{1, 3}, {0, 4}, {2}}));
  EXPECT_EQ(computed(batches_of(data), lengths), 2 * 10 + 2 * 4 + 2);
  EXPECT_EQ(computed(in_file_order(5, 2), lengths), 2 * 10 + 2 * 10 + 4);
  // The one that is not full is the one of the longest where that computes less: 10 + 2, not 20
  // + 1.
  EXPECT_EQ(batches_of(drawn_whole(directory, "b.h5", {2, 10, 2}, 2)), (Rows{{1}, {0, 2}}));
  const at::Tensor tokens_BT =
      data.read(data.micro_batches()[1], Differentiated::pooled_loss, at::kCPU).batch.tokens_BT;
  EXPECT_EQ(tokens_BT.sizes().vec(), (std::vector<std::int64_t>{2, 4}));
  EXPECT_EQ(tokens_BT[1][0].item<std::int64_t>(), 4);
}

TEST(Padding, EqualLengthsKeepTheOrderOfTheFile) {
  const TemporaryDirectory directory;
  for (const std::int32_t length : {4, 10})
    for (const std::size_t n : {1u, 6u, 7u}) {
      const Calibration data = drawn_whole(directory, fmt::format("{}-{}.h5", length, n),
                                           std::vector<std::int32_t>(n, length), 3);
      EXPECT_EQ(batches_of(data), in_file_order(n, 3));
    }
}

TEST(Padding, NeverMoreIsComputedThanInTheOrderOfTheFile) {
  const TemporaryDirectory directory;
  std::uint64_t state = 7;
  const auto below = [&](std::uint64_t n) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    return static_cast<std::int64_t>((state >> 33) % n);
  };
  std::int64_t before = 0, after = 0;
  for (int round = 0; round < 60; ++round) {
    std::vector<std::int32_t> lengths(static_cast<std::size_t>(1 + below(23)));
    for (std::int32_t& length : lengths) length = static_cast<std::int32_t>(2 + below(9));
    const auto size = static_cast<std::size_t>(1 + below(5));
    const Calibration data = drawn_whole(directory, fmt::format("{}.h5", round), lengths,
                                         static_cast<std::int64_t>(size));
    const Rows batches = batches_of(data);
    EXPECT_EQ(batches.size(), (lengths.size() + size - 1) / size);
    std::vector<std::int64_t> widths, all;
    for (const std::vector<std::int64_t>& rows : batches) {
      EXPECT_LE(rows.size(), size);
      EXPECT_TRUE(std::is_sorted(rows.begin(), rows.end()));
      widths.push_back(computed({rows}, lengths) / static_cast<std::int64_t>(rows.size()));
      all.insert(all.end(), rows.begin(), rows.end());
    }
    EXPECT_TRUE(std::is_sorted(widths.rbegin(), widths.rend())) << "the widest first";
    std::sort(all.begin(), all.end());
    EXPECT_EQ(all, data.domains()[0].rows) << "each once";
    const std::int64_t now = computed(batches, lengths);
    EXPECT_LE(now, computed(in_file_order(lengths.size(), size), lengths));
    before += computed(in_file_order(lengths.size(), size), lengths);
    after += now;
    // Data ranks wait for the widest of a round: together no longer than for one full micro-batch
    // more than if all had as much to do.
    for (std::size_t ranks = 2; ranks <= 4; ++ranks) {
      std::int64_t waited = 0;
      for (std::size_t j = 0; j < batches.size(); j += ranks) {
        std::int64_t longest = 0;
        for (std::size_t d = j; d < std::min(j + ranks, batches.size()); ++d)
          longest = std::max(longest, computed({batches[d]}, lengths));
        waited += longest;
      }
      EXPECT_LE(waited * static_cast<std::int64_t>(ranks),
                now + 2 * static_cast<std::int64_t>(ranks * size) * widths.front());
    }
  }
  EXPECT_LT(after, before);
}

TEST(Padding, DomainsAreInterleavedTheWidestFirst) {
  const TemporaryDirectory directory;
  const auto a = token_file(directory, "a.h5", 4, 10, {3, 10, 3, 10}),
             b = token_file(directory, "b.h5", 3, 10, {5, 10, 2});
  const Calibration data = Calibration::draw(
      config_of({{"a", a, {}, 1.0, Objective::causal_lm}, {"b", b, {}, 1.0, Objective::causal_lm}},
                10),
      1, 100);
  std::string order;
  for (const MicroBatch& m : data.micro_batches())
    order += fmt::format("{}{} ", m.domain == 0 ? 'a' : 'b', data.rows_of(m)[0]);
  EXPECT_EQ(order, "a1 b1 a3 b0 a0 a2 b2 ");
}

TEST(Padding, WithoutAMicroBatchTheRestIsArrangedAnew) {
  const TemporaryDirectory directory;
  Calibration data = drawn_whole(directory, "a.h5", {3, 10, 2, 10, 4}, 2);
  data.exclude({data.micro_batches()[1]});
  EXPECT_EQ(batches_of(data), (Rows{{1, 3}, {2}}));
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
    std::sort(rows.begin(), rows.end());
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
  // The item with two right options of five; the first one is shorter than all others.
  ASSERT_EQ(data.rows_of(all[0]), (std::vector<std::int64_t>{2, 3, 4, 5, 6}));
  ASSERT_EQ(data.rows_of(all[3]), (std::vector<std::int64_t>{0, 1}));
  data.exclude(std::vector<MicroBatch>{all[0]});
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
