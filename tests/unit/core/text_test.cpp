#include "espalier/core/text.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <random>
#include <set>
#include <sstream>

#include "espalier/core/error.h"
#include "espalier/core/json.h"
#include "espalier/core/log.h"
#include "espalier/core/paths.h"
#include "support/temporary_directory.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;
using Scratch = testing::TemporaryDirectory;

TEST(Text, CountsInSingularAndPlural) {
  EXPECT_EQ(counted(0, "layer"), "0 layers");
  EXPECT_EQ(counted(1, "layer"), "1 layer");
  EXPECT_EQ(counted(std::size_t{2}, "layer"), "2 layers");
  EXPECT_EQ(counted(std::int64_t{1}, "entry", "entries"), "1 entry");
  EXPECT_EQ(counted(std::int64_t{-1}, "entry", "entries"), "-1 entries");
}

TEST(Text, NothingHasNoSign) {
  EXPECT_EQ(percent(0.0), "0.0%");
  EXPECT_EQ(percent(-0.0), "0.0%");
  EXPECT_EQ(percent(-0.0004), "0.0%");
  EXPECT_EQ(percent(-0.0006), "-0.1%");
  EXPECT_EQ(percent(0.5), "50.0%");
  EXPECT_EQ(percent(-1e-9, 4), "0.0000%");
  EXPECT_EQ(percent(0.12345, 2), "12.35%");
}

TEST(Text, DurationsHaveTheUnitThatFits) {
  EXPECT_EQ(duration(0.04), "0.0 s");
  EXPECT_EQ(duration(119.94), "119.9 s");
  EXPECT_EQ(duration(120), "2 min");
  EXPECT_EQ(duration(7200), "2.0 h");
}

TEST(Text, StaysOnOneLine) {
  EXPECT_EQ(one_line("a\nb\r\x1b[2J\x7f\t"), "a\\x0ab\\x0d\\x1b[2J\\x7f\\x09");
  EXPECT_EQ(one_line("Größe"), "Größe");
}

TEST(Text, Utf8) {
  constexpr std::size_t none = std::string_view::npos;
  EXPECT_EQ(first_invalid_utf8("aé\u20ac\U0001F600"), none);
  EXPECT_EQ(first_invalid_utf8("ab\xff"), 2u);
  EXPECT_EQ(first_invalid_utf8("a\xc3"), 1u);             // cut
  EXPECT_EQ(first_invalid_utf8("\xc0\xaf"), 0u);          // overlong
  EXPECT_EQ(first_invalid_utf8("\xed\xa0\x80"), 0u);      // a surrogate
  EXPECT_EQ(first_invalid_utf8("\xf4\x90\x80\x80"), 0u);  // beyond U+10FFFF
  EXPECT_EQ(first_invalid_utf8("x\xe2\x82z"), 1u);
}

TEST(Text, WhatIsWrittenForBytes) {
  const struct {
    const char *bytes, *utf8, *line;
  } rows[] = {
      {"/data/é \"x\"", "/data/é \"x\"", "/data/é \"x\""},
      {"caf\xe9", "caf\\xe9", "caf\\xe9"},
      {"a\\b", "a\\b", "a\\b"},
      {"a\\x41", "a\\x5cx41", "a\\x5cx41"},
      {"a\\\xff", "a\\x5c\\xff", "a\\x5c\\xff"},
      {"a\nb\x7f", "a\nb\x7f", "a\\x0ab\\x7f"},
      {"\\x4", "\\x4", "\\x4"},
  };
  for (const auto& row : rows) {
    EXPECT_EQ(utf8_text(row.bytes), row.utf8);
    EXPECT_EQ(line_text(row.bytes), row.line);
  }
}

/// Random bytes of an alphabet that is full of halves of escapes and of sequences.
TEST(Text, NothingIsLost) {
  const std::string alphabet("\\x4a1F\xc3\xa9\xff\x80\n\x1b\0e", 15);
  std::mt19937 random(7);
  std::set<std::string> bytes, texts, lines;
  for (int i = 0; i < 20000; ++i) {
    std::string word;
    for (std::size_t n = random() % 12; n > 0; --n) word += alphabet[random() % alphabet.size()];
    bytes.insert(word);
    texts.insert(utf8_text(word));
    lines.insert(line_text(word));
    ASSERT_EQ(bytes_of_text(utf8_text(word)), word);
    ASSERT_EQ(bytes_of_text(line_text(word)), word);
    ASSERT_EQ(first_invalid_utf8(utf8_text(word)), std::string_view::npos);
    ASSERT_EQ(line_text(word).find('\n'), std::string::npos);
  }
  EXPECT_EQ(bytes.size(), texts.size());
  EXPECT_EQ(bytes.size(), lines.size());
}

