#include "espalier/core/host_memory.h"

#include <sys/mman.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

#include <gtest/gtest.h>

#include "support/temporary_directory.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;

/// A small /proc and /sys.
class HostMemory : public ::testing::Test {
 protected:
  void SetUp() override {
    write("proc/meminfo", "MemTotal:       1000 kB\nMemAvailable:    800 kB\n");
  }
  void write(const std::string& path, const std::string& text) const {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  const fs::path& root() const { return root_.path(); }
  std::int64_t available() const { return available_host_memory(root_.path()); }

 private:
  testing::TemporaryDirectory root_;
};

TEST_F(HostMemory, IsWhatTheKernelCallsAvailable) { EXPECT_EQ(available(), 800 * 1024); }

TEST_F(HostMemory, AGroupOfVersionTwoLimitsIt) {
  write("proc/self/cgroup", "0::/job/step\n");
  write("sys/fs/cgroup/job/memory.max", "500000\n");
  write("sys/fs/cgroup/job/memory.current", "200000\n");
  write("sys/fs/cgroup/job/memory.stat", "anon 1\ninactive_file 50000\n");
  write("sys/fs/cgroup/job/step/memory.max", "max\n");
  write("sys/fs/cgroup/job/step/memory.current", "100\n");
  EXPECT_EQ(available(), 350000);
}

TEST_F(HostMemory, AGroupOfVersionOneLimitsIt) {
  write("proc/self/cgroup", "3:cpuset:/\n4:memory:/slurm/job_7\n0::/\n");
  write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  write("sys/fs/cgroup/memory/memory.usage_in_bytes", "123\n");
  write("sys/fs/cgroup/memory/slurm/job_7/memory.limit_in_bytes", "300000\n");
  write("sys/fs/cgroup/memory/slurm/job_7/memory.usage_in_bytes", "310000\n");
  EXPECT_EQ(available(), 0) << "a group above its limit leaves nothing";
}

TEST_F(HostMemory, AGroupThatNamesNoFilesLimitsNothing) {
  write("proc/self/cgroup", "0::/gone\nnonsense\n");
  EXPECT_EQ(available(), 800 * 1024);
}

TEST_F(HostMemory, ThePeakIsThatOfThisProgram) {
  write("proc/self/status", "Name:\tespalier\nVmPeak:\t  900 kB\nVmHWM:\t     700 kB\n");
  EXPECT_EQ(peak_host_memory(root()), 700 * 1024);
}

TEST(HostMemoryHere, ThePeakIsKeptUntilItIsReset) {
  // Mapped by hand: no allocator keeps it when it is given back.
  constexpr std::size_t kBytes = std::size_t{96} << 20;
  void* pages = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(pages, MAP_FAILED);
  std::memset(pages, 1, kBytes);
  ASSERT_EQ(::munmap(pages, kBytes), 0);
  const std::int64_t before = peak_host_memory();
  EXPECT_GE(before, static_cast<std::int64_t>(kBytes));
  reset_peak_host_memory();
  const std::int64_t after = peak_host_memory();
  if (after == before) GTEST_SKIP() << "this kernel does not reset the peak";
  EXPECT_LT(after, before - static_cast<std::int64_t>(kBytes / 2));
}

TEST(HostMemoryHere, IsPositive) { EXPECT_GT(available_host_memory(), 1 << 20); }

}  // namespace
}  // namespace espalier
