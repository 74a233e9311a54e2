#include "espalier/calib/option_rows.h"

#include <algorithm>
#include <functional>
#include <span>

#include <gtest/gtest.h>

#include "espalier/core/error.h"

namespace espalier {
namespace {

/// Two items of two and three options; a test spoils one thing.
struct Content {
  std::vector<std::int32_t> item{7, 7, -2, -2, -2};
  std::vector<std::int32_t> option{0, 1, 0, 1, 2};
  std::vector<std::uint8_t> correct{0, 1, 1, 1, 0};
  std::vector<std::int32_t> normalizer{3, 4, 1, 9, 2};
  bool has_normalizer = true;
  bool has_option = true;
};

OptionRows read(const Content& content, std::int64_t rows = 5) {
  Hdf5Writer writer;
  const auto put = [&](const char* name, const auto& values) {
    using Value = typename std::decay_t<decltype(values)>::value_type;
    writer.write(name, std::span<const Value>(values), {static_cast<std::int64_t>(values.size())});
  };
  put("/item", content.item);
  if (content.has_option) put("/option", content.option);
  put("/correct", content.correct);
  if (content.has_normalizer) put("/normalizer", content.normalizer);
  const std::vector<std::byte> image = writer.finish();
  return read_option_rows(Hdf5Reader::from_image(image, "options.h5"), "options.h5", rows);
}

/// The messages of the refusal, each of which names the file and says what to do.
std::vector<Problem> refusal(const Content& content, std::int64_t rows = 5) {
  try {
    read(content, rows);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::bad_content);
    for (const Problem& problem : error.problems()) {
      EXPECT_EQ(problem.where, "options.h5");
      EXPECT_FALSE(problem.why.empty() || problem.remedy.empty()) << problem.message();
    }
    return error.problems();
  }
  ADD_FAILURE() << "accepted";
  return {};
}

TEST(OptionRows, ItemsAreRunsOfRows) {
  const OptionRows rows = read({});
  EXPECT_EQ(rows.items(), 2);
  EXPECT_EQ(rows.first, (std::vector<std::int64_t>{0, 2, 5}));
  EXPECT_EQ(rows.correct, (std::vector<std::uint8_t>{0, 1, 1, 1, 0}));
  EXPECT_EQ(rows.normalizer, (std::vector<std::int32_t>{3, 4, 1, 9, 2}));
  Content plain;
  plain.has_normalizer = false;
  EXPECT_TRUE(read(plain).normalizer.empty());
}

TEST(OptionRows, EveryRuleHasItsMessage) {
  struct Case {
    std::function<void(Content&)> spoil;
    const char* message;
  };
  const std::vector<Case> cases{
      {[](Content& c) {
         c.item = {7, 7, -2, -2, 7};
       },
       "/item[4] = 7 was there before"},
      {[](Content& c) {
         c.option = {1, 0, 0, 1, 2};
       },
       "/option[0] = 1, expected 0"},
      {[](Content& c) {
         c.option = {0, 1, 0, 1, 3};
       },
       "/option[4] = 3, expected 2"},
      {[](Content& c) {
         c.correct = {0, 2, 1, 1, 0};
       },
       "/correct[1] = 2"},
      {[](Content& c) {
         c.correct = {0, 0, 1, 1, 0};
       },
       "item 7 (rows 0 to 1) has no right option"},
      {[](Content& c) {
         c.correct = {0, 1, 1, 1, 1};
       },
       "item -2 (rows 2 to 4) has no wrong option"},
      {[](Content& c) { c.normalizer[3] = 0; }, "/normalizer[3] = 0"},
      {[](Content& c) { c.normalizer.pop_back(); }, "/normalizer has shape [4], expected [5]"},
      {[](Content& c) { c.has_option = false; }, "dataset /option is missing"},
      {[](Content& c) {
         c.item = {7, 7, 1, 2, 2};
         c.option = {0, 1, 0, 0, 1};
         c.correct = {0, 1, 1, 1, 0};
       },
       "item 1 (rows 2 to 2) has one option"},
  };
  for (const Case& one : cases) {
    Content content;
    one.spoil(content);
    const std::vector<Problem> problems = refusal(content);
    EXPECT_TRUE(std::any_of(problems.begin(), problems.end(), [&](const Problem& p) {
      return p.what == one.message;
    })) << one.message;
  }
}

TEST(OptionRows, ARuleIsReportedOnceAndAllRulesTogether) {
  Content content;
  content.option = {1, 1, 1, 1, 1};
  content.normalizer = {0, 0, 0, 0, 0};
  const std::vector<Problem> problems = refusal(content);
  ASSERT_EQ(problems.size(), 2u);
  EXPECT_EQ(problems[0].what, "/option[0] = 1, expected 0");
  EXPECT_EQ(problems[1].what, "/normalizer[0] = 0");
}

}  // namespace
}  // namespace espalier