TEST(Text, ForShells) {
  EXPECT_EQ(shell_word("runs/a-1.2"), "runs/a-1.2");
  EXPECT_EQ(shell_word("it's a run"), "'it'\\''s a run'");
  EXPECT_EQ(shell_word(""), "''");
  EXPECT_EQ(shell_word("$x"), "'$x'");
}

TEST(Json, IsWrittenWhateverTheStringsHold) {
  const nlohmann::ordered_json value{{"k\xff", "a\xc3"}};
  const std::string text = json_text(value);
  EXPECT_EQ(first_invalid_utf8(text), std::string_view::npos);
  EXPECT_EQ(parse_json(text, "x").size(), 1u);
  EXPECT_EQ(json_text({{"a", utf8_text("\xff")}}, 1), "{\n \"a\": \"\\\\xff\"\n}");
}

TEST(Paths, AreTidied) {
  EXPECT_EQ(tidy_path("/a/./b//c/"), "/a/b/c");
  EXPECT_EQ(tidy_path("/a/no/../b"), "/a/b");
  EXPECT_EQ(tidy_path("/../../a"), "/a");
  EXPECT_EQ(tidy_path("/"), "/");
  EXPECT_EQ(tidy_path("a/../b/./"), "a/../b");
  EXPECT_EQ(tidy_path("./"), ".");
  EXPECT_EQ(tidy_path("../u/"), "../u");
  EXPECT_EQ(absolute_path("x"), fs::current_path() / "x");
  EXPECT_THROW(absolute_path(""), Error);
}

/// Against what the kernel says: a path and its tidy form are the same directory.
TEST(Paths, RespectLinks) {
  const Scratch scratch;
  fs::create_directories(scratch / "real/deep/er");
  fs::create_directories(scratch / "deep");
  fs::create_directory_symlink("real/deep", scratch / "link");
  fs::create_directory_symlink("../..", scratch / "real/deep/up");
  EXPECT_EQ(tidy_path(scratch / "link/../x"), scratch / "link/../x");
  EXPECT_EQ(tidy_path(scratch / "real/../x"), scratch / "x");
  for (const char* words :
       {"link/..", "link/../deep", "link/er/..", "link/er/../..", "link/../..", "real/deep/../deep",
        "real/deep/up/real", "link/up/../", "real/deep/er/../../../link/.", "link/up/link/../deep"})
    EXPECT_EQ(fs::canonical(tidy_path(scratch / words)), fs::canonical(scratch / words)) << words;
}

TEST(Paths, WithoutAWorkingDirectory) {
  const fs::path before = fs::current_path();
  {
    const Scratch gone;
    fs::current_path(gone.path());
  }
  try {
    absolute_path("x");
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::missing_input);
  }
  EXPECT_EQ(absolute_path("/x/"), "/x");
  fs::current_path(before);
}

class LogFile : public ::testing::Test {
 protected:
  void TearDown() override { log::configure({}); }
  /// What stderr says when `file` is the log file and two lines are written.
  static std::string said_with(const fs::path& file, bool json = false) {
    ::testing::internal::CaptureStderr();
    log::Options options;
    options.file = file;
    options.json = json;
    log::configure(options);
    log::info("one \x1b[1m");
    log::info("two \xff");
    return ::testing::internal::GetCapturedStderr();
  }
};

TEST_F(LogFile, HoldsEveryLine) {
  const Scratch scratch;
  const std::string said = said_with(scratch / "main.log");
  std::stringstream text;
  text << std::ifstream(scratch / "main.log").rdbuf();
  EXPECT_EQ(text.str(), said);
  EXPECT_NE(said.find("one \\x1b[1m\n"), std::string::npos) << said;
}

TEST_F(LogFile, ThatIsFullIsWarnedOfOnce) {
  const std::string said = said_with("/dev/full");
  EXPECT_NE(said.find("two"), std::string::npos) << said;
  const std::size_t first = said.find("/dev/full is not complete: No space left");
  EXPECT_NE(first, std::string::npos) << said;
  EXPECT_EQ(said.find("/dev/full", first + 1), std::string::npos) << said;
}

TEST_F(LogFile, ThatCannotBeOpenedIsWarnedOf) {
  const std::string said = said_with("/nowhere/main.log");
  EXPECT_NE(said.find("no log is kept in /nowhere/main.log: No such file"), std::string::npos)
      << said;
}

TEST_F(LogFile, JsonLosesNoByte) {
  const std::string said = said_with("", true);
  EXPECT_NE(said.find("two \\\\xff"), std::string::npos) << said;
}

}  // namespace
}  // namespace espalier
