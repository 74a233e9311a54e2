#include "espalier/pipeline/fingerprint.h"

#include <filesystem>
#include <fstream>
#include <string>

#include <gtest/gtest.h>

#include "espalier/core/error.h"
#include "support/temporary_directory.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;
constexpr std::int64_t kLarge = Fingerprint::kHeadBytes + 1;

Fingerprint print_of(std::int64_t bytes, std::int64_t time, const char* head, const char* content) {
  return {"f", bytes, time, head, content};
}

struct Case {
  Fingerprint before, now;
  Likeness likeness;
};

TEST(Fingerprint, ComparesWhatBothSidesKnow) {
  const std::vector<Case> cases{
      // A small file is known whole by its head.
      {print_of(9, 1, "h", ""), print_of(9, 2, "h", ""), Likeness::same_content},
      {print_of(9, 1, "h", ""), print_of(9, 1, "i", ""), Likeness::changed},
      {print_of(9, 1, "h", ""), print_of(8, 1, "h", ""), Likeness::changed},
      // A large one by its content, if both sides hashed it.
      {print_of(kLarge, 1, "h", "c"), print_of(kLarge, 2, "h", "c"), Likeness::same_content},
      {print_of(kLarge, 1, "h", "c"), print_of(kLarge, 1, "h", "d"), Likeness::changed},
      // Otherwise by its time, which proves nothing when it differs.
      {print_of(kLarge, 1, "h", "c"), print_of(kLarge, 1, "h", ""), Likeness::same_facts},
      {print_of(kLarge, 1, "h", ""), print_of(kLarge, 1, "h", "c"), Likeness::same_facts},
      {print_of(kLarge, 1, "h", "c"), print_of(kLarge, 2, "h", ""), Likeness::undecided},
      {print_of(kLarge, 1, "h", ""), print_of(kLarge, 2, "h", ""), Likeness::undecided},
      {print_of(kLarge, 1, "h", "c"), print_of(kLarge, 1, "i", "c"), Likeness::changed},
      {print_of(kLarge, 1, "h", "c"), print_of(kLarge + 1, 1, "h", "c"), Likeness::changed},
  };
  for (std::size_t i = 0; i < cases.size(); ++i)
    EXPECT_EQ(compare(cases[i].before, cases[i].now), cases[i].likeness) << "case " << i;
}

class InputsOfARun : public ::testing::Test {
 protected:
  fs::path file(const std::string& name) const { return folder_.path() / name; }
  void write(const std::string& name, const std::string& text) {
    std::ofstream(file(name), std::ios::binary) << text;
  }
  InputCheck check(const Inputs& before, Thoroughness thoroughness,
                   const std::vector<std::string>& may_differ = {}) {
    const auto alone = make_self_communicator();
    return check_inputs({{"model/config.json", file("config.json")},
                         {"model/w", file("w")},
                         {"calibration/a", file("a")},
                         {"evaluation/e", file("e")}},
                        before, thoroughness, may_differ, *alone, {});
  }
  void SetUp() override {
    write("config.json", "{}");
    write("w", std::string(static_cast<std::size_t>(kLarge), 'w') + "tail");
    write("a", "tokens");
    write("e", "held out");
  }
  void touch(const std::string& name) {
    fs::last_write_time(file(name), fs::last_write_time(file(name)) + std::chrono::seconds(7));
  }
  /// Another last byte, the same size, the same time.
  void replace_in_secret(const std::string& name) {
    const auto time = fs::last_write_time(file(name));
    std::fstream stream(file(name), std::ios::in | std::ios::out | std::ios::binary);
    stream.seekp(-1, std::ios::end);
    stream << 'X';
    stream.close();
    fs::last_write_time(file(name), time);
  }

 private:
  testing::TemporaryDirectory folder_;
};

constexpr Thoroughness kBoth[] = {Thoroughness::facts, Thoroughness::content};

TEST_F(InputsOfARun, EveryStartAndEveryContinuationCanBeCompared) {
  for (const Thoroughness start : kBoth)
    for (const Thoroughness next : kBoth) {
      const Inputs before = check({}, start).record;
      const InputCheck same = check(before, next);
      EXPECT_TRUE(same.problems.empty());
      const bool whole = start == Thoroughness::content && next == Thoroughness::content;
      EXPECT_EQ(same.how, whole ? "4 files by content"
                                : "3 files by content, 1 file by size, time and first MiB");
      EXPECT_EQ(same.record.at("model/w").content_sha256.empty(),
                start == Thoroughness::facts && next == Thoroughness::facts)
          << "what was known once stays known";
    }
}

