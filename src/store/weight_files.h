#pragma once

#include <filesystem>
#include <map>
#include <set>
#include <string>

namespace espalier {

inline constexpr const char* kSingleFile = "model.safetensors";
inline constexpr const char* kIndexFile = "model.safetensors.index.json";

/// The files of a checkpoint directory that hold its tensors.
struct WeightFiles {
  /// Plain, inside the directory.
  std::set<std::string> names;
  /// Tensor -> file, by the index; empty without one.
  std::map<std::string, std::string> placed;
};

/// One model.safetensors, or the shards of an index; as in transformers the single file goes first.
/// Throws Error(missing_input) saying what the directory holds instead, Error(bad_content) for an
/// index that cannot be used.
WeightFiles find_weight_files(const std::filesystem::path& directory);

/// What to do about a file of a checkpoint that is not there or not whole.
std::string download_remedy(const std::filesystem::path& file);

}  // namespace espalier
