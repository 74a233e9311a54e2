#include "espalier/model/random_weights.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include <ATen/ATen.h>

#include "espalier/model/tensor_ops.h"

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

at::Tensor random_weight(const TensorSpec& spec, const std::vector<std::int64_t>& shape,
                         at::TensorOptions where) {
  return is_norm(spec.role) ? at::ones(shape, where)
                            : at::empty(shape, where).normal_(0, kDeviation);
}

/// The step of a checkpoint that a tensor is written in.
std::int64_t step_of(const TensorSpec& spec, const ModelConfig& config) {
  return spec.layer < 0 ? config.layers : spec.layer;
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
    // A bias on the output is whole on every rank, and only one rank's counts.
    model.tensor(spec) = random_weight(spec, shape, where);
  }
  return model;
}

RandomCheckpoint::RandomCheckpoint(const ModelConfig& config, const ModelWidths& widths,
                                   at::ScalarType dtype, const std::filesystem::path& directory)
    : config_(config), widths_(widths), dtype_(dtype), specs_(tensor_catalog(config)) {
  std::stable_sort(specs_.begin(), specs_.end(), [&](const TensorSpec& a, const TensorSpec& b) {
    return step_of(a, config_) < step_of(b, config_);
  });
  std::vector<SafetensorsWriter::Entry> entries;
  entries.reserve(specs_.size());
  for (const TensorSpec& spec : specs_)
    entries.push_back({spec.name, to_dtype(dtype_), shape_with(spec, config_, widths_)});
  writer_.emplace(directory / "model.safetensors", std::move(entries),
                  std::map<std::string, std::string>{}, WriteScope::other);
}

void RandomCheckpoint::write(std::int64_t step) {
  for (const TensorSpec& spec : specs_) {
    if (step_of(spec, config_) != step) continue;
    const at::Tensor t =
        random_weight(spec, shape_with(spec, config_, widths_), at::TensorOptions(dtype_));
    writer_->write(spec.name, {static_cast<const std::byte*>(t.const_data_ptr()), t.nbytes()});
  }
  if (step + 1 == steps()) writer_->finish();
}

}  // namespace espalier
