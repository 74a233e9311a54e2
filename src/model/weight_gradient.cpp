#include "espalier/model/weight_gradient.h"

#include <ATen/ATen.h>
#include <ATen/record_function.h>

namespace espalier {
namespace {

at::Tensor rows(const at::Tensor& x_BTI) { return x_BTI.reshape({-1, x_BTI.size(-1)}); }

}  // namespace

at::Tensor WeightGradient::product() const {
  if (value.defined()) return value;
  const at::Tensor dy_NO = rows(output_gradient);
  if (!input.defined()) return dy_NO.sum(0);
  RECORD_FUNCTION_WITH_SCOPE(at::RecordScope::BACKWARD_FUNCTION, "weight_gradient", {});
  return at::mm(dy_NO.t(), rows(input));
}

void WeightGradient::add_to(at::Tensor& sum, double factor) const {
  if (value.defined() || !input.defined() || sum.scalar_type() != input.scalar_type()) {
    sum.add_(product(), factor);
    return;
  }
  RECORD_FUNCTION_WITH_SCOPE(at::RecordScope::BACKWARD_FUNCTION, "weight_gradient", {});
  sum.addmm_(rows(output_gradient).t(), rows(input), 1, factor);
}

TensorRole weight_of(TensorRole role) {
  switch (role) {
    case TensorRole::q_bias:
      return TensorRole::q;
    case TensorRole::k_bias:
      return TensorRole::k;
    case TensorRole::v_bias:
      return TensorRole::v;
    case TensorRole::o_bias:
      return TensorRole::o;
    case TensorRole::down_bias:
      return TensorRole::down;
    default:
      return role;
  }
}

}  // namespace espalier
