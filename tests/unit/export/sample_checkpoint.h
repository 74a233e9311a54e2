#pragma once

#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "espalier/config/model_config.h"
#include "espalier/core/hash.h"
#include "espalier/core/json.h"
#include "espalier/export/export_model.h"
#include "espalier/prune/tensor_catalog.h"
#include "espalier/store/safetensors.h"
#include "support/temporary_directory.h"
#include "unit/prune/sample_models.h"

namespace espalier::testing {

namespace fs = std::filesystem;

inline void write_text(const fs::path& path, const std::string& text) {
  fs::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

inline std::string read_text(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in.good()) << path;
  return {std::istreambuf_iterator<char>(in), {}};
}

inline nlohmann::ordered_json read_json(const fs::path& path) {
  return nlohmann::ordered_json::parse(read_text(path));
}

/// Every file below `directory`, relative, ascending.
inline std::vector<std::string> files_below(const fs::path& directory) {
  std::set<std::string> names;
  for (const auto& entry : fs::recursive_directory_iterator(directory))
    if (!entry.is_directory()) names.insert(fs::relative(entry.path(), directory).string());
  return {names.begin(), names.end()};
}

/// config.json of a small model: 4 layers, 6 query heads on 3 KV heads of 4, 10 channels,
/// hidden 12.
inline std::string sample_config(const std::string& family, bool tied,
                                 const std::string& extra = {}) {
  const std::string stem = family == "llama"     ? "Llama"
                           : family == "mistral" ? "Mistral"
                           : family == "qwen2"   ? "Qwen2"
                                                 : "Qwen3";
  return fmt::format(
      R"({{"architectures": ["{}ForCausalLM"], "model_type": "{}", "hidden_size": 12, )"
      R"("num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 3, )"
      R"("head_dim": 4, )"
      R"("intermediate_size": 10, "vocab_size": 17, "max_position_embeddings": 64, )"
      R"("rms_norm_eps": 1e-05, "hidden_act": "silu", "rope_theta": 20000.0, )"
      R"("torch_dtype": "bfloat16", "tie_word_embeddings": {}{}}})",
      stem, family, tied, extra);
}

/// One stored tensor with its bytes.
struct StoredTensor {
  DType dtype;
  std::vector<std::int64_t> shape;
  std::string bytes;
};
using StoredTensors = std::map<std::string, StoredTensor>;

inline std::int64_t elements_of(const std::vector<std::int64_t>& shape) {
  std::int64_t n = 1;
  for (const std::int64_t size : shape) n *= size;
  return n;
}

/// Bytes that are a function of the tensor's name: any mistake in a slice shows.
inline StoredTensor drawn_tensor(const std::string& name, std::vector<std::int64_t> shape,
                                 DType dtype) {
  StoredTensor tensor{dtype, std::move(shape), {}};
  const auto size = static_cast<std::size_t>(elements_of(tensor.shape)) * size_of(dtype);
  for (std::size_t i = 0; i < size; ++i) {
    const std::array<std::uint64_t, 2> words{std::hash<std::string>{}(name), i};
    tensor.bytes.push_back(static_cast<char>(counter_hash(words) & 0xff));
  }
  return tensor;
}

/// All tensors of the dense model. Norms are stored in float32, the rest in `dtype`.
inline StoredTensors drawn_tensors(const ModelConfig& config, DType dtype) {
  StoredTensors tensors;
  for (const TensorSpec& spec : tensor_catalog(config)) {
    const bool norm = spec.name.find("norm") != std::string::npos;
    tensors[spec.name] = drawn_tensor(spec.name, spec.shape, norm ? DType::f32 : dtype);
  }
  return tensors;
}

/// Writes `tensors` as model.safetensors, or as two shards with an index.
inline void write_tensors(const fs::path& directory, const StoredTensors& tensors,
                          bool sharded = false) {
  fs::create_directories(directory);
  const std::size_t half = sharded ? tensors.size() / 2 : tensors.size();
  nlohmann::json weight_map;
  auto next = tensors.begin();
  for (const std::string& file : sharded
                                     ? std::vector<std::string>{"model-00001-of-00002.safetensors",
                                                                "model-00002-of-00002.safetensors"}
                                     : std::vector<std::string>{"model.safetensors"}) {
    const auto first = next;
    for (std::size_t i = 0; next != tensors.end() && (i < half || file.starts_with("model-00002"));
         ++i)
      ++next;
    std::vector<SafetensorsWriter::Entry> entries;
    for (auto at = first; at != next; ++at)
      entries.push_back({at->first, at->second.dtype, at->second.shape});
    SafetensorsWriter writer(directory / file, entries, {});
    for (auto at = first; at != next; ++at) {
      writer.write(at->first, std::as_bytes(std::span(at->second.bytes)));
      weight_map[at->first] = file;
    }
    writer.finish();
  }
  if (sharded)
    write_text(
        directory / "model.safetensors.index.json",
        nlohmann::json{{"metadata", nlohmann::json::object()}, {"weight_map", weight_map}}.dump());
}

