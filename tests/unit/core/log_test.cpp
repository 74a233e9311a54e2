#include "espalier/core/log.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <vector>

namespace espalier {
namespace {

namespace fs = std::filesystem;

/// What was logged into a file, by lines.
class Log : public ::testing::Test {
 protected:
  Log()
      : file_(fs::path(::testing::TempDir()) /
              ("espalier-log-" + std::to_string(::getpid()) + ".log")) {
    fs::remove(file_);
  }
  ~Log() override {
    log::configure({});
    fs::remove(file_);
  }
  void configure(bool json, log::Level level = log::Level::info, int rank = 0) {
    log::configure({level, json, rank, file_});
  }
  std::vector<std::string> lines() const {
    std::ifstream stream(file_);
    std::vector<std::string> result;
    for (std::string line; std::getline(stream, line);) result.push_back(line);
    return result;
  }

  fs::path file_;
};

TEST_F(Log, AnEventIsOneLine) {
  configure(false);
  log::info("first\nsecond \x1b[2J");
  log::warning("{}", "careful");
  ASSERT_EQ(lines().size(), 2u);
  EXPECT_EQ(lines()[0].substr(8), " first / second \\x1b[2J");
  EXPECT_EQ(lines()[1].substr(8), " warning: careful");
}

TEST_F(Log, EveryJsonLineIsAnObject) {
  configure(true, log::Level::info, 3);
  log::info("bytes \xff\xfe and\nlines");
  log::write(log::Level::error, log::Block{"title", "a\nblock\n", {{"exit_code", 74}}});
  ASSERT_EQ(lines().size(), 2u);
  const auto first = nlohmann::json::parse(lines()[0]);
  EXPECT_EQ(first.at("text"), "bytes \\xff\\xfe and\nlines");
  EXPECT_EQ(first.at("rank"), 3);
  const auto second = nlohmann::json::parse(lines()[1]);
  EXPECT_EQ(second.at("text"), "title");
  EXPECT_EQ(second.at("level"), "error");
  EXPECT_EQ(second.at("exit_code"), 74);
  EXPECT_EQ(nlohmann::json::parse(log::json_line_without_time(log::Level::error, "x")).at("rank"),
            3);
}

TEST_F(Log, ABlockOfTextStaysAsItIs) {
  configure(false);
  log::write(log::Level::error, log::Block{"title", "espalier: a\n  do      b\n", {}});
  EXPECT_EQ(lines(), (std::vector<std::string>{"espalier: a", "  do      b"}));
}

TEST_F(Log, QuietLeavesWarningsAndErrors) {
  configure(false, log::Level::warning);
  log::info("a");
  log::write(log::Level::info, log::Block{"b", "b\n", {}});
  log::warning("c");
  ASSERT_EQ(lines().size(), 1u);
  EXPECT_NE(lines()[0].find("warning: c"), std::string::npos);
}

}  // namespace
}  // namespace espalier
