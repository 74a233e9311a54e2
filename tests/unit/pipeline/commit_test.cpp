#include "espalier/pipeline/commit.h"

#include <algorithm>
#include <fstream>
#include <sstream>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include "espalier/core/error.h"
#include "espalier/store/files.h"
#include "support/temporary_directory.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;
using testing::TemporaryDirectory;

Commit sample(std::int64_t iteration, CommitKind kind = CommitKind::iteration) {
  Commit commit{kind, iteration, {}, {{"schema", 1}}};
  commit.state.assign(64, static_cast<std::byte>(iteration));
  return commit;
}

fs::path state_of(const fs::path& commit) {
  return commit / (commit.filename().string().starts_with("pass-") ? "sums.h5" : "state.h5");
}

void write(const fs::path& file, const std::string& text) { std::ofstream(file) << text; }

void flip_a_byte(const fs::path& file) {
  std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
  stream.seekp(10);
  stream.put('x');
}

/// A ckpt/ that words change:
///   put N / pass N     publishes an iteration or a paused pass
///   damage NAME        changes a byte of its state
///   cut NAME           loses its manifest
///   file NAME          a file where a directory is expected
///   mkdir NAME         an empty directory
///   prune LAST EVERY   what a run does after each commit
///   fresh              another process
///   open               another process that sweeps, takes the newest valid, sets newer ones aside
class Bench {
 public:
  void perform(const std::string& words) {
    std::istringstream stream(words);
    for (std::string word; stream >> word;) step(word, stream);
  }

  std::string names() const {
    std::vector<std::string> found;
    for (const auto& entry : fs::directory_iterator(folder_.path()))
      if (entry.path().filename() != "LATEST") found.push_back(entry.path().filename().string());
    std::sort(found.begin(), found.end());
    return fmt::format("{}", fmt::join(found, " "));
  }

  std::string newest(CommitKind kind) const {
    std::vector<std::string> rejected;
    const std::optional<Commit> commit = CommitStore(folder_.path()).newest_valid(rejected, kind);
    return commit ? CommitStore::directory_name(commit->iteration, commit->kind) : "none";
  }

 private:
  void step(const std::string& word, std::istringstream& stream) {
    const auto number = [&] {
      std::int64_t value = 0;
      stream >> value;
      return value;
    };
    const auto path = [&] {
      std::string name;
      stream >> name;
      return folder_ / name;
    };
    if (word == "put") {
      store_.publish(sample(number()), 1);
    } else if (word == "pass") {
      store_.publish(sample(number(), CommitKind::pass), 1);
    } else if (word == "damage") {
      flip_a_byte(state_of(path()));
    } else if (word == "cut") {
      fs::remove(path() / "MANIFEST.json");
    } else if (word == "file") {
      write(path(), "a file");
    } else if (word == "mkdir") {
      fs::create_directories(path());
    } else if (word == "prune") {
      const std::int64_t last = number();
      store_.prune(last, number());
    } else if (word == "fresh") {
      store_ = CommitStore(folder_.path());
    } else if (word == "open") {
      open();
    } else {
      FAIL() << word;
    }
  }

  void open() {
    store_ = CommitStore(folder_.path());
    store_.sweep();
    std::vector<std::string> rejected;
    const std::optional<Commit> start = store_.newest_valid(rejected);
    if (start) store_.set_aside_newer(start->iteration, CommitKind::iteration);
  }

  TemporaryDirectory folder_;
  CommitStore store_{folder_.path()};
};

struct Row {
  const char* words;
  const char* names;   // afterwards, without LATEST
  const char* newest;  // valid iteration
};

void expect_rows(const std::vector<Row>& rows, CommitKind kind = CommitKind::iteration) {
  for (const Row& row : rows) {
    SCOPED_TRACE(row.words);
    Bench bench;
    bench.perform(row.words);
    EXPECT_EQ(bench.names(), row.names);
    EXPECT_EQ(bench.newest(kind), row.newest);
  }
}

TEST(CommitStore, KeepsTheLastAndEveryNth) {
  expect_rows({
      {"put 1 prune 1 0", "iter-000001", "iter-000001"},
      {"put 1 put 2 put 3 prune 1 0", "iter-000003", "iter-000003"},
      {"put 1 put 2 put 3 prune 2 0", "iter-000002 iter-000003", "iter-000003"},
      {"put 1 put 2 put 3 prune 3 0", "iter-000001 iter-000002 iter-000003", "iter-000003"},
      {"put 1 put 2 put 3 prune 9 0", "iter-000001 iter-000002 iter-000003", "iter-000003"},
      {"put 1 put 2 put 3 prune 0 0", "iter-000003", "iter-000003"},
      {"put 1 put 2 put 3 put 4 put 5 prune 1 2", "iter-000002 iter-000004 iter-000005",
       "iter-000005"},
      {"put 1 put 2 put 3 put 4 prune 2 2", "iter-000002 iter-000003 iter-000004", "iter-000004"},
      {"put 1 put 2 put 3 prune 1 1", "iter-000001 iter-000002 iter-000003", "iter-000003"},
  });
}

