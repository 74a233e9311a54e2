#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "espalier/core/dtype.h"

namespace espalier {

enum class ModelFamily { llama, mistral, qwen2, qwen3 };
/// "llama", ...: the model_type of config.json.
const char* name_of(ModelFamily family);

/// Rotary embedding: inverse frequency of pair i is theta^(-2i/head_dim); `llama3` rescales the low
/// ones (arXiv 2407.21783; transformers modeling_rope_utils).
struct RopeConfig {
  enum class Type { standard, llama3 };
  Type type = Type::standard;
  double theta = 10000.0;
  double factor = 1.0;
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  std::int64_t original_max_positions = 0;
};

/// Widths of one layer of an `exact` export, in the order of the kept KV heads.
struct ExportedLayer {
  /// Query heads per kept KV head.
  std::vector<std::int64_t> groups;
  std::int64_t channels = 0;
};

/// Architecture facts of the *dense* (unpruned) model, read from config.json.
struct ModelConfig {
  ModelFamily family = ModelFamily::llama;
  std::int64_t hidden = 0;
  std::int64_t layers = 0;
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  /// intermediate_size.
  std::int64_t channels = 0;
  std::int64_t vocabulary = 0;
  std::int64_t max_positions = 0;
  double rms_norm_eps = 1e-6;
  RopeConfig rope;
  bool tied_embeddings = false;
  /// q, k and v projections carry biases (Qwen2).
  bool qkv_bias = false;
  /// o_proj and down_proj carry biases: of our exports that compensate for what was removed. Not of
  /// the dense model, so no parameters of it.
  bool output_bias = false;
  /// RMSNorm per head on q and k (Qwen3).
  bool qk_norm = false;
  /// [layers]; 0 = full causal attention.
  std::vector<std::int64_t> sliding_window;
  /// Stored dtype according to config.json.
  DType dtype = DType::f32;
  /// The bytes of config.json.
  std::string source_text;
  /// Of source_text.
  std::string sha256;
  /// What was decided where config.json is ambiguous.
  std::vector<std::string> notes;
  /// Present when the directory is an `exact` export of ours.
  std::optional<std::vector<ExportedLayer>> exported;

  std::int64_t group_size() const { return heads / kv_heads; }
  bool is_gqa() const { return heads != kv_heads; }
};

/// Reads and checks `directory`/config.json in the field names of transformers 4 and 5. A field
/// that changes the arithmetic and is not implemented is refused by name. Throws Error:
/// missing_input without the file, bad_content for everything that is wrong in it (all problems at
/// once).
ModelConfig read_model_config(const std::filesystem::path& directory);
/// The same from text; `origin` names it in messages.
ModelConfig parse_model_config(std::string text, const std::string& origin);

}  // namespace espalier