/// Every tensor of a checkpoint, read whole.
inline StoredTensors read_tensors(const fs::path& directory) {
  const CheckpointReader reader = CheckpointReader::open(directory);
  StoredTensors tensors;
  for (const auto& [name, info] : reader.tensors()) {
    StoredTensor tensor{info.dtype, info.shape, {}};
    tensor.bytes.resize(static_cast<std::size_t>(elements_of(info.shape)) * size_of(info.dtype));
    const std::int64_t columns = info.shape.size() > 1 ? info.shape[1] : 1;
    if (!tensor.bytes.empty())
      reader.read(name, IndexRuns::all(info.shape[0]), IndexRuns::all(columns),
                  std::as_writable_bytes(std::span(tensor.bytes)));
    tensors[name] = tensor;
  }
  return tensors;
}

/// A checkpoint directory of a small random model, and its parsed parts.
struct SampleCheckpoint {
  SampleCheckpoint(const fs::path& where, const std::string& config_text, DType dtype,
                   bool sharded = false)
      : directory(where), config(parse_model_config(config_text, "sample")) {
    write_text(directory / "config.json", config_text);
    tensors = drawn_tensors(config, dtype);
    write_tensors(directory, tensors, sharded);
  }
  CheckpointReader open() const { return CheckpointReader::open(directory); }

  fs::path directory;
  ModelConfig config;
  StoredTensors tensors;
};

/// Widths from lists of kept query heads and channels per layer.
inline ModelWidths widths_from(const ModelConfig& config,
                               const std::vector<std::vector<std::int32_t>>& heads,
                               const std::vector<std::vector<std::int32_t>>& channels) {
  ModelWidths widths;
  for (std::size_t i = 0; i < heads.size(); ++i)
    widths.layers.push_back({heads[i], kept_kv_heads(config, heads[i]), channels[i]});
  return widths;
}

/// Uneven groups, an unread KV head, a layer without heads, one without channels.
inline ModelWidths uneven_widths(const ModelConfig& config) {
  return widths_from(config, {{0, 1, 2}, {}, {5}, {1, 4, 5}},
                     {{0, 3, 9}, {1, 2, 4, 5, 6, 7}, {}, {8}});
}

/// What the export must hold, by loops over single elements. Written without slice_of on purpose.
inline StoredTensors expected_tensors(const ModelConfig& config, const StoredTensors& dense,
                                      const ModelWidths& kept) {
  const auto kept_rows = [&](const std::vector<std::int32_t>& units, std::int64_t width) {
    std::set<std::int64_t> rows;
    for (const std::int32_t unit : units)
      for (std::int64_t i = 0; i < width; ++i) rows.insert(unit * width + i);
    return rows;
  };
  StoredTensors result;
  for (const auto& [name, tensor] : dense) {
    if (config.tied_embeddings && name == "lm_head.weight") continue;
    std::set<std::int64_t> rows, columns;
    const std::int64_t width = tensor.shape.size() > 1 ? tensor.shape[1] : 1;
    for (std::int64_t i = 0; i < tensor.shape[0]; ++i) rows.insert(i);
    for (std::int64_t j = 0; j < width; ++j) columns.insert(j);
    if (name.starts_with("model.layers.")) {
      const LayerWidths& layer = kept.layers[static_cast<std::size_t>(name[13] - '0')];
      const auto has = [&](const char* part) { return name.find(part) != std::string::npos; };
      if (has("q_proj")) rows = kept_rows(layer.query_heads, config.head_dim);
      if (has("k_proj") || has("v_proj")) rows = kept_rows(layer.kv_heads, config.head_dim);
      if (has("o_proj")) columns = kept_rows(layer.query_heads, config.head_dim);
      if (has("gate_proj") || has("up_proj")) rows = kept_rows(layer.channels, 1);
      if (has("down_proj")) columns = kept_rows(layer.channels, 1);
    }
    StoredTensor cut{tensor.dtype, tensor.shape, {}};
    cut.shape[0] = static_cast<std::int64_t>(rows.size());
    if (cut.shape.size() > 1) cut.shape[1] = static_cast<std::int64_t>(columns.size());
    const std::size_t item = size_of(tensor.dtype);
    for (const std::int64_t i : rows)
      for (const std::int64_t j : columns)
        cut.bytes += tensor.bytes.substr(static_cast<std::size_t>(i * width + j) * item, item);
    result[name] = cut;
  }
  return result;
}

inline void expect_same_tensors(const StoredTensors& actual, const StoredTensors& expected) {
  for (const auto& [name, tensor] : expected) {
    const auto found = actual.find(name);
    if (found == actual.end()) {
      ADD_FAILURE() << name << " is missing";
      continue;
    }
    EXPECT_EQ(found->second.dtype, tensor.dtype) << name;
    EXPECT_EQ(found->second.shape, tensor.shape) << name;
    EXPECT_TRUE(found->second.bytes == tensor.bytes) << name << " has other bytes";
  }
  for (const auto& [name, tensor] : actual)
    EXPECT_TRUE(expected.contains(name)) << name << " is too many";
}

/// Options for an export to `out` with a small plan image.
inline ExportOptions options_for(const fs::path& out) {
  ExportOptions options;
  options.out = out;
  options.provenance = R"({"command": "test"})";
  return options;
}

/// The error that `call` throws; fails when it throws none.
template <class Call>
Error error_of(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "no error";
  return Error(ExitCode::ok, "no error");
}

}  // namespace espalier::testing
