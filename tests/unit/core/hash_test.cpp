#include "espalier/core/hash.h"

#include <array>
#include <set>

#include <gtest/gtest.h>

namespace espalier {
namespace {

// The test vectors of FIPS 180-2.
TEST(Sha256, PublishedVectors) {
  EXPECT_EQ(sha256_hex(std::string_view("")),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256_hex(std::string_view("abc")),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(Sha256, StreamingEqualsWhole) {
  const std::string text(1000, 'x');
  Sha256 hash;
  for (int i = 0; i < 10; ++i) hash.update(std::as_bytes(std::span(text.data() + 100 * i, 100)));
  EXPECT_EQ(hash.hex(), sha256_hex(text));
}

TEST(CounterHash, IsAFunctionOfAllWordsAndSpreads) {
  std::set<std::uint64_t> seen;
  double sum = 0;
  for (std::uint64_t i = 0; i < 4096; ++i) {
    const std::array<std::uint64_t, 2> words{7, i};
    seen.insert(counter_hash(words));
    sum += counter_uniform(words);
  }
  EXPECT_EQ(seen.size(), 4096u);
  // Standard deviation of the mean of 4096 uniforms is 0.0045; five of them.
  EXPECT_NEAR(sum / 4096, 0.5, 0.0226);
}

}  // namespace
}  // namespace espalier
