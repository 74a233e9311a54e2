#include "espalier/eval/answers.h"

#include <fstream>
#include <iterator>

#include <gtest/gtest.h>

#include "espalier/core/json.h"

namespace espalier {
namespace {

TEST(Answers, ArePythonsRegularExpressions) {
  std::ifstream file(ESPALIER_ANSWER_CASES);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const nlohmann::ordered_json cases = parse_json(text, ESPALIER_ANSWER_CASES);
  ASSERT_GT(cases.size(), 1000u);
  int invalid = 0;
  for (const auto& one : cases) {
    const auto& given = one.at(0).get_ref<const std::string&>();
    EXPECT_EQ(strict_answer(given), one.at(1).get<std::string>()) << one;
    EXPECT_EQ(flexible_answer(given), one.at(2).get<std::string>()) << one;
    EXPECT_EQ(comparable_answer(given), one.at(3).get<std::string>()) << one;
    invalid += one.at(1) == "[invalid]" ? 1 : 0;
  }
  EXPECT_GT(invalid, 100);
  EXPECT_LT(invalid, static_cast<int>(cases.size()) - 100);
}

TEST(Answers, AreCutByEachStopTextInTurn) {
  EXPECT_EQ(cut_at_stop("18\n\nQuestion: more", {"Question:", "</s>"}), "18\n\n");
  EXPECT_EQ(cut_at_stop("a</s>Question:", {"Question:", "</s>"}), "a");
  EXPECT_EQ(cut_at_stop("abc", {"bc", "ab"}), "a");
  EXPECT_EQ(cut_at_stop("abc", {}), "abc");
  EXPECT_EQ(cut_at_stop("Question", {"Question:"}), "Question");
}

TEST(Answers, LongHostileTextTakesOnePass) {
  const std::size_t size = std::size_t{1} << 24;
  EXPECT_EQ(flexible_answer(std::string(size, '-')), "[invalid]");
  EXPECT_EQ(flexible_answer(std::string(size, '1')).size(), size);
  EXPECT_EQ(strict_answer("#### " + std::string(size, '.')).size(), size);
  std::string marks;
  for (std::size_t i = 0; i < size / 5; ++i) marks += "#### ";
  EXPECT_EQ(strict_answer(marks), "[invalid]");
  EXPECT_EQ(comparable_answer(marks), "");
  EXPECT_EQ(strict_answer(std::string("\xff\0#### 5\xff", 9)), "5");
}

}  // namespace
}  // namespace espalier
