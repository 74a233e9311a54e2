#include "espalier/calib/token_file.h"

#include <fstream>
#include <functional>
#include <iterator>
#include <limits>
#include <numeric>

#include <gtest/gtest.h>
#include <hdf5.h>

#include "espalier/calib/check_data.h"
#include "espalier/core/error.h"
#include "espalier/store/files.h"
#include "support/temporary_directory.h"

namespace espalier {
namespace {

using testing::TemporaryDirectory;

/// What a token file holds; a test spoils one thing of a good one: two rows of four tokens.
struct Content {
  std::function<void(Hdf5Writer&)> tokens = [](Hdf5Writer& file) {
    const std::vector<std::int32_t> values{0, 1, 2, 3, 4, 5, 6, 7};
    file.write("/tokens", std::span<const std::int32_t>(values), {2, 4});
  };
  std::function<void(Hdf5Writer&)> more = [](Hdf5Writer&) {};
  std::string format = "espalier-tokens";
  std::int64_t version = 1;
};

struct TokenFiles : ::testing::Test {
  std::filesystem::path write(const Content& content) {
    Hdf5Writer file;
    content.tokens(file);
    content.more(file);
    file.attribute("/", "format", content.format);
    file.attribute("/", "version", content.version);
    const std::vector<std::byte> image = file.finish();
    const std::filesystem::path path = directory / (std::to_string(++files) + ".h5");
    write_new_file(path, std::span<const std::byte>(image), WriteScope::other);
    return path;
  }
  std::filesystem::path with(const std::function<void(Hdf5Writer&)>& more) {
    Content content;
    content.more = more;
    return write(content);
  }

  /// The message of the refusal, which comes from open() or from check(), names the file and says
  /// what to do.
  std::string refusal(bool by_open, const std::filesystem::path& path,
                      Counting counting = Counting::every_token, std::int64_t vocabulary = 8) {
    std::optional<TokenFile> file;
    try {
      file = TokenFile::open(path, vocabulary, counting);
      if (!by_open) file->check(all(*file), {});
    } catch (const Error& error) {
      EXPECT_EQ(file.has_value(), !by_open) << error.what();
      EXPECT_EQ(error.code(), ExitCode::bad_content) << error.what();
      for (const Problem& problem : error.problems()) {
        EXPECT_FALSE(problem.remedy.empty()) << error.what();
        EXPECT_NE(problem.where.find(path.string()), std::string::npos) << error.what();
      }
      return error.what();
    }
    ADD_FAILURE() << "accepted";
    return {};
  }

  static std::vector<std::int64_t> all(const TokenFile& file) {
    std::vector<std::int64_t> rows(static_cast<std::size_t>(file.rows()));
    std::iota(rows.begin(), rows.end(), std::int64_t{0});
    return rows;
  }

