#include "espalier/store/live_file.h"

#include <gtest/gtest.h>

#include <string>

#include "espalier/core/error.h"
#include "espalier/store/files.h"
#include "support/temporary_directory.h"

namespace espalier {
namespace {

TEST(LiveFile, HoldsTheLastLine) {
  const testing::TemporaryDirectory place;
  const std::filesystem::path path = place.path() / "live";
  LiveFile file(path);
  EXPECT_TRUE(file.write("a long line"));
  EXPECT_TRUE(file.write("short"));
  EXPECT_EQ(read_file(path), "short\n");
  EXPECT_TRUE(file.write(std::string(5000, 'x')));
  EXPECT_EQ(read_file(path).size(), 4097U);
}

TEST(LiveFile, IsNewAndMayBeRemoved) {
  const testing::TemporaryDirectory place;
  const std::filesystem::path path = place.path() / "live";
  LiveFile file(path);
  EXPECT_THROW(LiveFile{path}, Error);
  remove_file(path);
  EXPECT_TRUE(file.write("nobody reads this"));
  EXPECT_FALSE(name_exists(path));
  EXPECT_THROW(LiveFile{place.path() / "no/such"}, Error);
}

}  // namespace
}  // namespace espalier
