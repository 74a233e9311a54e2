#include "support/random_model.h"

#include <unistd.h>

#include <cmath>
#include <numeric>

#include "espalier/core/error.h"
#include "espalier/core/hash.h"
#include "espalier/prune/tensor_catalog.h"
#include "espalier/store/safetensors.h"

namespace espalier::testing {
namespace {

double uniform(std::uint64_t seed, std::uint64_t a, std::uint64_t b) {
  const std::uint64_t words[] = {seed, a, b};
  return counter_uniform(words);
}

bool is_norm(TensorRole role) {
  return role == TensorRole::attention_norm || role == TensorRole::mlp_norm ||
         role == TensorRole::final_norm || role == TensorRole::q_norm || role == TensorRole::k_norm;
}

}  // namespace

ModelConfig small_config(ModelFamily family) {
  ModelConfig config;
  config.family = family;
  config.hidden = 24;
  config.layers = 3;
  config.heads = 6;
  config.kv_heads = family == ModelFamily::llama ? 6 : 3;
  config.head_dim = family == ModelFamily::qwen3 ? 6 : 4;
  config.channels = 13;
  config.vocabulary = 37;
  config.max_positions = 64;
  config.qkv_bias = family == ModelFamily::qwen2;
  config.qk_norm = family == ModelFamily::qwen3;
  config.tied_embeddings = family == ModelFamily::qwen2;
  config.sliding_window.assign(3, family == ModelFamily::mistral ? 5 : 0);
  return config;
}

void write_random_checkpoint(const ModelConfig& config, const std::filesystem::path& directory,
                             std::uint64_t seed) {
  const std::vector<TensorSpec> catalog = tensor_catalog(config);
  std::vector<SafetensorsWriter::Entry> entries;
  for (const TensorSpec& spec : catalog) entries.push_back({spec.name, DType::f32, spec.shape});
  SafetensorsWriter writer(directory / "model.safetensors", entries, {});
  for (std::size_t t = 0; t < catalog.size(); ++t) {
    const auto count = std::accumulate(catalog[t].shape.begin(), catalog[t].shape.end(),
                                       std::int64_t{1}, std::multiplies<>());
    std::vector<float> values(static_cast<std::size_t>(count));
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double u = 2 * uniform(seed, t, i) - 1;
      values[i] = static_cast<float>(is_norm(catalog[t].role) ? 1 + 0.3 * u : 0.6 * u);
    }
    writer.write(catalog[t].name, std::as_bytes(std::span(values)));
  }
  writer.finish();
}

ModelWidths random_widths(const ModelConfig& config, std::uint64_t seed) {
  ModelWidths widths = dense_widths(config);
  for (std::size_t l = 0; l < widths.layers.size(); ++l) {
    LayerWidths& layer = widths.layers[l];
    std::erase_if(layer.query_heads, [&](std::int32_t h) {
      return uniform(seed, 2 * l, static_cast<std::uint64_t>(h)) < 0.4;
    });
    std::erase_if(layer.channels, [&](std::int32_t c) {
      return uniform(seed, 2 * l + 1, static_cast<std::uint64_t>(c)) < 0.4;
    });
    if (l == 1) layer.query_heads.clear();
    if (l == 2) layer.channels.clear();
    layer.kv_heads = kept_kv_heads(config, layer.query_heads);
  }
  return widths;
}

}  // namespace espalier::testing