TEST_F(InputsOfARun, AChangedWeightIsNoticedUnderEveryCombination) {
  for (const Thoroughness start : kBoth)
    for (const Thoroughness next : kBoth) {
      write("w", std::string(static_cast<std::size_t>(kLarge), 'w') + "tail");
      const Inputs before = check({}, start).record;
      write("w", std::string(static_cast<std::size_t>(kLarge), 'w') + "toil");
      touch("w");  // some file systems count time in seconds
      const InputCheck changed = check(before, next);
      ASSERT_EQ(changed.problems.list().size(), 1u);
      const Problem& problem = changed.problems.list().front();
      EXPECT_EQ(problem.code, ExitCode::bad_content);
      EXPECT_NE(problem.what.find("model/w"), std::string::npos);
      EXPECT_FALSE(problem.remedy.empty());
      EXPECT_EQ(problem.where, file("w").string());
    }
}

TEST_F(InputsOfARun, ContentDecidesWhereTheTimeDoesNot) {
  const Inputs hashed = check({}, Thoroughness::content).record;
  touch("w");
  const InputCheck touched = check(hashed, Thoroughness::facts);
  EXPECT_TRUE(touched.problems.empty());
  EXPECT_EQ(touched.how, "4 files by content");
  replace_in_secret("w");
  EXPECT_TRUE(check(touched.record, Thoroughness::facts).problems.empty())
      << "size, time and first MiB cannot tell; that is what is said";
  EXPECT_FALSE(check(touched.record, Thoroughness::content).problems.empty());
}

TEST_F(InputsOfARun, WithoutAContentAnotherTimeIsRefusedWithTheTimeToRestore) {
  const Inputs quick = check({}, Thoroughness::facts).record;
  touch("w");
  for (const Thoroughness next : kBoth) {
    const InputCheck unknown = check(quick, next);
    ASSERT_EQ(unknown.problems.list().size(), 1u);
    EXPECT_NE(unknown.problems.list().front().remedy.find("touch -d '@"), std::string::npos);
  }
}

TEST_F(InputsOfARun, OtherDataIsRefusedAcceptedOrNotedByItsPart) {
  const Inputs before = check({}, Thoroughness::content).record;
  write("a", "others");
  write("e", "other held out");
  const InputCheck refused = check(before, Thoroughness::content);
  ASSERT_EQ(refused.problems.list().size(), 1u);
  EXPECT_NE(refused.problems.list().front().remedy.find("--allow-change calibration.domains"),
            std::string::npos);
  ASSERT_EQ(refused.notes.size(), 1u);
  EXPECT_NE(refused.notes.front().find("evaluation/e"), std::string::npos);
  EXPECT_TRUE(check(before, Thoroughness::content, {"calibration"}).problems.empty());
  write("config.json", "[]");
  EXPECT_EQ(check(before, Thoroughness::content, {"calibration"}).problems.list().size(), 1u)
      << "another model is never accepted";
}

TEST_F(InputsOfARun, AnAddedOrMissingModelFileIsNamed) {
  Inputs before = check({}, Thoroughness::content).record;
  before["model/w2"] = before["model/w"];
  before.erase("model/config.json");
  const InputCheck changed = check(before, Thoroughness::content);
  ASSERT_EQ(changed.problems.list().size(), 2u);
  EXPECT_EQ(changed.problems.list()[0].what, "model/config.json is new");
  EXPECT_EQ(changed.problems.list()[1].what, "model/w2 is missing");
}

TEST_F(InputsOfARun, ARecordHoldsWhateverThePath) {
  write("odd\nname \xff", "x");
  const auto alone = make_self_communicator();
  const Inputs record = check_inputs({{"calibration/a", file("odd\nname \xff")}}, {},
                                     Thoroughness::content, {}, *alone, {})
                            .record;
  EXPECT_EQ(record.at("calibration/a").path, file("odd\nname \xff").string());
  const Inputs plain = check({}, Thoroughness::content).record;
  EXPECT_EQ(to_json(inputs_from_json(to_json(plain), "here")), to_json(plain));
}

TEST(InputsFromJson, RefusesOtherVersionsByName) {
  for (const char* text :
       {"3", "[]", R"({"f": "size 3 mtime 4.5"})", R"({"f": {"path": "p", "bytes": 1}})",
        R"({"f": {"path": 1, "bytes": 1, "modified_ns": 1, "head_sha256": ""}})"}) {
    try {
      (void)inputs_from_json(nlohmann::ordered_json::parse(text), "ckpt/MANIFEST.json");
      ADD_FAILURE() << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::bad_content) << text;
      EXPECT_EQ(error.problems().front().where, "ckpt/MANIFEST.json");
    }
  }
}

}  // namespace
}  // namespace espalier