TEST(CommitStore, ADamagedCommitCountsForNothing) {
  expect_rows({
      // Newer than what was just written, in a process that did not set it aside.
      {"put 1 put 2 put 3 put 4 put 5 put 6 damage iter-000004 damage iter-000005 damage "
       "iter-000006 fresh put 4 prune 1 0",
       "iter-000004 iter-000005 iter-000006", "iter-000004"},
      {"put 1 put 5 damage iter-000005 fresh put 2 prune 3 0",
       "iter-000001 iter-000002 iter-000005", "iter-000002"},
      // In the middle: older valid ones fill the number; what is older than these goes.
      {"put 1 put 2 put 3 put 4 damage iter-000003 open put 5 prune 3 0",
       "iter-000002 iter-000003 iter-000004 iter-000005", "iter-000005"},
      {"put 1 put 2 put 3 put 4 damage iter-000003 open put 5 prune 2 0", "iter-000004 iter-000005",
       "iter-000005"},
      {"put 1 put 2 damage iter-000001 open put 3 prune 3 0", "iter-000001 iter-000002 iter-000003",
       "iter-000003"},
      {"put 1 put 2 put 3 cut iter-000002 open put 4 prune 2 0", "iter-000003 iter-000004",
       "iter-000004"},
      // Nothing valid: nothing goes.
      {"put 1 put 2 damage iter-000001 damage iter-000002 open prune 1 0",
       "iter-000001 iter-000002", "none"},
  });
}

TEST(CommitStore, WhatIsNewerThanTheCommitTakenIsSetAside) {
  expect_rows({
      {"put 1 put 2 put 3 damage iter-000003 open",
       "iter-000001 iter-000002 rejected-iter-000003-0", "iter-000002"},
      {"put 1 put 2 put 3 damage iter-000003 open put 3 prune 1 0",
       "iter-000003 rejected-iter-000003-0", "iter-000003"},
      // Damaged again under the same number: both stay.
      {"put 1 put 2 damage iter-000002 open put 2 damage iter-000002 open put 2 prune 1 0",
       "iter-000002 rejected-iter-000002-0 rejected-iter-000002-1", "iter-000002"},
      {"put 1 put 2 put 3 put 4 damage iter-000003 damage iter-000004 open put 3 prune 2 0",
       "iter-000002 iter-000003 rejected-iter-000003-0 rejected-iter-000004-0", "iter-000003"},
      // Older than the commit taken: left to prune.
      {"put 1 put 2 damage iter-000001 open", "iter-000001 iter-000002", "iter-000002"},
      {"put 1 damage iter-000001 open", "iter-000001", "none"},
  });
}

TEST(CommitStore, StrangeEntriesHarmNothing) {
  expect_rows({
      {"put 1 mkdir .tmp-000002-1 mkdir .trash-iter-000001-0/x open", "iter-000001", "iter-000001"},
      // Files where directories are expected.
      {"put 1 file iter-000002 open put 2 prune 1 0", "iter-000002 rejected-iter-000002-0",
       "iter-000002"},
      {"put 3 file iter-000002 prune 1 0", "iter-000003", "iter-000003"},
      {"file iter-000001 put 1 prune 1 0", "iter-000001", "iter-000001"},
      {"file .tmp-000001-1 put 1 prune 1 0", "iter-000001", "iter-000001"},
      // Names that publish never gives are no commits and not ours.
      {"mkdir iter-1 mkdir iter-0000001 mkdir iter-00001x mkdir iter- mkdir iter--00001 put 1 put "
       "2 "
       "open put 3 prune 1 0",
       "iter- iter--00001 iter-0000001 iter-000003 iter-00001x iter-1", "iter-000003"},
      // A number that can be one is.
      {"put 1 mkdir iter-999999999999 open put 2 prune 1 0",
       "iter-000002 rejected-iter-999999999999-0", "iter-000002"},
      {"put 1000000 put 999999 prune 1 0", "iter-1000000", "iter-1000000"},
      {"put 1 mkdir iter-99999999999999999999 put 2 prune 1 0",
       "iter-000002 iter-99999999999999999999", "iter-000002"},
  });
}

