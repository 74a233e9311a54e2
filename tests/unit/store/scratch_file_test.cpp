#include "espalier/store/scratch_file.h"

#include <vector>

#include <gtest/gtest.h>

#include "espalier/core/error.h"
#include "espalier/store/files.h"
#include "support/temporary_directory.h"

namespace espalier {
namespace {

std::vector<std::byte> bytes_of(std::size_t count, int seed) {
  std::vector<std::byte> bytes(count);
  for (std::size_t i = 0; i < count; ++i)
    bytes[i] = static_cast<std::byte>((i * 31 + static_cast<std::size_t>(seed)) & 0xff);
  return bytes;
}

TEST(ScratchFile, GivesBackWhatWasWritten) {
  const testing::TemporaryDirectory directory;
  ScratchFile file(directory.path());
  EXPECT_TRUE(list_directory(directory.path()).empty()) << "it has a name";
  const std::vector<std::byte> first = bytes_of((std::size_t{17} << 20) + 5, 1);
  const std::vector<std::byte> second = bytes_of(1000, 2);
  file.write(0, first);
  file.write(first.size(), second);
  file.will_read(0, first.size());
  std::vector<std::byte> found(first.size());
  file.read(0, found);
  EXPECT_TRUE(found == first);
  file.write(10, second);
  found.resize(second.size());
  file.read(10, found);
  EXPECT_TRUE(found == second);
  file.read(first.size(), found);
  EXPECT_TRUE(found == second);
}

TEST(ScratchFile, SaysWhatIsWrong) {
  const testing::TemporaryDirectory directory;
  ScratchFile file(directory.path());
  file.write(0, bytes_of(10, 1));
  std::vector<std::byte> more(11);
  try {
    file.read(0, more);
    FAIL() << "there are 10 bytes";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::write_failed);
    EXPECT_NE(std::string(error.what()).find("10 of 11 bytes at 0"), std::string::npos);
  }
  try {
    ScratchFile(directory.path() / "absent");
    FAIL() << "there is no such directory";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::missing_input);
    EXPECT_NE(std::string(error.what()).find("absent"), std::string::npos);
  }
}

}  // namespace
}  // namespace espalier
