#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "espalier/core/stop.h"
#include "espalier/store/hdf5_file.h"

namespace espalier {

/// What a scoring pass had when it was asked to stop: enough to go on with the rest of the data, on
/// any layout. Only criteria whose sums are a few numbers per unit can be paused; `taylor` holds a
/// gradient per weight.
struct PausedPass {
  /// work_of (score.h): sums of other work cannot be continued.
  std::string work;
  /// The one under way.
  std::int64_t iteration = 0;
  /// Done in the traversal under way: a prefix of the order.
  std::int64_t micro_batches = 0;
  /// A row of sums per domain, scored units in the order (layer, unit). No rows for criteria that
  /// look at no data.
  std::vector<std::vector<double>> attention, mlp;
  /// Per domain, so far.
  std::vector<double> loss;
  /// Counted loss tokens so far.
  std::int64_t tokens = 0;
  /// Per domain, tokens so far that are no padding.
  std::vector<double> real_tokens;
};

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
