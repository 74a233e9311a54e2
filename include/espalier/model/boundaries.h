#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

namespace espalier {

/// What goes from one layer to the next in a pass that takes all micro-batches through a layer
/// before the next: a tensor [B, T, D] of each of this rank's micro-batches at each of a number of
/// places, which it may be asked for once or more. Not collective; files throw as store/files.h
/// says.
class Boundaries {
 public:
  virtual ~Boundaries() = default;
  /// Keeps `x_BTD`, which nobody changes afterwards, in the place of what was there before. At one
  /// place a micro-batch always has the same shape and dtype.
  virtual void put(std::int64_t place, std::size_t micro_batch, const at::Tensor& x_BTD) = 0;
  /// What was put there, on the model's device.
  virtual at::Tensor get(std::int64_t place, std::size_t micro_batch) = 0;
  /// This will be asked for next.
  virtual void will_get(std::int64_t place, std::size_t micro_batch) = 0;
  /// Forgets one micro-batch's, or all of a place.
  virtual void drop(std::int64_t place, std::size_t micro_batch) = 0;
  virtual void drop(std::int64_t place) = 0;

  /// The most bytes that were kept at once.
  std::int64_t most_bytes() const { return most_bytes_; }

 protected:
  void count(std::int64_t bytes);

 private:
  std::int64_t bytes_ = 0, most_bytes_ = 0;
};

/// In the memory of the host.
std::unique_ptr<Boundaries> boundaries_in_memory(c10::Device device);
/// In files without a name in `directory`, one for each place; the page cache is the buffer between
/// computing and the disk in both directions.
std::unique_ptr<Boundaries> boundaries_in_files(const std::filesystem::path& directory,
                                                c10::Device device);

/// A micro-batch between two layers.
struct AtBoundary {
  /// Hidden states on the way forward; on the way back gradients, times `loss_scale`.
  at::Tensor x_BTD;
  double loss_scale = 1;
};

/// Makes the boundaries of a pass.
using BoundariesMaker = std::function<std::unique_ptr<Boundaries>()>;

}  // namespace espalier
