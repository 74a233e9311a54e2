#include "espalier/core/error.h"

#include <cerrno>
#include <filesystem>
#include <new>
#include <stdexcept>
#include <system_error>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

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

ExitCode code_of(const std::exception& exception) { return as_error(exception, {}).code(); }

TEST(ProblemsOf, SystemCallsThatFailedHaveTheirCode) {
  for (const auto& [number, code] :
       {std::pair(ENOENT, ExitCode::missing_input), std::pair(ENOTDIR, ExitCode::missing_input),
        std::pair(ELOOP, ExitCode::missing_input), std::pair(ENAMETOOLONG, ExitCode::missing_input),
        std::pair(EACCES, ExitCode::permission), std::pair(EROFS, ExitCode::permission),
        std::pair(EEXIST, ExitCode::cannot_create), std::pair(ENOSPC, ExitCode::write_failed),
        std::pair(EDQUOT, ExitCode::write_failed), std::pair(EIO, ExitCode::write_failed),
        std::pair(ESTALE, ExitCode::write_failed), std::pair(EMFILE, ExitCode::unsuitable)}) {
    const std::error_code failure(number, std::system_category());
    EXPECT_EQ(code_of(std::system_error(failure, "call")), code) << number;
    const Error error = as_error(std::filesystem::filesystem_error("call", "/a/b", failure), {});
    EXPECT_EQ(error.code(), code) << number;
    EXPECT_EQ(error.problems().front().where, "/a/b");
    EXPECT_FALSE(error.problems().front().remedy.empty());
  }
}

TEST(ProblemsOf, EveryExceptionHasACodeAndARemedy) {
  EXPECT_EQ(code_of(std::bad_alloc()), ExitCode::unsuitable);
  EXPECT_EQ(code_of(std::bad_array_new_length()), ExitCode::unsuitable);
  EXPECT_EQ(code_of(std::runtime_error("odd")), ExitCode::internal);
  EXPECT_EQ(code_of(Error(ExitCode::config, "x")), ExitCode::config);
  const Problems json = problems_of([] { (void)nlohmann::json::object().at("absent"); });
  ASSERT_FALSE(json.empty());
  EXPECT_EQ(json.list().front().code, ExitCode::bad_content);
  EXPECT_EQ(problems_of([] { throw 7; }).list().front().code, ExitCode::internal);
  EXPECT_TRUE(problems_of([] {}).empty());
}

TEST(ProblemsOf, RoomsAddWhatTheyKnow) {
  struct Foreign : std::exception {};
  const auto translator = [](const std::exception& e) -> std::optional<Problem> {
    if (dynamic_cast<const Foreign*>(&e) == nullptr) return std::nullopt;
    return Problem{ExitCode::unsuitable, "the device is gone", "", "Use another.", ""};
  };
  EXPECT_EQ(code_of(Foreign()), ExitCode::internal);
  register_translator(translator);
  register_translator(translator);
  EXPECT_EQ(code_of(Foreign()), ExitCode::unsuitable);
  EXPECT_EQ(code_of(std::runtime_error("odd")), ExitCode::internal);
}

TEST(AsError, NamesWhoMetIt) {
  EXPECT_EQ(as_error(std::bad_alloc(), "rank 3").problems().front().where, "rank 3");
  EXPECT_EQ(as_error(Error(ExitCode::config, "x", {}, {}, "f"), "rank 3").problems().front().where,
            "rank 3, f");
  EXPECT_EQ(as_error(Error(ExitCode::config, "x", {}, {}, "f"), {}).problems().front().where, "f");
}

TEST(NearestName, FindsTyposAndNothingElse) {
  const std::vector<std::string> names{"attention_unit", "ranking", "target"};
  EXPECT_EQ(nearest_name("atention_unit", names), "attention_unit");
  EXPECT_EQ(nearest_name("tarket", names), "target");
  EXPECT_EQ(nearest_name("zebra_crossing", names), "");
}

}  // namespace
}  // namespace espalier
