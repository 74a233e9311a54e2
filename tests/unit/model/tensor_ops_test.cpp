#include "espalier/model/tensor_ops.h"

#include <algorithm>
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

}  // namespace
}  // namespace espalier
