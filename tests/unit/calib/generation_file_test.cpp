#include "espalier/calib/generation_file.h"

#include <functional>

#include <gtest/gtest.h>
#include <hdf5.h>

#include "espalier/calib/check_data.h"
#include "espalier/core/error.h"
#include "espalier/store/files.h"
#include "support/temporary_directory.h"

namespace espalier {
namespace {

/// Three prompts with answers over a vocabulary of 4 whose pieces are "ab", "", "c" and "de"; a
/// test spoils one thing.
struct Content {
  std::vector<std::int32_t> length{3, 1, 2};
  std::vector<const char*> answers{"two lines\n#### 18", "5", "h\xc3\xa9"};
  std::vector<std::uint8_t> bytes{'a', 'b', 'c', 'd', 'e'};
  std::vector<std::int64_t> ends{2, 2, 3, 5};
  std::string task = "exact_match";
  std::string stop = R"(["Question:", "\n\n"])";
  std::vector<std::int32_t> eos{3, 1};
  std::int64_t vocabulary = 4;
};

struct GenerationFiles : ::testing::Test {
  std::filesystem::path write(const Content& content) {
    Hdf5Writer writer;
    const std::vector<std::int32_t> tokens{0, 1, 2, 3, 0, 0, 2, 1, 0};
    writer.write("/tokens", std::span<const std::int32_t>(tokens), {3, 3});
    writer.write("/length", std::span<const std::int32_t>(content.length), {3});
    if (!content.ends.empty()) {
      writer.write("/piece_bytes", std::span<const std::uint8_t>(content.bytes),
                   {static_cast<std::int64_t>(content.bytes.size())});
      writer.write("/piece_ends", std::span<const std::int64_t>(content.ends),
                   {static_cast<std::int64_t>(content.ends.size())});
    }
    writer.attribute("/", "format", std::string("espalier-tokens"));
    writer.attribute("/", "version", std::int64_t{1});
    writer.attribute("/", "vocab_size", content.vocabulary);
    writer.attribute("/", "task", content.task);
    writer.attribute("/", "stop", content.stop);
    const std::vector<std::byte> image = writer.finish();
    const std::filesystem::path path = directory / (std::to_string(++files) + ".h5");
    write_new_file(path, std::span<const std::byte>(image), WriteScope::other);
    add_strings_and_list(path, content);
    return path;
  }

  /// What the writer of the program has no need for.
  static void add_strings_and_list(const std::filesystem::path& path, const Content& content) {
    const hid_t file = H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
    if (!content.answers.empty()) {
      const hid_t text = H5Tcopy(H5T_C_S1);
      H5Tset_size(text, H5T_VARIABLE);
      H5Tset_cset(text, H5T_CSET_UTF8);
      const hsize_t size = content.answers.size();
      const hid_t space = H5Screate_simple(1, &size, nullptr);
      const hid_t set =
          H5Dcreate2(file, "/answer", text, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
      EXPECT_GE(H5Dwrite(set, text, H5S_ALL, H5S_ALL, H5P_DEFAULT, content.answers.data()), 0);
      H5Dclose(set);
      H5Sclose(space);
      H5Tclose(text);
    }
    const hsize_t ids = content.eos.size();
    const hid_t space = H5Screate_simple(1, &ids, nullptr);
    const hid_t list = H5Acreate2(file, "eos_ids", H5T_STD_I32LE, space, H5P_DEFAULT, H5P_DEFAULT);
    EXPECT_GE(H5Awrite(list, H5T_NATIVE_INT32, content.eos.data()), 0);
    H5Aclose(list);
    H5Sclose(space);
    H5Fclose(file);
  }

  /// All messages of the refusal.
  std::string refusal(const std::function<void(Content&)>& spoil, std::size_t problems = 1) {
    Content content;
    spoil(content);
    const std::filesystem::path path = write(content);
    try {
      GenerationFile::open(path, 4);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::bad_content) << error.what();
      EXPECT_EQ(error.problems().size(), problems) << error.what();
      for (const Problem& problem : error.problems()) {
        EXPECT_FALSE(problem.remedy.empty()) << error.what();
        EXPECT_NE(problem.where.find(path.string()), std::string::npos) << error.what();
      }
      return error.what();
    }
    ADD_FAILURE() << "accepted";
    return {};
  }

