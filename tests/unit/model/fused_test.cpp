#include "espalier/model/fused.h"

#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

namespace espalier {
namespace {

constexpr at::ScalarType kTypes[] = {at::kFloat, at::kDouble, at::kBFloat16};

/// What a few operations of a type may differ by when they round elsewhere.
double tolerance(at::ScalarType type) {
  return type == at::kDouble ? 1e-13 : type == at::kFloat ? 1e-5 : 2e-2;
}

at::Tensor numbers(at::IntArrayRef shape, at::ScalarType type, std::int64_t seed) {
  std::int64_t count = 1;
  for (const std::int64_t size : shape) count *= size;
  const at::Tensor place = at::arange(count, at::kDouble) + static_cast<double>(1000 * seed);
  return (place * 12.9898).sin().mul(3).add((place * 0.37).cos()).view(shape).to(type);
}

void expect_close(const at::Tensor& ours, const at::Tensor& theirs, const std::string& what) {
  ASSERT_EQ(ours.sizes(), theirs.sizes()) << what;
  ASSERT_EQ(ours.scalar_type(), theirs.scalar_type()) << what;
  if (ours.numel() == 0) return;
  const double scale = std::max(1.0, theirs.abs().max().item<double>());
  EXPECT_LE((ours.to(at::kDouble) - theirs.to(at::kDouble)).abs().max().item<double>(),
            tolerance(ours.scalar_type()) * scale)
      << what;
}

using Operation = std::function<at::Tensor(const at::Tensor&)>;

/// Outputs and gradients of both.
void compare(const Operation& ours, const Operation& theirs, const at::Tensor& x,
             const std::string& what) {
  const auto run = [&](const Operation& operation) {
    const at::Tensor leaf = x.detach().requires_grad_(true);
    const at::Tensor y = operation(leaf);
    const at::Tensor dy = numbers(y.sizes(), y.scalar_type(), 7);
    return std::pair(y.detach(), torch::autograd::grad({y}, {leaf}, {dy})[0]);
  };
  const auto [y, dx] = run(ours);
  const auto [y_of_theirs, dx_of_theirs] = run(theirs);
  expect_close(y, y_of_theirs, what);
  expect_close(dx, dx_of_theirs, what + ", gradient");
}

TEST(Fused, NormIsLibTorchsOwn) {
  for (const at::ScalarType type : kTypes)
    for (const std::int64_t rows : {0, 1, 3, 7, 130})
      for (const std::int64_t size : {1, 2, 5, 31, 64, 257}) {
        const at::Tensor weight_D = numbers({size}, type, 2);
        compare([&](const at::Tensor& x) { return rms_norm(x, weight_D, 1e-5); },
                [&](const at::Tensor& x) { return composed::rms_norm(x, weight_D, 1e-5); },
                numbers({1, rows, size}, type, 1),
                fmt::format("{}, {} rows of {}", at::toString(type), rows, size));
      }
}

TEST(Fused, NormAgainstFiniteDifferences) {
  const at::Tensor weight_D = numbers({9}, at::kDouble, 2), dy = numbers({4, 9}, at::kDouble, 3);
  at::Tensor x = numbers({4, 9}, at::kDouble, 1);
  const at::Tensor leaf = x.clone().requires_grad_(true);
  const at::Tensor dx = torch::autograd::grad({rms_norm(leaf, weight_D, 1e-5)}, {leaf}, {dy})[0];
  for (std::int64_t i = 0; i < x.numel(); ++i) {
    const double h = 1e-5;
    const auto loss = [&](double by) {
      at::Tensor moved = x.clone();
      moved.view(-1)[i] += by;
      return (rms_norm(moved, weight_D, 1e-5) * dy).sum().item<double>();
    };
    EXPECT_NEAR(dx.view(-1)[i].item<double>(), (loss(h) - loss(-h)) / (2 * h), 1e-8) << i;
  }
}

TEST(Fused, RotationIsLibTorchsOwn) {
  for (const at::ScalarType type : kTypes)
    for (const std::int64_t tokens : {0, 1, 5, 33})
      for (const std::int64_t heads : {0, 1, 3})
        for (const std::int64_t size : {2, 6, 32, 66}) {
          const RotaryTable table{numbers({tokens, size}, type, 4),
                                  numbers({tokens, size}, type, 5)};
          compare([&](const at::Tensor& x) { return rotated_heads(x, table); },
                  [&](const at::Tensor& x) { return composed::rotated_heads(x, table); },
                  numbers({2, tokens, heads, size}, type, 1),
                  fmt::format("{}, {} tokens, {} heads of {}", at::toString(type), tokens, heads,
                              size));
        }
}

/// Angles of one token for each row of a batch, as a cache asks for them.
TEST(Fused, RotationWithAnglesOfEachRow) {
  const RotaryTable table{numbers({3, 1, 1, 8}, at::kFloat, 4),
                          numbers({3, 1, 1, 8}, at::kFloat, 5)};
  compare([&](const at::Tensor& x) { return rotated_heads(x, table); },
          [&](const at::Tensor& x) { return composed::rotated_heads(x, table); },
          numbers({3, 1, 4, 8}, at::kFloat, 1), "angles of rows");
}

TEST(Fused, SumsOverTokensAreLibTorchsOwn) {
  for (const at::ScalarType type : kTypes)
    for (const std::int64_t tokens : {0, 1, 31, 100})
      for (const std::int64_t columns : {0, 1, 37, 1024, 2500}) {
        const at::Tensor a_BTU = numbers({2, tokens, columns}, type, 1),
                         b_BTU = numbers({2, tokens, columns}, type, 2);
        const at::Tensor ours = token_dots(a_BTU, b_BTU),
                         theirs = composed::token_dots(a_BTU, b_BTU);
        ASSERT_EQ(ours.scalar_type(), at::kDouble);
        ASSERT_EQ(ours.sizes(), theirs.sizes());
        // Both add products in float32 at least, whatever the type: 100 of them, of 16 at most, may
        // be off by 100 x 1600 x 6e-8 in the worst order, and by a fifth of it here.
        if (ours.numel() > 0) {
          EXPECT_LE((ours - theirs).abs().max().item<double>(), type == at::kDouble ? 1e-11 : 2e-3)
              << at::toString(type) << " " << tokens << " x " << columns;
        }
      }
}

/// A value that is not finite reaches everything that is computed of it and nothing else.
TEST(Fused, WhatIsNotFiniteStaysSo) {
  for (const at::ScalarType type : kTypes)
    for (const double bad :
         {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
      at::Tensor x = numbers({1, 3, 40}, type, 1);
      x[0][1][33].fill_(bad);
      const at::Tensor weight_D = numbers({40}, type, 2);
      const at::Tensor y = rms_norm(x, weight_D, 1e-5);
      EXPECT_FALSE(y[0][1].isfinite().all().item<bool>());
      EXPECT_TRUE(y[0][0].isfinite().all().item<bool>());
      EXPECT_TRUE(y[0][2].isfinite().all().item<bool>());
      const RotaryTable table{numbers({3, 40}, type, 4), numbers({3, 40}, type, 5)};
      const at::Tensor turned = rotated_heads(x.view({1, 3, 1, 40}), table);
      EXPECT_FALSE(turned[0][0][1][33].isfinite().item<bool>());
      EXPECT_FALSE(turned[0][0][1][13].isfinite().item<bool>());
      EXPECT_TRUE(turned[0][0][0].isfinite().all().item<bool>());
      const at::Tensor sums = token_dots(x, at::ones_like(x));
      EXPECT_FALSE(sums[0][33].isfinite().item<bool>());
      EXPECT_TRUE(sums[0][32].isfinite().item<bool>());
    }
}

/// bfloat16 is rounded to the nearest, ties to even, as LibTorch does it.
TEST(Fused, RoundsBfloat16AsLibTorch) {
  const at::Tensor x =
      at::arange(-20000, 20000, at::kFloat).mul(0.0137).to(at::kBFloat16).view({1, 1, 100, 400});
  const RotaryTable table{at::full({1, 400}, 1.2345, at::kBFloat16),
                          at::full({1, 400}, -0.777, at::kBFloat16)};
  EXPECT_TRUE(rotated_heads(x, table).equal(composed::rotated_heads(x, table)));
}

}  // namespace
}  // namespace espalier
