#include "espalier/model/random_weights.h"

#include <ATen/ATen.h>

namespace espalier {
namespace {

constexpr double kDeviation = 0.02;

bool is_norm(TensorRole role) {
  switch (role) {
    case TensorRole::attention_norm:
    case TensorRole::mlp_norm:
    case TensorRole::q_norm:
    case TensorRole::k_norm:
    case TensorRole::final_norm:
      return true;
    default:
      return false;
  }
}

}  // namespace

CausalLM random_causal_lm(const ModelConfig& config, const ModelWidths& widths,
                          const ComputeOptions& options, int tensor_size, int tensor_index) {
  std::vector<ShardWidths> shards;
  shards.reserve(static_cast<std::size_t>(tensor_size));
  for (int i = 0; i < tensor_size; ++i)
    shards.push_back(shard_of(config, widths, tensor_size, i, options.channel_multiple));
  CausalLM model(config, std::move(shards), tensor_index, options);
  const ShardWidths& mine = model.shard();
  const at::TensorOptions where = at::TensorOptions(options.dtype).device(options.device);
  for (const TensorSpec& spec : tensor_catalog(config)) {
    std::vector<std::int64_t> shape = shape_with(spec, config, mine.widths);
    for (std::size_t axis = 0; axis < shape.size(); ++axis)
      if (spec.axes[axis] == AxisKind::vocabulary) shape[axis] = mine.vocabulary.size();
    at::Tensor& t = model.tensor(spec);
    // A bias on the output is whole on every rank, and only one rank's counts.
    if (is_norm(spec.role))
      t = at::ones(shape, where);
    else
      t = at::empty(shape, where).normal_(0, kDeviation);
  }
  return model;
}

}  // namespace espalier