TEST(CommitStore, PausedPassesGoWhenAValidIterationHasOvertakenThem) {
  expect_rows(
      {
          {"put 1 pass 2 prune 1 0", "iter-000001 pass-000002", "pass-000002"},
          {"put 1 pass 2 put 2 prune 2 0", "iter-000001 iter-000002", "none"},
          {"put 1 pass 2 pass 3 put 2 prune 1 0", "iter-000002 pass-000003", "pass-000003"},
          {"pass 1 prune 1 0", "pass-000001", "pass-000001"},
          // A damaged iteration has overtaken nothing.
          {"put 1 pass 2 put 5 damage iter-000005 fresh prune 1 0",
           "iter-000001 iter-000005 pass-000002", "pass-000002"},
          {"put 1 pass 1 damage pass-000001 put 2 prune 1 0", "iter-000002", "none"},
          {"put 1 pass 2 damage pass-000002 pass 2", "iter-000001 pass-000002", "pass-000002"},
          {"pass 1 file pass-000002", "pass-000001 pass-000002", "pass-000001"},
      },
      CommitKind::pass);
}

/// Between two renames a commit that is replaced has another name.
TEST(CommitStore, WhatWasAboutToBeReplacedIsPutBack) {
  TemporaryDirectory folder;
  CommitStore store(folder.path());
  store.publish(sample(2, CommitKind::pass), 1);
  fs::rename(folder / "pass-000002", folder / ".replaced-pass-000002");
  store.sweep();
  EXPECT_EQ(store.iterations(CommitKind::pass), std::vector<std::int64_t>{2});
  fs::create_directory(folder / ".replaced-pass-000002");
  store.sweep();
  EXPECT_EQ(store.read(2, CommitKind::pass).iteration, 2);
  EXPECT_FALSE(fs::exists(folder / ".replaced-pass-000002"));
}

TEST(CommitStore, PartsAreLookedAtWithoutBeingHeld) {
  TemporaryDirectory folder;
  CommitStore store(folder.path());
  Commit commit = sample(2, CommitKind::pass);
  const fs::path place = store.prepare(2, 1);
  write(place / "boundaries-0003.safetensors", "many bytes");
  commit.parts.push_back(
      {"boundaries-0003.safetensors", 10, sha256_of_file(place / "boundaries-0003.safetensors")});
  store.publish(commit, 1);
  const Commit found = store.read(2, CommitKind::pass);
  ASSERT_EQ(found.parts.size(), 1u);
  EXPECT_EQ(found.parts[0].name, "boundaries-0003.safetensors");
  EXPECT_EQ(found.parts[0].bytes, 10);
  const fs::path part = store.path_of(2, CommitKind::pass) / "boundaries-0003.safetensors";
  for (const char* content : {"many bytez", "many byte", ""}) {
    write(part, content);
    EXPECT_THROW(store.read(2, CommitKind::pass), Error) << content;
  }
  fs::remove(part);
  EXPECT_THROW(store.read(2, CommitKind::pass), Error);
}

TEST(CommitStore, SettingPassesAsideLeavesTheOneThatIsTaken) {
  TemporaryDirectory folder;
  CommitStore store(folder.path());
  for (const std::int64_t pass : {2, 3}) store.publish(sample(pass, CommitKind::pass), 1);
  const std::vector<std::string> lines = store.set_aside_newer(2, CommitKind::pass);
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_NE(lines[0].find("rejected-pass-000003-0"), std::string::npos) << lines[0];
  EXPECT_EQ(store.iterations(CommitKind::pass), std::vector<std::int64_t>{2});
}

TEST(CommitStore, AManifestWithoutItsEntriesIsAnErrorWithTheFile) {
  TemporaryDirectory folder;
  CommitStore store(folder.path());
  store.publish(sample(1), 1);
  write(folder / "iter-000001/MANIFEST.json", "{}\n");
  try {
    store.read(1);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::bad_content);
    EXPECT_NE(std::string(error.what()).find("MANIFEST.json"), std::string::npos) << error.what();
  }
}

TEST(CommitStore, ADirectoryThatCannotBeListedIsAnError) {
  TemporaryDirectory folder;
  write(folder / "ckpt", "a file");
  std::vector<std::string> rejected;
  EXPECT_THROW(CommitStore(folder / "ckpt").newest_valid(rejected), Error);
  EXPECT_FALSE(CommitStore(folder / "none").newest_valid(rejected).has_value());
}

}  // namespace
}  // namespace espalier
