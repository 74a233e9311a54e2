#include "espalier/core/text.h"

#include <gtest/gtest.h>

#include <cstdint>

namespace espalier {
namespace {

TEST(Text, CountsInSingularAndPlural) {
  EXPECT_EQ(counted(0, "layer"), "0 layers");
  EXPECT_EQ(counted(1, "layer"), "1 layer");
  EXPECT_EQ(counted(std::size_t{2}, "layer"), "2 layers");
  EXPECT_EQ(counted(std::int64_t{1}, "entry", "entries"), "1 entry");
  EXPECT_EQ(counted(std::int64_t{-1}, "entry", "entries"), "-1 entries");
}

TEST(Text, NothingHasNoSign) {
  EXPECT_EQ(percent(0.0), "0.0%");
  EXPECT_EQ(percent(-0.0), "0.0%");
  EXPECT_EQ(percent(-0.0004), "0.0%");
  EXPECT_EQ(percent(-0.0006), "-0.1%");
  EXPECT_EQ(percent(0.5), "50.0%");
  EXPECT_EQ(percent(-1e-9, 4), "0.0000%");
  EXPECT_EQ(percent(0.12345, 2), "12.35%");
}

TEST(Text, DurationsHaveTheUnitThatFits) {
  EXPECT_EQ(duration(0.04), "0.0 s");
  EXPECT_EQ(duration(119.94), "119.9 s");
  EXPECT_EQ(duration(120), "2 min");
  EXPECT_EQ(duration(7200), "2.0 h");
}

TEST(Text, StaysOnOneLine) {
  EXPECT_EQ(one_line("a\nb\r\x1b[2J\x7f\t"), "a\\x0ab\\x0d\\x1b[2J\\x7f\\x09");
  EXPECT_EQ(one_line("Größe"), "Größe");
}

}  // namespace
}  // namespace espalier
