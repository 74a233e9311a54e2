#include "espalier/model/load.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "espalier/core/error.h"
#include "espalier/model/tensor_ops.h"

namespace espalier {
namespace {

std::string shape_text(const std::vector<std::int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

/// Reads one slice as a tensor of the stored dtype on the host.
at::Tensor read_slice(const CheckpointReader& reader, const TensorSpec& spec,
                      const TensorSlice& slice) {
  std::vector<std::int64_t> shape{slice.rows.size()};
  if (spec.shape.size() == 2) shape.push_back(slice.columns.size());
  const TensorInfo* info = reader.find(spec.name);
  ESPALIER_CHECK(info != nullptr || has_no_elements(shape),
                 "tensor " + spec.name + " vanished after the checkpoint was checked");
  if (info == nullptr) return at::empty(shape);
  at::Tensor t = at::empty(shape, at::TensorOptions().dtype(to_scalar_type(info->dtype)));
  reader.read(spec.name, slice.rows, slice.columns,
              {static_cast<std::byte*>(t.data_ptr()), static_cast<std::size_t>(t.nbytes())});
  return t;
}

void require_finite(const at::Tensor& t, const TensorSpec& spec, int tensor_index) {
  if (all_finite(t)) return;
  const auto bad = at::logical_not(at::isfinite(t)).sum().item<std::int64_t>();
  const std::string place = spec.layer < 0 ? std::string("outside the decoder layers")
                                           : fmt::format("layer {}", spec.layer);
  throw Error(
      ExitCode::bad_content,
      fmt::format("{} of {} values of tensor '{}' are NaN or infinite", bad, t.numel(), spec.name),
      fmt::format("{}, tensor rank {}", place, tensor_index),
      "Check the checkpoint (espalier verify MODEL --deep), or load it in a wider dtype.");
}

TensorSlice slice_for(const CausalLM& model, const WeightSource& source, const TensorSpec& spec) {
  return slice_of(spec, model.config(), source.widths, {0, model.config().vocabulary},
                  model.shard().widths, model.shard().vocabulary);
}

void load_tensor(CausalLM& model, const WeightSource& source, const TensorSpec& spec) {
  at::Tensor t = read_slice(*source.reader, spec, slice_for(model, source, spec));
  require_finite(t, spec, model.tensor_index());
  model.tensor(spec) = t.to(model.options().device, model.options().dtype);
}

std::int64_t slice_elements(const TensorSpec& spec, const TensorSlice& slice) {
  return slice.rows.size() * (spec.shape.size() == 2 ? slice.columns.size() : 1);
}

}  // namespace

std::vector<std::string> check_checkpoint(const ModelConfig& config, const WeightSource& source) {
  Problems problems;
  std::vector<std::string> notes;
  const auto& tensors = source.reader->tensors();
  std::vector<std::string> available;
  for (const auto& [name, info] : tensors) available.push_back(name);
  std::vector<std::string> expected;
  for (const TensorSpec& spec : tensor_catalog(config)) expected.push_back(spec.name);
  std::sort(expected.begin(), expected.end());
  // Only a tensor that has no place of its own can be the missing one under another name.
  std::vector<std::string> unused;
  for (const std::string& name : available)
    if (!std::binary_search(expected.begin(), expected.end(), name)) unused.push_back(name);
  const std::string where = source.reader->directory().string();
  for (const TensorSpec& spec : tensor_catalog(config)) {
    const TensorInfo* info = source.reader->find(spec.name);
    const std::vector<std::int64_t> shape = shape_with(spec, config, source.widths);
    if (info == nullptr) {
      if (has_no_elements(shape)) continue;
      const std::string near = nearest_name(spec.name, unused);
      problems.add(
          ExitCode::bad_content,
          fmt::format("tensor '{}' {} is missing", spec.name, shape_text(shape)), {},
          near.empty() ? "" : fmt::format("The nearest name in the checkpoint is '{}'.", near),
          where);
      continue;
    }
    if (info->shape != shape)
      problems.add(ExitCode::bad_content,
                   fmt::format("tensor '{}' has shape {}, config.json promises {}", spec.name,
                               shape_text(info->shape), shape_text(shape)),
                   {}, {}, where);
    if (!is_floating(info->dtype))
      problems.add(
          ExitCode::bad_content,
          fmt::format("tensor '{}' is stored as {}", spec.name, safetensors_name(info->dtype)),
          "weights must be F16, BF16, F32 or F64", "Quantized checkpoints cannot be pruned.",
          where);
  }
  problems.throw_if_any();
  std::int64_t extra = 0;
  std::string first_extra;
  for (const std::string& name : available) {
    if (std::binary_search(expected.begin(), expected.end(), name)) continue;
    if (name == "lm_head.weight")
      notes.emplace_back("the embeddings are tied: lm_head.weight of the file is not used");
    else if (extra++ == 0)
      first_extra = name;
  }
  if (extra > 0)
    notes.push_back(fmt::format("{} tensors of the checkpoint are not used (the first: {})", extra,
                                first_extra));
  return notes;
}

at::ScalarType stored_type(const WeightSource& source) {
  const TensorInfo* info = source.reader->find("model.embed_tokens.weight");
  ESPALIER_CHECK(info != nullptr, "stored_type needs a checked checkpoint");
  return to_scalar_type(info->dtype);
}

CausalLM load_causal_lm(const ModelConfig& config, const ModelWidths& widths,
                        const WeightSource& source, const ComputeOptions& options, int tensor_size,
                        int tensor_index, const LoadProgress& progress) {
  std::vector<ShardWidths> shards;
  for (int i = 0; i < tensor_size; ++i) shards.push_back(shard_of(config, widths, tensor_size, i));
  CausalLM model(config, std::move(shards), tensor_index, options);
  const std::vector<TensorSpec> catalog = tensor_catalog(config);
  std::vector<std::int64_t> bytes;
  std::int64_t total = 0;
  for (const TensorSpec& spec : catalog) {
    const TensorInfo* info = source.reader->find(spec.name);
    const std::int64_t item = info == nullptr ? 0 : static_cast<std::int64_t>(size_of(info->dtype));
    bytes.push_back(slice_elements(spec, slice_for(model, source, spec)) * item);
    total += bytes.back();
  }
  std::int64_t done = 0;
  for (std::size_t i = 0; i < catalog.size(); ++i) {
    if (progress) progress(done, total);
    load_tensor(model, source, catalog[i]);
    done += bytes[i];
  }
  if (progress) progress(done, total);
  return model;
}

bool rebalance(CausalLM& model, const WeightSource& source, double limit) {
  if (model.shards().size() == 1 || imbalance(model.config(), model.shards()) <= limit)
    return false;
  ModelWidths kept;
  kept.layers.resize(static_cast<std::size_t>(model.layers()));
  for (const ShardWidths& shard : model.shards())
    for (std::size_t l = 0; l < kept.layers.size(); ++l) {
      const LayerWidths& part = shard.widths.layers[l];
      LayerWidths& all = kept.layers[l];
      all.query_heads.insert(all.query_heads.end(), part.query_heads.begin(),
                             part.query_heads.end());
      all.kv_heads.insert(all.kv_heads.end(), part.kv_heads.begin(), part.kv_heads.end());
      all.channels.insert(all.channels.end(), part.channels.begin(), part.channels.end());
    }
  std::vector<ShardWidths> shards;
  const int count = static_cast<int>(model.shards().size());
  for (int i = 0; i < count; ++i) shards.push_back(shard_of(model.config(), kept, count, i));
  // The best cut of few KV groups can stay above the limit for ever: then moving units would gain
  // nothing.
  if (imbalance(model.config(), shards) >= imbalance(model.config(), model.shards())) return false;
  const ModelWidths before = model.shard().widths;
  model.set_shards(std::move(shards));
  for (const TensorSpec& spec : tensor_catalog(model.config())) {
    if (spec.layer < 0) continue;
    const auto l = static_cast<std::size_t>(spec.layer);
    if (before.layers[l] != model.shard().widths.layers[l]) load_tensor(model, source, spec);
  }
  return true;
}

}  // namespace espalier
