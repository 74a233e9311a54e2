#include "../../../src/store/claim_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <ctime>
#include <vector>

#include "espalier/store/files.h"
#include "scratch.h"

namespace espalier {
namespace {

using posix::ClaimFile;
using test::error_of;
using test::listing;
using test::put;
using test::Scratch;

constexpr ClaimFile::Timing kQuick{0.1, 0.1};

void make_old(const std::filesystem::path& path, int seconds) {
  const timespec then{::time(nullptr) - seconds, 0};
  const timespec both[2] = {then, then};
  ASSERT_EQ(::utimensat(AT_FDCWD, path.c_str(), both, 0), 0);
}

TEST(ClaimFile, OneHasItAndGivesItBack) {
  const Scratch scratch;
  const auto path = scratch / "claim";
  EXPECT_FALSE(ClaimFile::is_live(path, kQuick));
  auto claim = ClaimFile::acquire(path, 0, "me", kQuick);
  ASSERT_NE(claim, nullptr);
  EXPECT_NE(read_file(path).find("me"), std::string::npos);
  EXPECT_TRUE(ClaimFile::is_live(path, kQuick));
  EXPECT_EQ(ClaimFile::acquire(path, 0.7, "you", kQuick), nullptr);  // longer than a claim lives
  EXPECT_TRUE(ClaimFile::is_live(path, kQuick));
  claim->require_held();
  claim.reset();
  EXPECT_EQ(listing(scratch.path()), "");
  EXPECT_NE(ClaimFile::acquire(path, 0, "you", kQuick), nullptr);
}

TEST(ClaimFile, StaleOnesAreTakenOver) {
  const Scratch scratch;
  const auto path = scratch / "claim";
  put(path, "of a dead process");
  make_old(path, 3600);
  EXPECT_FALSE(ClaimFile::is_live(path));
  EXPECT_NE(ClaimFile::acquire(path, 0, "", kQuick), nullptr);
  EXPECT_EQ(listing(scratch.path()), "");
  // A time of the future says nothing; standing still does.
  put(path, "of a clock that was wrong");
  make_old(path, -3600);
  EXPECT_TRUE(ClaimFile::is_live(path, kQuick));
  EXPECT_EQ(ClaimFile::acquire(path, 0, "", kQuick), nullptr);
  EXPECT_NE(ClaimFile::acquire(path, 5, "", kQuick), nullptr);
  // An empty one, of a process that died between making and writing it.
  put(path, "");
  make_old(path, 60);
  EXPECT_NE(ClaimFile::acquire(path, 0, "", kQuick), nullptr);
}

TEST(ClaimFile, WhoLostItIsToldAndLeavesTheOther) {
  const Scratch scratch;
  const auto path = scratch / "claim";
  auto claim = ClaimFile::acquire(path, 0, "me", kQuick);
  ASSERT_NE(claim, nullptr);
  std::filesystem::remove(path);
  put(path, "another's");
  const std::string message = error_of(ExitCode::cannot_create, [&] { claim->require_held(); });
  EXPECT_NE(message.find("took this run directory over"), std::string::npos) << message;
  ::usleep(400000);  // its heart may not touch what is another's
  claim.reset();
  EXPECT_EQ(read_file(path), "another's");
  claim = ClaimFile::acquire(path, 5, "me", kQuick);
  ASSERT_NE(claim, nullptr);
  std::filesystem::remove(path);
  error_of(ExitCode::cannot_create, [&] { claim->require_held(); });
}

/// Several processes race for one stale claim again and again: never two at once. Each writes into
/// a file when it has the claim and before it gives it back.
TEST(ClaimFile, RacesHaveOneWinner) {
  const Scratch scratch;
  const auto path = scratch / "claim";
  const auto diary = (scratch / "diary").string();
  for (int round = 0; round < 3; ++round) {
    put(path, "stale");
    make_old(path, 3600);
    std::vector<pid_t> children;
    for (int i = 0; i < 4; ++i) {
      const pid_t child = ::fork();
      if (child == 0) {
        const auto claim = ClaimFile::acquire(path, 0, std::to_string(i), {5, 0.5});
        if (!claim) ::_exit(1);
        ::usleep(1500000);  // until every other one has given up
        const bool held = [&] {
          try {
            claim->require_held();
            return true;
          } catch (const Error&) {
            return false;
          }
        }();
        ::_exit(held ? 0 : 2);
      }
      children.push_back(child);
    }
    int winners = 0;
    for (const pid_t child : children) {
      int status = 0;
      ASSERT_EQ(::waitpid(child, &status, 0), child);
      ASSERT_TRUE(WIFEXITED(status));
      winners += WEXITSTATUS(status) == 0 ? 1 : 0;
      EXPECT_NE(WEXITSTATUS(status), 2) << "a winner lost its claim";
    }
    EXPECT_EQ(winners, 1);
    std::filesystem::remove(path);
  }
}

TEST(ClaimFile, OfAKilledProcessGoesStale) {
  const Scratch scratch;
  const auto path = scratch / "claim";
  const pid_t child = ::fork();
  if (child == 0) {
    const auto claim = ClaimFile::acquire(path, 0, "", kQuick);
    ::usleep(600000);
    ::kill(::getpid(), SIGKILL);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_NE(ClaimFile::acquire(path, 5, "", kQuick), nullptr);
}

/// Locks that work respect a claim of a host where they do not.
TEST(ClaimFile, IsRespectedByLocks) {
  const Scratch scratch;
  const auto claim = ClaimFile::acquire(scratch / ".lock.claim", 0, "");
  ASSERT_NE(claim, nullptr);
  EXPECT_EQ(FileLock::acquire(scratch / ".lock", 0.1), nullptr);
  EXPECT_TRUE(FileLock::is_held(scratch / ".lock"));
  make_old(scratch / ".lock.claim", 3600);
  const auto lock = FileLock::acquire(scratch / ".lock", 0);
  ASSERT_NE(lock, nullptr);
  lock->require_held();
}

}  // namespace
}  // namespace espalier
