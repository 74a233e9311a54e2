#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "espalier/core/stop.h"
#include "espalier/store/hdf5_file.h"

namespace espalier {

/// What a pass that goes layer by layer has finished: layers, of whose sums nothing but values is
/// left. Where the micro-batches are then is kept apart (boundary_files.h).
struct FinishedLayers {
  /// Whole traversals of the data (of a domain each, where these are scored one by one).
  std::int64_t traversals = 0;
  /// Of the one under way: the last ones where the criterion needs gradients, else the first ones.
  std::int64_t layers = 0;
  /// Values of each domain by itself beside pooled ones, and sums that means are made of: rows as
  /// those of the pass; none where nobody asked for them.
  std::vector<std::vector<double>> alone_attention{}, alone_mlp{};
  std::vector<std::vector<double>> reduced_attention{}, reduced_mlp{};
  /// Micro-batches that the data are without.
  struct Skipped {
    std::size_t domain = 0;
    std::vector<std::int64_t> rows;
  };
  std::vector<Skipped> skipped{};
};

/// What a scoring pass had when it was asked to stop: enough to go on, on any layout. Micro-batch
/// by micro-batch only criteria whose sums are a few numbers per unit can be paused, since `taylor`
/// holds a gradient per weight; layer by layer all can.
struct PausedPass {
  /// work_of (score.h): sums of other work cannot be continued.
  std::string work;
  /// The one under way.
  std::int64_t iteration = 0;
  /// Done in the traversal under way: a prefix of the order. Layer by layer, those that boundaries
  /// were kept of: all, or none where no layer of the traversal is finished.
  std::int64_t micro_batches = 0;
  /// A row of sums per domain, scored units in the order (layer, unit). No rows for criteria that
  /// look at no data. Layer by layer, rows of values; 0 in layers that are not finished.
  std::vector<std::vector<double>> attention, mlp;
  /// Per domain, so far.
  std::vector<double> loss;
  /// Counted loss tokens so far.
  std::int64_t tokens = 0;
  /// Per domain, tokens so far that are no padding.
  std::vector<double> real_tokens;
  /// Of a pass that goes layer by layer.
  std::optional<FinishedLayers> finished = std::nullopt;
};

/// "17 micro-batches", "2 layers", "1 traversal and 2 layers of the next".
std::string what_is_done(const PausedPass& pass);

/// Thrown on every rank together in place of stop::Stopped when the pass can be continued.
class Paused : public stop::Stopped {
 public:
  Paused(int level, PausedPass pass) : Stopped(level), pass_(std::move(pass)) {}
  const PausedPass& pass() const { return pass_; }

 private:
  PausedPass pass_;
};

/// The bytes of sums.h5 (docs/file-formats.md).
std::vector<std::byte> sums_image(const PausedPass& pass);
/// Throws Error(bad_content) naming object and value.
PausedPass read_sums(const Hdf5Reader& file);

}  // namespace espalier
