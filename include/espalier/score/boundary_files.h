#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "espalier/core/dtype.h"
#include "espalier/model/boundaries.h"
#include "espalier/store/safetensors.h"

namespace espalier {

/// A micro-batch of a paused pass, to be written.
struct StandingBatch {
  /// Among all of the traversal: the same on every layout.
  std::int64_t number = 0;
  std::vector<std::int64_t> shape;
  std::function<AtBoundary()> read;
};

/// What one rank wrote of a paused pass.
struct BoundaryFile {
  std::int64_t bytes = 0;
  std::string sha256;
};

/// "boundaries-0003.safetensors": of the rank, beside sums.h5.
std::string boundary_file_name(int rank);
bool is_boundary_file_name(const std::string& name);

/// Writes these micro-batches, one at a time in memory, to a new file: tensor `N` [B, T, D] for
/// micro-batch N, and `N.loss_scale`, float64 [1]. Not collective. Throws as SafetensorsWriter
/// does.
BoundaryFile write_boundaries(const std::filesystem::path& path,
                              const std::vector<StandingBatch>& batches, DType dtype);

/// Those of all ranks of the process that paused, opened. Not collective.
class BoundaryFiles {
 public:
  /// Throws Error(bad_content) unless the files of the commit `directory` have micro-batches 0 to
  /// `count`, each once.
  BoundaryFiles(const std::filesystem::path& directory, std::int64_t count);

  /// On the host.
  AtBoundary read(std::int64_t number) const;
  std::int64_t bytes() const { return bytes_; }

 private:
  struct Place {
    std::size_t file = 0;
    TensorInfo values, loss_scale;
  };
  std::vector<SafetensorsFile> files_;
  std::map<std::int64_t, Place> places_;
  std::int64_t bytes_ = 0;
};

/// Where a pass leaves its micro-batches when it is paused, and finds them again.
struct BoundaryKeeper {
  /// Keeps this rank's share; false where it cannot be kept, on all ranks alike. Collective over
  /// the world; throws AgreedError for what cannot be written.
  std::function<bool(const std::vector<StandingBatch>& share)> keep;
  /// As the paused pass has it. Not collective.
  std::function<AtBoundary(std::int64_t number)> recall;
};

}  // namespace espalier