  TemporaryDirectory directory;
  int files = 0;
};

#define EXPECT_HAS(text, part) \
  EXPECT_NE(std::string(text).find(part), std::string::npos) << std::string(text)

template <class T>
auto put(const char* name, std::vector<T> values, std::vector<std::int64_t> shape) {
  return [=](Hdf5Writer& file) { file.write(name, std::span<const T>(values), shape); };
}

using Mask = std::vector<std::uint8_t>;

TEST_F(TokenFiles, LossMaskDecidesWhatIsCounted) {
  const auto path = with(put<std::uint8_t>("/loss_mask", {1, 0, 1, 1, 0, 1, 0, 0}, {2, 4}));
  const std::vector<std::int64_t> first{0};
  const auto counted = [&](Counting counting) {
    return TokenFile::open(path, 8, counting).read(first).counted;
  };
  EXPECT_EQ(counted(Counting::loss_mask), (Mask{0, 0, 1, 1}));
  EXPECT_EQ(counted(Counting::loss_mask_if_present), (Mask{0, 0, 1, 1}));
  EXPECT_EQ(counted(Counting::every_token), (Mask{0, 1, 1, 1}));
  const TokenFile plain = TokenFile::open(write({}), 8, Counting::loss_mask_if_present);
  EXPECT_EQ(plain.read(first).counted, (Mask{0, 1, 1, 1}));
}

TEST_F(TokenFiles, WantedLossMaskIsMissedWhenTheFileIsOpened) {
  EXPECT_HAS(refusal(true, write({}), Counting::loss_mask), "/loss_mask is missing");
}

TEST_F(TokenFiles, OpeningRefusesWhatIsNoTokenFile) {
  Content other;
  other.format = "espalier-plan";
  EXPECT_HAS(refusal(true, write(other)), "not a token file");
  Content late;
  late.version = 2;
  EXPECT_HAS(refusal(true, write(late)), "version 2");
  Content none;
  none.tokens = [](Hdf5Writer&) {};
  EXPECT_HAS(refusal(true, write(none)), "/tokens");
  const auto words = directory / "words.h5";
  std::ofstream(words) << "these are words";
  EXPECT_HAS(refusal(true, words), "HDF5");
}

TEST_F(TokenFiles, OpeningRefusesOtherTypesAndShapes) {
  const auto tokens = [](auto&& write) {
    Content content;
    content.tokens = write;
    return content;
  };
  const std::vector<double> reals(8, 1.0);
  EXPECT_HAS(refusal(true, write(tokens(put<double>("/tokens", reals, {2, 4})))), "integers");
  EXPECT_HAS(refusal(true, write(tokens(put<std::int32_t>("/tokens", {1, 2}, {2})))), "[2]");
  EXPECT_HAS(refusal(true, write(tokens(put<std::int32_t>("/tokens", {1, 2}, {2, 1})))), "[2, 1]");
  EXPECT_HAS(refusal(true, write(tokens(put<std::int32_t>("/tokens", {}, {0, 4})))), "[0, 4]");
  EXPECT_HAS(refusal(true, write(tokens(put<std::int32_t>("/tokens/inner", {1}, {1})))), "/tokens");
  EXPECT_HAS(refusal(true, with(put<std::int32_t>("/length", {4, 4, 4}, {3}))), "/length");
  EXPECT_HAS(refusal(true, with(put<std::int32_t>("/length", {4, 4}, {2, 1}))), "/length");
  EXPECT_HAS(refusal(true, with(put<double>("/length", {4, 4}, {2}))), "/length");
  EXPECT_HAS(refusal(true, with(put<std::uint8_t>("/loss_mask", Mask(6, 1), {2, 3}))),
             "/loss_mask");
  EXPECT_HAS(refusal(true, with(put<double>("/loss_mask", reals, {2, 4}))), "/loss_mask");
}

TEST_F(TokenFiles, CheckingFindsTheFirstWrongPlace) {
  EXPECT_HAS(refusal(false, write({}), Counting::every_token, 7), "/tokens[1, 3] = 7");
  Content negative;
  negative.tokens = put<std::int32_t>("/tokens", {0, 1, 2, 3, 4, -5, 6, 7}, {2, 4});
  EXPECT_HAS(refusal(false, write(negative)), "/tokens[1, 1] = -5");
  Content wide;
  wide.tokens = put<std::int64_t>("/tokens", {0, 1, 2, 3, 4, 5, 6, std::int64_t{1} << 40}, {2, 4});
  EXPECT_HAS(refusal(false, write(wide)), "1099511627776");
  for (const std::int32_t length : {0, -1, 5, std::numeric_limits<std::int32_t>::max()})
    EXPECT_HAS(refusal(false, with(put<std::int32_t>("/length", {4, length}, {2}))),
               "/length[1] = " + std::to_string(length));
  EXPECT_HAS(refusal(false, with(put<std::int32_t>("/length", {4, 1}, {2}))), "row 1 has no token");
  const auto masked = [&](const Mask& mask) {
    return with(put<std::uint8_t>("/loss_mask", mask, {2, 4}));
  };
  for (const Counting counting : {Counting::loss_mask, Counting::loss_mask_if_present}) {
    EXPECT_HAS(refusal(false, masked({0, 1, 1, 1, 1, 0, 0, 0}), counting), "row 1 has no token");
    EXPECT_HAS(refusal(false, masked({0, 1, 1, 1, 0, 1, 255, 0}), counting),
               "/loss_mask[1, 2] = 255");
  }
  const TokenFile unasked =
      TokenFile::open(masked({0, 0, 0, 0, 0, 0, 9, 0}), 8, Counting::every_token);
  EXPECT_NO_THROW(unasked.check(all(unasked), {}));
}

TEST_F(TokenFiles, SharesTogetherCheckEveryRow) {
  // Rows of half a block, so that three rows are two blocks; the last id is too large.
  constexpr std::int64_t width = std::int64_t{1} << 19;
  std::vector<std::int32_t> values(static_cast<std::size_t>(3 * width), 1);
  values.back() = 8;
  Content content;
  content.tokens = put("/tokens", values, {3, width});
  const TokenFile file = TokenFile::open(write(content), 8, Counting::every_token);
  EXPECT_NO_THROW(file.check(all(file), {0, 2}));
  EXPECT_THROW(file.check(all(file), {1, 2}), Error);
  EXPECT_NO_THROW(file.check(all(file), {2, 3}));
}

TEST_F(TokenFiles, BooleansAreALossMask) {
  const auto path = write({});
  const std::vector<std::int8_t> values{0, 0, 1, 1, 0, 1, 0, 1};
  const hid_t file = H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
  const hid_t type = H5Tenum_create(H5T_STD_I8LE);
  for (const auto& [name, value] : {std::pair("FALSE", 0), std::pair("TRUE", 1)}) {
    const auto stored = static_cast<std::int8_t>(value);
    ASSERT_GE(H5Tenum_insert(type, name, &stored), 0);
  }
  const hsize_t dims[] = {2, 4};
  const hid_t space = H5Screate_simple(2, dims, nullptr);
  const hid_t set =
      H5Dcreate2(file, "/loss_mask", type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
  ASSERT_GE(H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), 0);
  H5Dclose(set);
  H5Sclose(space);
  H5Tclose(type);
  H5Fclose(file);
  const std::vector<std::int64_t> rows{1, 0};
  EXPECT_EQ(TokenFile::open(path, 8, Counting::loss_mask).read(rows).counted,
            (Mask{0, 1, 0, 1, 0, 0, 1, 1}));
}

TEST_F(TokenFiles, CutFilesEndInARefusal) {
  const auto path = with([](Hdf5Writer& file) {
    put<std::int32_t>("/length", {4, 3}, {2})(file);
    put<std::uint8_t>("/loss_mask", Mask(8, 1), {2, 4})(file);
  });
  std::ifstream in(path, std::ios::binary);
  const std::string whole((std::istreambuf_iterator<char>(in)), {});
  const auto survives = [&](const std::string& bytes) {
    const auto spoilt = directory / "spoilt.h5";
    std::ofstream(spoilt, std::ios::binary | std::ios::trunc) << bytes;
    try {
      const TokenFile file = TokenFile::open(spoilt, 8, Counting::loss_mask);
      file.check(all(file), {});
      file.longest_row();
      file.origin();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::bad_content) << error.what();
    }
  };
  for (std::size_t size = 0; size < whole.size(); size += whole.size() / 40 + 1)
    survives(whole.substr(0, size));
}

TEST_F(TokenFiles, OriginNeverFails) {
  const auto path = with([](Hdf5Writer& file) {
    file.attribute("/", "vocab_size", std::string("many"));
    file.attribute("/", "tokenizer_sha256", 2.5);
  });
  const TokenOrigin odd = TokenFile::open(path, 8, Counting::every_token).origin();
  EXPECT_FALSE(odd.vocabulary || odd.tokenizer_sha256);
  const auto good = with([](Hdf5Writer& file) {
    file.attribute("/", "vocab_size", std::int64_t{9});
    file.attribute("/", "tokenizer_sha256", std::string("abc"));
  });
  const TokenOrigin origin = TokenFile::open(good, 8, Counting::every_token).origin();
  EXPECT_EQ(origin.vocabulary, 9);
  EXPECT_EQ(origin.tokenizer_sha256, "abc");
}

TEST_F(TokenFiles, NotesSayWhatIsNoError) {
  const auto tokenizer = directory / "tokenizer.json";
  std::ofstream(tokenizer) << "{}";
  const std::string hash = sha256_of_file(tokenizer);
  const auto file = [&](const std::string& of, std::int64_t vocabulary) {
    return with([=](Hdf5Writer& writer) {
      writer.attribute("/", "vocab_size", vocabulary);
      writer.attribute("/", "tokenizer_sha256", of);
    });
  };
  RunConfig config;
  ModelConfig model;
  model.vocabulary = 8;
  model.max_positions = 4;
  const auto notes = [&](const std::filesystem::path& path, ConfigUse use = ConfigUse::run) {
    config.calibration.domains = {{"a", path, {}, 1.0, Objective::causal_lm}};
    config.evaluation.perplexity = {{"e", path}};
    return check_data(config, use, model, directory.path(), {});
  };
  EXPECT_TRUE(notes(file(hash, 8)).empty());
  EXPECT_EQ(notes(file("other", 8)).size(), 1u);
  EXPECT_HAS(notes(file(hash, 9)).at(0), "vocabulary of 9");
  EXPECT_HAS(notes(write({})).at(0), "which tokenizer");
  model.max_positions = 3;
  EXPECT_HAS(notes(file(hash, 8)).at(0), "max_position_embeddings = 3");
  const auto shorter = with([&](Hdf5Writer& writer) {
    put<std::int32_t>("/length", {3, 3}, {2})(writer);
    writer.attribute("/", "tokenizer_sha256", hash);
  });
  EXPECT_TRUE(notes(shorter).empty()) << "padding needs no position";
}

TEST_F(TokenFiles, OnlyWhatACommandReadsIsChecked) {
  RunConfig config;
  ModelConfig model;
  model.vocabulary = 8;
  model.max_positions = 4;
  const auto good = write({});
  const auto bad = with(put<std::int32_t>("/length", {4, 1}, {2}));
  const auto refused = [&](ConfigUse use) {
    try {
      check_data(config, use, model, directory.path(), {});
      return std::size_t{0};
    } catch (const Error& error) {
      return error.problems().size();
    }
  };
  config.calibration.domains = {{"a", good, {}, 1.0, Objective::causal_lm}};
  config.evaluation.perplexity = {{"e", bad}};
  EXPECT_EQ(refused(ConfigUse::run), 1u);
  EXPECT_EQ(refused(ConfigUse::eval), 1u);
  EXPECT_EQ(refused(ConfigUse::score), 0u);
  config.calibration.domains = {{"a", bad, {}, 1.0, Objective::causal_lm},
                                {"b", good, 3, 1.0, Objective::causal_lm},
                                {"c", good, {}, 1.0, Objective::sft}};
  EXPECT_EQ(refused(ConfigUse::score), 2u) << "what is known on opening: sequences and loss mask";
  EXPECT_EQ(refused(ConfigUse::run), 3u);
  EXPECT_EQ(refused(ConfigUse::eval), 1u);
}

}  // namespace
}  // namespace espalier
