#include <filesystem>
#include <fstream>
#include <string>

#include <gtest/gtest.h>

#include "espalier/core/error.h"
#include "espalier/core/hash.h"
#include "espalier/pipeline/fingerprint.h"
#include "espalier/pipeline/monitor.h"
#include "support/mpi_test_main.h"
#include "support/temporary_directory.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;
constexpr std::int64_t kBlock = std::int64_t{64} << 20;

/// Sparse: its bytes cost nothing to write.
void make_file(const fs::path& file, std::int64_t bytes) {
  std::ofstream(file, std::ios::binary).close();
  fs::resize_file(file, static_cast<std::uintmax_t>(bytes));
}

std::string sha256_of_zeros(std::int64_t bytes) {
  return sha256_hex(std::string_view(std::string(static_cast<std::size_t>(bytes), '\0')));
}

// The bytes that a rank reads are those of its blocks, and the hash does not depend on who read
// what.
TEST(HashContents, RanksShareTheBytes) {
  Communicator& world = testing::world();
  const testing::TemporaryDirectory own;
  const fs::path folder = world.broadcast_text(own.path().string(), 0);
  const std::vector<std::int64_t> sizes{2 * kBlock + 5, 0, kBlock, 3 * kBlock - 1, 7};
  if (world.rank() == 0)
    for (std::size_t i = 0; i < sizes.size(); ++i) make_file(folder / std::to_string(i), sizes[i]);
  world.barrier();
  Inputs inputs;
  std::vector<std::string> names;
  std::int64_t total = 0;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    names.push_back("model/" + std::to_string(i));
    inputs[names.back()] = quick_fingerprint(folder / std::to_string(i));
    EXPECT_EQ(inputs[names.back()].bytes, sizes[i]);
    total += sizes[i];
  }
  const std::int64_t before = kernel_bytes_read();
  std::int64_t polls = 0;
  hash_contents(inputs, names, world, {[&] { ++polls; }, {}});
  const std::int64_t read = kernel_bytes_read() - before;
  EXPECT_EQ(polls, (8 + world.size() - 1) / world.size() + 1) << "8 blocks, and once at the end";
  if (before > 0) {  // where the kernel counts at all
    EXPECT_LE(read, total / world.size() + 2 * kBlock);
  }

  const std::string whole = sha256_of_zeros(kBlock);
  const std::vector<std::string> joined{whole + whole + sha256_of_zeros(5), "", whole,
                                        whole + whole + sha256_of_zeros(kBlock - 1),
                                        sha256_of_zeros(7)};
  for (std::size_t i = 0; i < names.size(); ++i)
    EXPECT_EQ(inputs[names[i]].content_sha256, sha256_hex(std::string_view(joined[i]))) << i;
  world.barrier();  // rank 0 removes the folder
}

TEST(HashContents, AFileThatIsGoneIsEverybodysProblem) {
  Communicator& world = testing::world();
  Inputs inputs;
  inputs["model/w"] = {"/nowhere/w", 5 * kBlock, 0, "", ""};
  try {
    hash_contents(inputs, {"model/w"}, world, {});
    ADD_FAILURE() << "a file that is not there was hashed";
  } catch (const AgreedError& error) {
    EXPECT_EQ(error.code(), ExitCode::missing_input) << error.what();
  }
}

}  // namespace
}  // namespace espalier
