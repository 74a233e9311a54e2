#include "espalier/model/load.h"

#include <chrono>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "espalier/core/background.h"
#include "espalier/core/error.h"
#include "espalier/model/tensor_ops.h"

namespace espalier {
namespace {

/// Room for one slice as a tensor of the stored dtype on the host.
at::Tensor empty_slice(const CheckpointReader& reader, const TensorSpec& spec,
                       const TensorSlice& slice) {
  std::vector<std::int64_t> shape{slice.rows.size()};
  if (spec.shape.size() == 2) shape.push_back(slice.columns.size());
  const TensorInfo* info = reader.find(spec.name);
  ESPALIER_CHECK(info != nullptr || has_no_elements(shape),
                 "tensor " + spec.name + " vanished after the checkpoint was checked");
  if (info == nullptr) return at::empty(shape);
  return at::empty(shape, at::TensorOptions().dtype(to_scalar_type(info->dtype)));
}

/// Reads into it.
void fill_slice(const CheckpointReader& reader, const TensorSpec& spec, const TensorSlice& slice,
                const at::Tensor& t) {
  if (reader.find(spec.name) == nullptr) return;
  reader.read(spec.name, slice.rows, slice.columns,
              {static_cast<std::byte*>(t.data_ptr()), static_cast<std::size_t>(t.nbytes())});
}

at::Tensor read_slice(const CheckpointReader& reader, const TensorSpec& spec,
                      const TensorSlice& slice) {
  at::Tensor t = empty_slice(reader, spec, slice);
  fill_slice(reader, spec, slice, t);
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

}  // namespace

namespace {

void take_weight(CausalLM& model, const TensorSpec& spec, const at::Tensor& t) {
  require_finite(t, spec, model.tensor_index());
  model.tensor(spec) = t.to(model.options().device, model.options().dtype);
}

}  // namespace

void load_weight(CausalLM& model, const WeightSource& source, const TensorSpec& spec) {
  take_weight(model, spec, read_slice(*source.reader, spec, slice_for(model, source, spec)));
}

at::Tensor read_weight(const ModelConfig& config, const WeightSource& source,
                       const TensorSpec& spec, const ModelWidths& want) {
  const Range vocabulary{0, config.vocabulary};
  at::Tensor t = read_slice(*source.reader, spec,
                            slice_of(spec, config, source.widths, vocabulary, want, vocabulary));
  require_finite(t, spec, 0);
  return t;
}

at::ScalarType stored_type(const WeightSource& source) {
  const TensorInfo* info = source.reader->find("model.embed_tokens.weight");
  ESPALIER_CHECK(info != nullptr, "stored_type needs a checked checkpoint");
  return to_scalar_type(info->dtype);
}

namespace {

std::vector<ShardWidths> cut(const ModelConfig& config, const ModelWidths& widths,
                             const ComputeOptions& options, int count) {
  std::vector<ShardWidths> shards;
  shards.reserve(static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i)
    shards.push_back(shard_of(config, widths, count, i, options.channel_multiple));
  return shards;
}

}  // namespace

CausalLM unloaded_model(const ModelConfig& config, const ModelWidths& widths,
                        const ComputeOptions& options, int tensor_size, int tensor_index) {
  return {config, cut(config, widths, options, tensor_size), tensor_index, options};
}

ModelLoader::ModelLoader(const ModelConfig& config, const ModelWidths& widths,
                         const WeightSource& source, const ComputeOptions& options, int tensor_size,
                         int tensor_index)
    : model_(config, cut(config, widths, options, tensor_size), tensor_index, options),
      source_(source) {}

void ModelLoader::load(std::int64_t step) {
  const int layer = step == model_.layers() ? -1 : static_cast<int>(step);
  std::vector<TensorSpec> specs = tensor_catalog(model_.config());
  std::erase_if(specs, [&](const TensorSpec& spec) { return spec.layer != layer; });
  // The next tensor is read while this one is looked at.
  at::Tensor coming;
  const auto start_reading = [&](const TensorSpec& spec) {
    TensorSlice slice = slice_for(model_, source_, spec);
    coming = empty_slice(*source_.reader, spec, slice);
    return in_background([this, &spec, slice = std::move(slice), room = coming] {
      fill_slice(*source_.reader, spec, slice, room);
    });
  };
  std::future<void> reading = start_reading(specs.front());
  for (std::size_t i = 0; i < specs.size(); ++i) {
    reading.get();
    const at::Tensor t = std::exchange(coming, {});
    if (i + 1 < specs.size()) reading = start_reading(specs[i + 1]);
    take_weight(model_, specs[i], t);
  }
}

StreamedLayers::StreamedLayers(CausalLM& model, WeightSource source)
    : model_(model),
      source_(std::move(source)),
      specs_(static_cast<std::size_t>(model.layers())),
      laid_(static_cast<std::size_t>(model.layers())) {
  for (TensorSpec& spec : tensor_catalog(model.config()))
    if (spec.layer >= 0) specs_[static_cast<std::size_t>(spec.layer)].push_back(std::move(spec));
}

std::vector<StreamedLayers::Part> StreamedLayers::parts_of(std::int64_t layer) const {
  const auto l = static_cast<std::size_t>(layer);
  std::vector<Part> parts;
  for (const TensorSpec& spec : specs_[l])
    if (!laid_[l].contains(spec.role))
      parts.push_back({spec.role, &spec, slice_for(model_, source_, spec)});
  for (const auto& [role, laid] : laid_[l]) {
    Part& part = parts.emplace_back();
    part.role = role;
    part.laid = &laid;
  }
  return parts;
}

void StreamedLayers::make_room(Part& part) const {
  part.values = part.laid != nullptr
                    ? at::empty(part.laid->shape, at::TensorOptions(model_.options().dtype))
                    : empty_slice(*source_.reader, *part.spec, part.slice);
}

void StreamedLayers::fill(const Part& part) const {
  if (part.laid == nullptr) return fill_slice(*source_.reader, *part.spec, part.slice, part.values);
  overlay_->read(part.laid->offset, {static_cast<std::byte*>(part.values.data_ptr()),
                                     static_cast<std::size_t>(part.values.nbytes())});
}

void StreamedLayers::take(std::int64_t layer, const Part& part) {
  if (part.laid == nullptr) return take_weight(model_, *part.spec, part.values);
  model_.layer(layer).by_role(part.role) =
      part.values.to(model_.options().device, model_.options().dtype);
}

void StreamedLayers::read(std::int64_t layer) {
  for (Part& part : parts_of(layer)) {
    make_room(part);
    fill(part);
    take(layer, part);
  }
}

void StreamedLayers::hold(std::int64_t layer, std::optional<std::int64_t> next) {
  const auto begin = std::chrono::steady_clock::now();
  for (std::int64_t l = 0; l < model_.layers(); ++l)
    if (l != layer && model_.has_layer(l)) model_.drop_layer(l);
  bring(layer);
  if (next && *next != layer && *next >= 0 && *next < model_.layers()) begin_reading(*next);
  seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void StreamedLayers::bring(std::int64_t layer) {
  std::vector<Part> came;
  if (!coming_.empty()) {
    const Problems problems = problems_of([&] { reading_.get(); });
    came = std::exchange(coming_, {});
    problems.throw_if_any();
  }
  if (model_.has_layer(layer)) return;
  if (came.empty() || coming_layer_ != layer) return read(layer);
  for (const Part& part : came) take(layer, part);
}

void StreamedLayers::begin_reading(std::int64_t layer) {
  coming_layer_ = layer;
  coming_ = parts_of(layer);
  for (Part& part : coming_) make_room(part);
  // That thread only reads: the C library keeps what a thread allocates in a heap of its own.
  reading_ = in_background([this] {
    for (const Part& part : coming_) fill(part);
  });
}

void StreamedLayers::begin_overlay(const std::filesystem::path& directory) {
  let_go();
  for (auto& layer : laid_) layer.clear();
  overlay_ = std::make_unique<ScratchFile>(directory);
  overlay_bytes_ = 0;
}

void StreamedLayers::lay_over(std::int64_t layer, const std::vector<TensorRole>& roles) {
  ESPALIER_CHECK(overlay_ != nullptr && model_.has_layer(layer) && coming_.empty(),
                 "a layer is laid over while it is here and no other is read");
  for (const TensorRole role : roles) {
    const at::Tensor host =
        model_.layer(layer).by_role(role).to(at::kCPU, model_.options().dtype).contiguous();
    const auto bytes = static_cast<std::size_t>(host.nbytes());
    overlay_->write(overlay_bytes_, {static_cast<const std::byte*>(host.const_data_ptr()), bytes});
    laid_[static_cast<std::size_t>(layer)][role] = {overlay_bytes_, host.sizes().vec()};
    overlay_bytes_ += bytes;
  }
}

void StreamedLayers::hold_all() {
  let_go();
  for (std::int64_t l = 0; l < model_.layers(); ++l) read(l);
}

void StreamedLayers::wait() {
  if (!coming_.empty()) reading_.wait();
  coming_.clear();
}

void StreamedLayers::let_go() {
  wait();
  for (std::int64_t l = 0; l < model_.layers(); ++l) model_.drop_layer(l);
}

CausalLM load_causal_lm(const ModelConfig& config, const ModelWidths& widths,
                        const WeightSource& source, const ComputeOptions& options, int tensor_size,
                        int tensor_index) {
  ModelLoader loader(config, widths, source, options, tensor_size, tensor_index);
  for (std::int64_t step = 0; step < loader.steps(); ++step) loader.load(step);
  return loader.take();
}

namespace {

/// The cut of what all ranks hold together that loading it would make.
std::vector<ShardWidths> fresh_cut(const CausalLM& model) {
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
  return cut(model.config(), kept, model.options(), static_cast<int>(model.shards().size()));
}

void take_cut(CausalLM& model, const WeightSource& source, std::vector<ShardWidths> shards) {
  const ModelWidths before = model.shard().widths;
  model.set_shards(std::move(shards));
  for (const TensorSpec& spec : tensor_catalog(model.config())) {
    if (spec.layer < 0) continue;
    const auto l = static_cast<std::size_t>(spec.layer);
    if (!model.has_layer(spec.layer)) continue;  // read with its new cut when it is needed
    if (before.layers[l] != model.shard().widths.layers[l]) load_weight(model, source, spec);
  }
}

}  // namespace

void recut(CausalLM& model, const WeightSource& source) {
  if (model.shards().size() > 1) take_cut(model, source, fresh_cut(model));
}

bool rebalance(CausalLM& model, const WeightSource& source, double limit) {
  if (model.shards().size() == 1 || imbalance(model.config(), model.shards()) <= limit)
    return false;
  std::vector<ShardWidths> shards = fresh_cut(model);
  // The best cut of few KV groups can stay above the limit for ever: then moving units would gain
  // nothing.
  if (imbalance(model.config(), shards) >= imbalance(model.config(), model.shards())) return false;
  take_cut(model, source, std::move(shards));
  return true;
}

}  // namespace espalier
