#include "espalier/eval/exact_match.h"

#include <gtest/gtest.h>

namespace espalier {
namespace {

using Batches = std::vector<std::vector<std::int64_t>>;

TEST(PromptBatches, LongestFirstAndWithinTheBound) {
  // Rows of 9, 9, 5, 3 and 3 tokens with 4 new ones each: 13, 13, 9, 7, 7.
  EXPECT_EQ(prompt_batches({3, 9, 5, 9, 3}, 4, 26), (Batches{{1, 3}, {2, 0}, {4}}));
  EXPECT_EQ(prompt_batches({3, 9, 5, 9, 3}, 4, 1000), (Batches{{1, 3, 2, 0, 4}}));
  EXPECT_EQ(prompt_batches({3, 9, 5}, 4, 1), (Batches{{1}, {2}, {0}})) << "at least one";
  EXPECT_EQ(prompt_batches({2, 2, 2}, 2, 8), (Batches{{0, 1}, {2}})) << "equals keep their order";
}

}  // namespace
}  // namespace espalier
