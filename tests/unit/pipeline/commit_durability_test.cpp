#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "espalier/core/error.h"
#include "espalier/pipeline/commit.h"
#include "support/temporary_directory.h"

// A kill does not show whether bytes had reached the disk: the calls themselves are looked at.
// These functions stand before those of the C library in this program.
namespace {

std::vector<std::string>* calls = nullptr;
std::string root;
bool spoils_reading = false;

/// "ckpt/..." for what lies below the test's directory; names drawn at random lose their number.
std::string shown(std::string path) {
  if (path.starts_with(root)) path = path.substr(root.size() + 1);
  const std::size_t drawn = path.find(".tmp-", path.rfind('/') + 2);
  return drawn == std::string::npos ? path : path.substr(0, drawn + 5) + "*";
}

void note(const std::string& call, const std::string& path) {
  if (calls != nullptr && path.starts_with(root)) calls->push_back(call + " " + shown(path));
}

std::string path_of(int fd) {
  return std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(fd)).string();
}

}  // namespace

extern "C" int fsync(int fd) {
  if (calls != nullptr) note("fsync", path_of(fd));
  return static_cast<int>(::syscall(SYS_fsync, fd));
}

extern "C" int rename(const char* from, const char* to) noexcept {
  if (calls != nullptr && std::string(to).starts_with(root))
    calls->push_back("rename " + shown(from) + " to " + shown(to));
  return static_cast<int>(::syscall(SYS_rename, from, to));
}

extern "C" ssize_t pread(int fd, void* to, size_t count, off_t offset) {
  const ssize_t got = ::syscall(SYS_pread64, fd, to, count, offset);
  if (spoils_reading && got > 0 && path_of(fd).find("state.h5") != std::string::npos)
    static_cast<char*>(to)[got / 2] ^= 1;
  return got;
}

namespace espalier {
namespace {

Commit sample(std::int64_t iteration) {
  Commit commit;
  commit.iteration = iteration;
  commit.state.assign(1000, std::byte{7});
  commit.manifest = {{"schema", 1}};
  return commit;
}

struct CommitDurability : ::testing::Test {
  CommitDurability() : store(directory / "ckpt") {
    std::filesystem::create_directory(directory / "ckpt");
    root = directory.path().string();
  }
  ~CommitDurability() override {
    calls = nullptr;
    spoils_reading = false;
  }
  testing::TemporaryDirectory directory;
  CommitStore store;
  std::vector<std::string> seen;
};

TEST_F(CommitDurability, EveryByteIsOnTheDiskBeforeTheNameThatPublishesIt) {
  calls = &seen;
  store.publish(sample(3), 1);
  calls = nullptr;
  const std::vector<std::string> wanted{"fsync ckpt/.tmp-000003-1/state.h5",
                                        "fsync ckpt/.tmp-000003-1/MANIFEST.json",
                                        "fsync ckpt/.tmp-000003-1",
                                        "rename ckpt/.tmp-000003-1 to ckpt/iter-000003",
                                        "fsync ckpt",
                                        "fsync ckpt/.LATEST.tmp-*",
                                        "rename ckpt/.LATEST.tmp-* to ckpt/LATEST",
                                        "fsync ckpt"};
  EXPECT_EQ(seen, wanted);
}

TEST_F(CommitDurability, ADiskThatGivesBackOtherBytesPublishesNothing) {
  store.publish(sample(2), 1);
  spoils_reading = true;
  try {
    store.publish(sample(3), 1);
    ADD_FAILURE() << "published";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::write_failed) << error.what();
    EXPECT_NE(std::string(error.what()).find("state.h5"), std::string::npos) << error.what();
  }
  spoils_reading = false;
  EXPECT_EQ(store.iterations(), std::vector<std::int64_t>{2});
  EXPECT_EQ(store.read(2).state, sample(2).state);
}

}  // namespace
}  // namespace espalier
