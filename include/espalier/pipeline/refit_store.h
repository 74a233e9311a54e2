#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "espalier/refit/refit.h"
#include "espalier/store/safetensors.h"

namespace espalier {

/// The finished layers of one refit (docs/file-formats.md): layer-000003/ with MANIFEST.json and,
/// where a matrix of the layer changed, model.safetensors. A layer appears whole, by one rename.
/// They lie beside the last commit, whose weights they are not part of: thin commits stay thin.
class RefitStore {
 public:
  /// `key` says of what this is a refit: layers of another one are none of this.
  RefitStore(std::filesystem::path directory, std::string key);

  const std::filesystem::path& directory() const { return directory_; }
  static std::string layer_name(std::int64_t layer);

  /// Makes the directory and removes what writers that died left in it. One process, before keep().
  void prepare() const;
  /// A layer that is there and whole. Nothing once one was not: what lies above was made on top of
  /// another. A damaged one is told, and removed. One process.
  std::optional<RefittedLayer> recall(std::int64_t layer);
  /// Writes a layer: the rank that solved it.
  void keep(const RefittedLayer& layer) const;

 private:
  std::filesystem::path directory_;
  std::string key_;
  bool gone_ = false;
};

/// All layers of a refit that is whole, opened.
struct RefitParts {
  std::vector<RefitFacts> facts;
  std::vector<std::unique_ptr<CheckpointReader>> readers;
  /// Where each matrix is read from, by its name in the checkpoint.
  std::map<std::string, const CheckpointReader*> matrices;
};
/// Opens the layers below `directory` and compares every file with its hash. Throws Error as
/// read_commit does, for a layer that is missing, damaged or of another key. Not collective.
RefitParts open_refit(const std::filesystem::path& directory, const std::string& key,
                      std::int64_t layers);

/// The same of what is there of an unfinished one: the number of layers, each checked.
std::int64_t check_refit_layers(const std::filesystem::path& directory);

/// Removes all refits below `root` (RUN/refit) but the one of that name. One process.
void sweep_refits(const std::filesystem::path& root, const std::string& kept);

}  // namespace espalier