  testing::TemporaryDirectory directory;
  int files = 0;
};

#define EXPECT_HAS(text, part) \
  EXPECT_NE(std::string(text).find(part), std::string::npos) << std::string(text)

TEST_F(GenerationFiles, HoldPromptsAnswersAndPieces) {
  const GenerationFile file = GenerationFile::open(write({}), 6);
  EXPECT_EQ(file.items(), 3);
  EXPECT_EQ(file.prompt_tokens(), (std::vector<std::int32_t>{3, 1, 2}));
  EXPECT_EQ(file.answer(0), "two lines\n#### 18");
  EXPECT_EQ(file.answer(2), "h\xc3\xa9");
  std::string text;
  for (const std::int64_t token : {3, 1, 0, 2, 4, 5, -1}) text += file.piece(token);
  EXPECT_EQ(text, "deabc") << "tokens without a piece are no text";
  EXPECT_EQ(file.stop(), (std::vector<std::string>{"Question:", "\n\n"}));
  EXPECT_TRUE(file.is_end(1) && file.is_end(3) && !file.is_end(0) && !file.is_end(2));
  const std::vector<std::int64_t> one{1};
  EXPECT_EQ(file.prompts().read(one).length, std::vector<std::int32_t>{1}) << "nothing is counted";
}

TEST_F(GenerationFiles, WhatIsWrongIsSaidAllAtOnce) {
  EXPECT_HAS(refusal([](Content& c) { c.task = "multiple_choice"; }), "task is not 'exact_match'");
  EXPECT_HAS(refusal([](Content& c) { c.answers.clear(); }), "'/answer'");
  EXPECT_HAS(refusal([](Content& c) { c.answers.pop_back(); }), "/answer has 2 entries");
  EXPECT_HAS(refusal([](Content& c) { c.answers[1] = ""; }), "/answer[1] is empty");
  EXPECT_HAS(refusal([](Content& c) { c.answers[1] = "\xff"; }), "no text at place 1");
  EXPECT_HAS(refusal([](Content& c) { c.ends.clear(); }), "'/piece_bytes'");
  EXPECT_HAS(refusal([](Content& c) { c.ends = {2, 1, 3, 5}; }), "/piece_ends[1] = 1");
  EXPECT_HAS(refusal([](Content& c) { c.ends = {2, 2, 3, 6}; }), "/piece_ends[3] = 6");
  EXPECT_HAS(refusal([](Content& c) { c.ends = {2, 2, 3, 4}; }), "/piece_ends ends at 4");
  EXPECT_HAS(refusal([](Content& c) { c.ends = {2, 3, 5}; }), "/piece_ends has 3 entries");
  EXPECT_HAS(refusal([](Content& c) { c.stop = "Question:"; }), "stop");
  EXPECT_HAS(refusal([](Content& c) { c.stop = R"(["a", ""])"; }), "entry 1 of attribute stop");
  EXPECT_HAS(refusal([](Content& c) { c.stop = R"({"a": 1})"; }), "stop is no list");
  EXPECT_HAS(refusal([](Content& c) { c.eos = {4}; }), "eos_ids holds 4");
  EXPECT_HAS(refusal([](Content& c) { c.length[2] = 4; }), "/length[2] = 4");
  const std::string three = refusal(
      [](Content& c) {
        c.answers.clear();
        c.ends = {9, 9, 9, 9};
        c.eos = {-1};
      },
      3);
  for (const char* part : {"/answer", "/piece_ends[0] = 9", "eos_ids holds -1"})
    EXPECT_HAS(three, part);
}

TEST_F(GenerationFiles, AreCheckedBeforeTheWork) {
  RunConfig config;
  ModelConfig model;
  model.vocabulary = 4;
  model.max_positions = 13;
  config.evaluation.exact_match = {{"e", write({}), 10}};
  const auto notes = [&] {
    return check_data(config, ConfigUse::eval, model, directory.path(), {});
  };
  EXPECT_TRUE(notes().empty());
  model.max_positions = 12;
  EXPECT_HAS(notes().at(0), "rows of up to 3 tokens and answers of 10");
  model.max_positions = 13;
  model.vocabulary = 5;
  EXPECT_HAS(notes().at(0), "has the text of 4 tokens");
  model.vocabulary = 3;
  EXPECT_THROW(notes(), Error) << "a prompt holds token 3";
  EXPECT_TRUE(check_data(config, ConfigUse::score, model, directory.path(), {}).empty());
}

}  // namespace
}  // namespace espalier
