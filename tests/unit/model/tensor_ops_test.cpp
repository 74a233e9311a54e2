#include "espalier/model/tensor_ops.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "espalier/core/error.h"
#include "support/mpi_test_main.h"

namespace espalier {
namespace {

/// A group of two that both have the same tensor, and what travels between them.
class Recorder final : public TensorReducer {
 public:
  explicit Recorder(std::vector<DType> takes) : takes_(std::move(takes)) {}

  int size() const override { return 2; }
  bool takes(DType dtype, Memory memory) const override {
    return memory == Memory::host && std::find(takes_.begin(), takes_.end(), dtype) != takes_.end();
  }
  const TensorBuffer& seen() const { return seen_; }

 private:
  void reduce(const TensorBuffer& buffer, ReduceOp op) override {
    seen_ = buffer;
    at::Tensor same = at::from_blob(buffer.data, {static_cast<std::int64_t>(buffer.count)},
                                    to_scalar_type(buffer.dtype));
    if (op == ReduceOp::sum) same.mul_(2);
  }

  std::vector<DType> takes_;
  TensorBuffer seen_;
};

TEST(AllReduce, GoesAsTheReducerTakesIt) {
  struct Case {
    at::ScalarType tensor;
    std::vector<DType> taken;
    DType travels;
    bool in_place;
  };
  const std::vector<DType> of_mpi{DType::f32, DType::f64}, all{DType::bf16, DType::f16, DType::f32};
  const std::vector<Case> cases{
      {at::kFloat, of_mpi, DType::f32, true},     {at::kDouble, of_mpi, DType::f64, true},
      {at::kBFloat16, of_mpi, DType::f32, false}, {at::kHalf, of_mpi, DType::f32, false},
      {at::kBFloat16, all, DType::bf16, true},    {at::kHalf, all, DType::f16, true},
  };
  for (const Case& c : cases) {
    Recorder reducer(c.taken);
    at::Tensor values = at::arange(6, at::kFloat).to(c.tensor);
    all_reduce_sum(values, reducer);
    EXPECT_EQ(reducer.seen().dtype, c.travels);
    EXPECT_EQ(reducer.seen().count, 6u);
    EXPECT_EQ(reducer.seen().stream, nullptr);
    EXPECT_EQ(reducer.seen().data == values.data_ptr(), c.in_place);
    EXPECT_TRUE(at::equal(values, (at::arange(6, at::kFloat) * 2).to(c.tensor)));
  }
}

TEST(AllReduce, StridedTensorsTravelPackedAndComeBackInPlace) {
  Recorder reducer({DType::f32});
  const at::Tensor whole = at::arange(12, at::kFloat).view({3, 4}).clone();
  at::Tensor columns = whole.narrow(1, 1, 2);
  all_reduce_sum(columns, reducer);
  EXPECT_EQ(reducer.seen().count, 6u);
  const at::Tensor before = at::arange(12, at::kFloat).view({3, 4});
  EXPECT_TRUE(at::equal(whole.narrow(1, 1, 2), before.narrow(1, 1, 2) * 2));
  EXPECT_TRUE(at::equal(whole.select(1, 0), before.select(1, 0)));
  EXPECT_TRUE(at::equal(whole.select(1, 3), before.select(1, 3)));
}

TEST(AllReduce, ATypeThatNoFormOfIsTakenIsRefused) {
  Recorder reducer({DType::f32});
  at::Tensor values = at::ones({2}, at::kDouble);
  EXPECT_THROW(all_reduce_sum(values, reducer), Error);
}

// The derivative of exp is its own output, which the graph therefore saves.
TEST(AllReduce, AGraphThatSavedTheTensorRefusesTheReducedOne) {
  RankGroup& world = testing::world_group();
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16}) {
    const at::Tensor x = at::ones({4}, type).requires_grad_(true);
    at::Tensor y;
    {
      const c10::AutoGradMode mode(true);
      y = x.exp();
    }
    at::Tensor part = y.detach();
    all_reduce_sum(part, world.reducer());
    const at::Tensor ones = at::ones_like(part);
    if (world.size() > 1)
      EXPECT_THROW(torch::autograd::grad({y}, {x}, {ones}), c10::Error) << type;
    else
      EXPECT_TRUE(at::equal(torch::autograd::grad({y}, {x}, {ones})[0], y)) << type;
  }
}

TEST(FiniteFlag, IsOfTheSumInFloat32OrWider) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) {
    // Their sum is beyond float16, whose values are summed wider.
    const at::Tensor values = at::full({64, 33}, 60000.0, type);
    EXPECT_TRUE(finite_flag(values).item<bool>()) << at::toString(type);
    for (const double bad :
         {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
      at::Tensor broken = values.clone();
      broken[63][32] = bad;
      EXPECT_FALSE(finite_flag(broken).item<bool>()) << at::toString(type) << " " << bad;
    }
  }
}

TEST(AllFinite, AgreesWithEveryNumberLookedAt) {
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16}) {
    EXPECT_TRUE(all_finite(at::empty({0}, type)));
    for (const std::int64_t size : {1, 7, 64, 1 << 19}) {
      at::Tensor x = at::randn({size}, at::kDouble).to(type);
      x[size / 2] = -0.0;
      EXPECT_TRUE(all_finite(x)) << type;
      // The largest number, and the smallest above 0.
      for (const double edge :
           {static_cast<double>(std::numeric_limits<double>::max()), 65504.0, 1e-40, 5e-324}) {
        x[size / 2] = at::full({}, edge, at::kDouble).to(type);
        EXPECT_EQ(all_finite(x), at::isfinite(x).all().item<bool>()) << type << " " << edge;
      }
      for (const double bad :
           {std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity(),
            std::numeric_limits<double>::quiet_NaN()})
        for (const std::int64_t place : {std::int64_t{0}, size / 2, size - 1}) {
          at::Tensor y = at::randn({size}, at::kDouble).to(type);
          y[place] = bad;
          EXPECT_FALSE(all_finite(y)) << type << " " << bad << " at " << place << " of " << size;
        }
    }
    at::Tensor columns = at::zeros({4, 6}, type);
    columns[1][5] = std::numeric_limits<double>::infinity();
    EXPECT_TRUE(all_finite(columns.narrow(1, 0, 5)));
    EXPECT_FALSE(all_finite(columns.narrow(1, 2, 4)));
  }
  EXPECT_TRUE(all_finite(at::arange(5, at::kLong)));
}

}  // namespace
}  // namespace espalier
