#include "espalier/model/tensor_ops.h"

#include <limits>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "support/mpi_test_main.h"

namespace espalier {
namespace {

// The derivative of exp is its own output, which the graph therefore saves.
TEST(AllReduce, AGraphThatSavedTheTensorRefusesTheReducedOne) {
  Communicator& world = testing::world();
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16}) {
    const at::Tensor x = at::ones({4}, type).requires_grad_(true);
    at::Tensor y;
    {
      const c10::AutoGradMode mode(true);
      y = x.exp();
    }
    at::Tensor part = y.detach();
    all_reduce_sum(part, world);
    const at::Tensor ones = at::ones_like(part);
    if (world.size() > 1)
      EXPECT_THROW(torch::autograd::grad({y}, {x}, {ones}), c10::Error) << type;
    else
      EXPECT_TRUE(at::equal(torch::autograd::grad({y}, {x}, {ones})[0], y)) << type;
  }
}

}  // namespace
}  // namespace espalier
