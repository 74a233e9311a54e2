#include "finite_watch.h"

#include <algorithm>
#include <map>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "espalier/core/error.h"
#include "espalier/core/fault.h"
#include "espalier/model/tensor_ops.h"
#include "espalier/prune/unit_tensors.h"
#include "half_graph.h"

namespace espalier {
namespace {

std::string half_name(std::int64_t half) {
  return fmt::format("{} of layer {}", kind_of(half) == UnitKind::attention ? "attention" : "MLP",
                     half / 2);
}

std::string tensor_name(const CausalLM& model, std::int64_t half, TensorRole role) {
  for (const TensorSpec& spec : layer_tensors(model.config(), static_cast<int>(half / 2)))
    if (spec.role == role) return fmt::format("'{}'", spec.name);
  throw Error(ExitCode::internal, "a layer has no tensor of a role that was observed in it");
}

void poison(at::Tensor& tensor) {
  tensor = tensor.clone();
  tensor.view(-1).narrow(0, 0, 1).fill_(std::numeric_limits<double>::quiet_NaN());
}

std::string describe(const CausalLM& model, const FiniteWatch::Place& place) {
  using Value = FiniteWatch::Value;
  const bool attention = place.half >= 0 && kind_of(place.half) == UnitKind::attention;
  const auto reader = [&] {
    return unit_reader(model.config(), kind_of(place.half), static_cast<int>(place.half / 2)).name;
  };
  switch (place.value) {
    case Value::hidden:
      return place.role == TensorRole::embedding
                 ? "the embedding"
                 : fmt::format("the hidden states after layer {}", model.layers() - 1);
    case Value::output:
      return fmt::format("the output of the {} (tensor '{}')", half_name(place.half), reader());
    case Value::sum:
      return fmt::format("the residual after the {}", half_name(place.half));
    case Value::gate_gradient:
      return fmt::format("the gradient at the gate of the {} (input of tensor '{}')",
                         half_name(place.half), reader());
    case Value::weight_gradient:
      return fmt::format("the gradient of tensor {}, {}",
                         tensor_name(model, place.half, place.role), half_name(place.half));
    case Value::input_gradient:
      break;
  }
  if (place.half < 0)
    return fmt::format("the gradient at the input of tensor 'model.norm.weight', after layer {}",
                       model.layers() - 1);
  return fmt::format(
      "the gradient at the input of tensor {}, {}",
      tensor_name(model, place.half, attention ? TensorRole::attention_norm : TensorRole::mlp_norm),
      half_name(place.half));
}

}  // namespace

void poison_at(std::string_view point, at::Tensor& tensor) {
  if (fault::hit(point).effect == fault::Effect::nan && tensor.defined() && tensor.numel() > 0)
    poison(tensor);
}

void FiniteWatch::see(const at::Tensor& value, const Place& place) {
  if (!value.defined() || value.numel() == 0) return;
  flags_.push_back(finite_flag(value));
  seen_.emplace_back(step_, place);
}

void FiniteWatch::rewind(std::int64_t step) {
  read();
  if (first_ && first_->first >= step) first_.reset();
  step_ = step;
}

void FiniteWatch::read() {
  if (flags_.empty()) return;
  const at::Tensor finite = at::stack(flags_).to(at::kCPU);
  const bool* begin = finite.const_data_ptr<bool>();
  const auto place =
      static_cast<std::size_t>(std::find(begin, begin + seen_.size(), false) - begin);
  if (!first_ && place < seen_.size()) first_ = seen_[place];
  flags_.clear();
  seen_.clear();
}

Problem non_finite(const CausalLM& model, const TokenBatch& batch, const std::string& what,
                   FiniteWatch& watch, const RankGroup& tensor) {
  const std::int64_t mine = watch.first_step(), first = tensor.control().min(mine);
  const bool guilty = mine == first && first != FiniteWatch::kNever;
  const std::vector<std::string> told =
      tensor.control().gather_text(guilty ? describe(model, watch.first_place()) : std::string());
  std::map<std::string, std::vector<int>> ranks_of;
  for (std::size_t rank = 0; rank < told.size(); ++rank)
    if (!told[rank].empty()) ranks_of[told[rank]].push_back(static_cast<int>(rank));
  std::vector<std::string> places;
  places.reserve(ranks_of.size() + 1);
  for (const auto& [place, ranks] : ranks_of)
    places.push_back(fmt::format("{} on tensor rank{} {}", place, ranks.size() > 1 ? "s" : "",
                                 fmt::join(ranks, ", ")));
  if (places.empty()) places.emplace_back("the output projection or the loss");
  return {ExitCode::bad_content, what,
          fmt::format("the first value that is not finite is in {}", fmt::join(places, " and ")),
          "Use a wider model.dtype (float16 overflows easily), or check the weights of that layer "
          "and the calibration data.",
          batch.origin};
}

TokenLosses checked_losses(const CausalLM& model, const TokenBatch& batch, const at::Tensor& nll_N,
                           FiniteWatch& watch, const RankGroup& tensor) {
  tensor.reducer().check();
  TokenLosses losses{nll_N.to(at::kCPU), {}};
  if (!all_finite(losses.nll_N))
    losses.problems.add(non_finite(model, batch, "the loss is NaN or infinite", watch, tensor));
  return losses;
}

}  // namespace espalier
