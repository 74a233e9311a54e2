#include "espalier/core/dtype.h"

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include "espalier/core/hash.h"

namespace espalier {
namespace {

/// The value of 16 bits by the formula of IEEE 754.
double by_formula(std::uint16_t bits, int fraction) {
  const int exponents = 15 - fraction, bias = (1 << (exponents - 1)) - 1;
  const int exponent = (bits >> fraction) & ((1 << exponents) - 1);
  const int rest = bits & ((1 << fraction) - 1);
  const double sign = (bits & 0x8000) != 0 ? -1 : 1;
  if (exponent == (1 << exponents) - 1)
    return rest == 0 ? sign * std::numeric_limits<double>::infinity()
                     : std::numeric_limits<double>::quiet_NaN();
  if (exponent == 0) return sign * rest * std::pow(2.0, 1 - bias - fraction);
  return sign * (1 + rest / std::pow(2.0, fraction)) * std::pow(2.0, exponent - bias);
}

double decoded(DType dtype, std::uint16_t bits) {
  double value = 0;
  decode(dtype, std::as_bytes(std::span(&bits, 1)), std::span(&value, 1));
  return value;
}

std::uint16_t encoded(DType dtype, double value) {
  std::uint16_t bits = 0;
  encode(dtype, std::span(&value, 1), std::as_writable_bytes(std::span(&bits, 1)));
  return bits;
}

struct Narrow {
  DType dtype;
  int fraction;
};
constexpr Narrow kNarrow[] = {{DType::f16, 10}, {DType::bf16, 7}};

TEST(DTypeValues, Every16BitNumberIsReadByTheFormulaAndWrittenAsItself) {
  for (const auto& [dtype, fraction] : kNarrow)
    for (int bits = 0; bits < 0x10000; ++bits) {
      const auto stored = static_cast<std::uint16_t>(bits);
      const double value = decoded(dtype, stored), wanted = by_formula(stored, fraction);
      if (std::isnan(wanted)) {
        ASSERT_TRUE(std::isnan(value)) << bits;
        ASSERT_TRUE(std::isnan(by_formula(encoded(dtype, value), fraction))) << bits;
        continue;
      }
      ASSERT_EQ(value, wanted) << bits;
      ASSERT_EQ(std::signbit(value), (bits & 0x8000) != 0) << bits;
      ASSERT_EQ(encoded(dtype, value), stored) << bits;
    }
}

TEST(DTypeValues, WhatLiesBetweenGoesToTheNearerAndATieToTheEvenOne) {
  for (const auto& [dtype, fraction] : kNarrow) {
    const int last = ((1 << (15 - fraction)) - 1) << fraction;  // infinity
    for (int bits = 0; bits + 1 < last; ++bits) {
      const auto low = static_cast<std::uint16_t>(bits),
                 high = static_cast<std::uint16_t>(bits + 1);
      const double a = by_formula(low, fraction), b = by_formula(high, fraction);
      const double middle = (a + b) / 2;  // exact in float64
      ASSERT_EQ(encoded(dtype, middle), bits % 2 == 0 ? low : high) << bits;
      ASSERT_EQ(encoded(dtype, std::nextafter(middle, a)), low) << bits;
      ASSERT_EQ(encoded(dtype, std::nextafter(middle, b)), high) << bits;
      ASSERT_EQ(encoded(dtype, -middle), 0x8000 | (bits % 2 == 0 ? low : high)) << bits;
    }
    const double largest = by_formula(static_cast<std::uint16_t>(last - 1), fraction);
    const double step = largest - by_formula(static_cast<std::uint16_t>(last - 2), fraction);
    EXPECT_EQ(encoded(dtype, largest + step / 2), last);
    EXPECT_EQ(encoded(dtype, std::nextafter(largest + step / 2, 0.0)), last - 1);
    EXPECT_EQ(encoded(dtype, 1e300), last);
    EXPECT_EQ(encoded(dtype, -1e300), 0x8000 | last);
    EXPECT_EQ(encoded(dtype, 1e-300), 0);
  }
}

TEST(DTypeValues, WideTypesRoundTrip) {
  std::vector<double> values;
  for (std::uint64_t i = 0; i < 100; ++i) {
    const std::array<std::uint64_t, 2> words{7, i};
    values.push_back((counter_uniform(words) - 0.5) * std::pow(10.0, static_cast<double>(i) - 50));
  }
  std::vector<std::byte> bytes(values.size() * sizeof(double));
  std::vector<double> again(values.size());
  encode(DType::f64, values, bytes);
  decode(DType::f64, bytes, again);
  EXPECT_EQ(again, values);
  bytes.resize(values.size() * sizeof(float));
  encode(DType::f32, values, bytes);
  decode(DType::f32, bytes, again);
  for (std::size_t i = 0; i < values.size(); ++i)
    EXPECT_EQ(again[i], static_cast<double>(static_cast<float>(values[i])));
}

}  // namespace
}  // namespace espalier
