#include "half_graph.h"

#include <algorithm>
#include <cmath>
#include <span>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include "espalier/core/error.h"
#include "espalier/core/pulse.h"
#include "espalier/model/gate.h"
#include "espalier/model/tensor_ops.h"

namespace espalier {

HalfOutput run_half(const CausalLM& model, std::int64_t half, const at::Tensor& x_BTD,
                    const PackedRows* packed) {
  return kind_of(half) == UnitKind::attention ? model.attention_half(half / 2, x_BTD, packed)
                                              : model.mlp_half(half / 2, x_BTD);
}

at::Tensor embed(const CausalLM& model, const at::Tensor& tokens_BT, TensorReducer& tensor,
                 FiniteWatch& watch) {
  at::Tensor x_BTD = model.embed_partial(tokens_BT);
  all_reduce_sum(x_BTD, tensor);
  watch.see(x_BTD, {FiniteWatch::Value::hidden, -1, TensorRole::embedding});
  return x_BTD;
}

at::Tensor after_half(std::int64_t half, const at::Tensor& x_BTD, at::Tensor partial_BTD,
                      TensorReducer& tensor, FiniteWatch& watch) {
  poison_at("layer.forward", partial_BTD);
  pulse::beat();
  watch.next_step();
  watch.see(partial_BTD, {FiniteWatch::Value::output, half});
  all_reduce_sum(partial_BTD, tensor);
  const at::Tensor y_BTD = x_BTD + partial_BTD;
  watch.next_step();
  watch.see(y_BTD, {FiniteWatch::Value::sum, half});
  return y_BTD;
}

at::Tensor before_half(std::int64_t half, const at::Tensor& dy_BTD, at::Tensor dx_BTD,
                       TensorReducer& tensor, FiniteWatch& watch) {
  all_reduce_sum(dx_BTD, tensor);
  const at::Tensor sum_BTD = dy_BTD + dx_BTD;
  watch.next_step();
  watch.see(sum_BTD, {FiniteWatch::Value::input_gradient, half});
  return sum_BTD;
}

at::Tensor row_weights(const TokenBatch& batch) {
  const std::int64_t B = batch.tokens_BT.size(0), T = batch.tokens_BT.size(1);
  const at::Tensor weights_B = at::zeros({B}, batch.weights_N.options());
  return weights_B.scatter_reduce(0, batch.positions_N.floor_divide(T), batch.weights_N.abs(),
                                  "amax");
}

LossScale::LossScale(const TokenBatch& batch, at::ScalarType dtype) : narrow_(dtype == at::kHalf) {
  if (!narrow_ || batch.weights_N.numel() == 0) return;
  const double largest = batch.weights_N.abs().max().item<double>();
  if (largest > 0) exponent_ = std::max(0, -std::ilogb(largest));
}

double LossScale::factor() const { return std::ldexp(1.0, exponent_); }

bool LossScale::lower() {
  if (exponent_ == 0) return false;
  exponent_ = std::max(0, exponent_ - 8);
  return true;
}

void LossScale::restore(double factor) { exponent_ = std::ilogb(factor); }

HalfGraph::HalfGraph(const CausalLM& model, std::int64_t half, const at::Tensor& x_BTD,
                     const PackedRows* packed, const BackwardObserver& observer)
    : wants_gate_(observer.wants_gate(half / 2, kind_of(half))),
      wants_output_(observer.wants_output(half / 2, kind_of(half))),
      roles_(observer.wants_weights(half / 2, kind_of(half))),
      leaf_BTD_(x_BTD.detach().requires_grad_(true)) {
  const c10::AutoGradMode mode(true);
  out_ = run_half(model, half, leaf_BTD_, packed);
  // What nobody asks for must not be held.
  std::erase_if(out_.maps, [&](const LinearMap& map) { return !is_wanted(map); });
}

bool HalfGraph::is_wanted(const LinearMap& map) const {
  return std::any_of(roles_.begin(), roles_.end(),
                     [&](TensorRole role) { return weight_of(role) == map.weight; });
}

HalfGraph::Gradients HalfGraph::backward(const at::Tensor& dy_BTD, bool needs_input) {
  Gradients result;
  const bool has_units = out_.partial_BTD.requires_grad();
  // A rank without units takes part where the gate of all ranks is observed.
  if (wants_output_ || (has_units && (wants_gate_ || !roles_.empty())))
    result.observed.emplace().gate = out_.gate.detach();
  if (!has_units) {
    if (needs_input) result.dx_BTD = at::zeros_like(leaf_BTD_);
    return result;
  }
  const c10::AutoGradMode mode(true);
  std::vector<at::Tensor> inputs;
  if (needs_input) inputs.push_back(leaf_BTD_);
  if (wants_gate_) inputs.push_back(out_.gate);
  for (const LinearMap& map : out_.maps) inputs.push_back(map.output);
  if (inputs.empty()) return result;
  std::vector<at::Tensor> gradients = torch::autograd::grad({out_.partial_BTD}, inputs, {dy_BTD});

  std::size_t next = 0;
  if (needs_input) result.dx_BTD = gradients[next++];
  if (!result.observed) return result;
  HalfGradients& observed = *result.observed;
  if (wants_gate_) observed.gate_gradient = gradients[next++];
  const std::span<const at::Tensor> of_outputs = std::span(gradients).subspan(next);
  for (const TensorRole role : roles_)
    observed.weight_gradients.push_back(weight_gradient(role, of_outputs));
  return result;
}

/// A gradient in float16 may overflow where its factors do not: it is made at once, and looked at.
WeightGradient HalfGraph::weight_gradient(TensorRole role,
                                          std::span<const at::Tensor> of_outputs) const {
  const auto is_its = [&](const LinearMap& map) { return map.weight == weight_of(role); };
  const auto map = std::find_if(out_.maps.begin(), out_.maps.end(), is_its);
  ESPALIER_CHECK(map != out_.maps.end(), "a weight without a linear map is observed");
  WeightGradient result{role, of_outputs[static_cast<std::size_t>(map - out_.maps.begin())]};
  if (role == map->weight) result.input = map->input.detach();
  if (result.output_gradient.scalar_type() == at::kHalf) result.value = result.product();
  return result;
}

void see_gradients(std::int64_t half, HalfGraph::Gradients& gradients, FiniteWatch& watch) {
  using Value = FiniteWatch::Value;
  watch.next_step();
  if (gradients.observed) {
    watch.see(gradients.observed->gate_gradient, {Value::gate_gradient, half});
    for (WeightGradient& gradient : gradients.observed->weight_gradients) {
      at::Tensor& seen = gradient.value.defined() ? gradient.value : gradient.output_gradient;
      poison_at("weight.gradient", seen);
      watch.see(seen, {Value::weight_gradient, half, gradient.role});
    }
  }
  poison_at("layer.backward", gradients.dx_BTD);
  pulse::beat();
  watch.see(gradients.dx_BTD, {Value::input_gradient, half});
}

void add_output(const CausalLM& model, std::int64_t half, const TokenBatch& batch,
                const at::Tensor& dy_BTD, const at::Tensor& row_weights_B, const RankGroup& tensor,
                HalfGradients& observed) {
  observed.whole_gate =
      gathered_gate(model, half / 2, kind_of(half), observed.gate, tensor.reducer());
  observed.output_gradient = dy_BTD;
  observed.real_BT = batch.real_BT;
  observed.row_weights_B = row_weights_B;
}

}  // namespace espalier
