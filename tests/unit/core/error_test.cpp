#include "espalier/core/error.h"

#include <gtest/gtest.h>

namespace espalier {
namespace {

TEST(Problem, MessageLeavesOutWhatIsEmpty) {
  EXPECT_EQ(
      (Problem{ExitCode::config, "a = 3", "at most 2", "Use 1 or 2.", "f.yaml:1:2"}.message()),
      "f.yaml:1:2: a = 3 (at most 2). Use 1 or 2.");
  EXPECT_EQ((Problem{ExitCode::config, "a = 3", "", "", ""}.message()), "a = 3");
  EXPECT_EQ((Problem{ExitCode::config, "what now?", "", "Do this.", ""}.message()),
            "what now? Do this.");
}

TEST(Error, ReportsAllProblemsAndTheLowestCode) {
  Problems problems;
  EXPECT_NO_THROW(problems.throw_if_any());
  problems.add(ExitCode::config, "second");
  problems.add(ExitCode::bad_content, "first");
  try {
    problems.throw_if_any();
    FAIL() << "nothing was thrown";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::bad_content);
    EXPECT_STREQ(e.what(), "second\nfirst");
  }
}

TEST(NearestName, FindsTyposAndNothingElse) {
  const std::vector<std::string> names{"attention_unit", "ranking", "target"};
  EXPECT_EQ(nearest_name("atention_unit", names), "attention_unit");
  EXPECT_EQ(nearest_name("tarket", names), "target");
  EXPECT_EQ(nearest_name("zebra_crossing", names), "");
}

}  // namespace
}  // namespace espalier
