#include "espalier/eval/evaluation.h"

#include <gtest/gtest.h>

#include "espalier/eval/choices.h"

namespace espalier {
namespace {

using Places = std::vector<std::int64_t>;

TEST(RowOrder, LongestFirstEqualOnesAsTheyCome) {
  EXPECT_EQ(rows_by_length(std::vector<std::int32_t>{3, 9, 5, 9, 3}), (Places{1, 3, 2, 0, 4}));
}

TEST(MicroBatches, AreCutByTheirLongestRow) {
  const std::vector<std::int32_t> lengths{7, 13, 9, 13, 7};
  const Places order = rows_by_length(lengths);
  EXPECT_EQ(micro_batch_ends(lengths, order, 0, 26), (Places{2, 4, 5}));
  EXPECT_EQ(micro_batch_ends(lengths, order, 0, 1000), (Places{5}));
  EXPECT_EQ(micro_batch_ends(lengths, order, 0, 1), (Places{1, 2, 3, 4, 5})) << "at least one";
  EXPECT_EQ(micro_batch_ends(lengths, order, 2, 26), (Places{4, 5})) << "begun again as before";
  EXPECT_EQ(micro_batch_ends(lengths, order, 5, 26), Places{});
}

TEST(Choices, Table) {
  OptionRows options;
  options.first = {0, 3, 5};
  options.normalizer = {1, 10, 2, 4, 4};
  const std::vector<double> sums{-3, -5, -3, -8, -8};
  EXPECT_EQ(choice_of(options, sums, 0).option, 0) << "of equal ones the first";
  EXPECT_EQ(choice_of(options, sums, 0).by_length, 1);
  EXPECT_EQ(choice_of(options, sums, 1).option, 0);
  options.normalizer.clear();
  EXPECT_FALSE(choice_of(options, sums, 0).by_length);
}

TEST(Shares, HaveTheErrorOfASample) {
  EXPECT_DOUBLE_EQ(share_of_ones(1, 4).mean, 0.25);
  // Deviations 0.75 and three times -0.25: (0.5625 + 0.1875) / 3 = 0.25, over sqrt(4).
  EXPECT_DOUBLE_EQ(*share_of_ones(1, 4).standard_error, 0.25);
  EXPECT_FALSE(share_of_ones(1, 1).standard_error);
}

}  // namespace
}  // namespace espalier
