#pragma once

#include <atomic>
#include <cstddef>
#include <memory>

#include "espalier/comm/communicator.h"
#include "espalier/core/error.h"

namespace espalier {

/// Where a tensor's elements lie. `device` is the rank's GPU.
enum class Memory { host, device };

/// The contiguous elements of a tensor.
struct TensorBuffer {
  void* data = nullptr;
  /// Elements.
  std::size_t count = 0;
  DType dtype = DType::f32;
  Memory memory = Memory::host;
  /// Of device memory: the cudaStream_t whose earlier work made the values, and whose later work
  /// reads the result. An operation on it may end after the call.
  void* stream = nullptr;
};

/// Reduces tensors over a group of ranks: the one operation whose bytes grow with the model, and
/// the one for which there are libraries that read GPU memory. All else that ranks say to each
/// other goes through a Communicator.
///
/// all_reduce is collective over the group: all ranks call it in the same order, from the main
/// thread, with the same count, dtype and memory. A reducer that takes device memory may fail long
/// after a call returned; check() asks. Foreign failures throw Error(internal) with the library's
/// own words, or Error(peer_lost) where the library says that another rank is gone.
class TensorReducer {
 public:
  virtual ~TensorReducer() = default;

  virtual int size() const = 0;
  /// Whether all_reduce takes elements of `dtype` in `memory`. Who has others converts or copies
  /// them. The same on every rank.
  virtual bool takes(DType dtype, Memory memory) const = 0;
  /// In place, every rank gets the result. Throws Error(internal) for what it does not take and
  /// after abort().
  void all_reduce(const TensorBuffer& buffer, ReduceOp op);
  /// Throws what the library found wrong since the last call, and after abort(). Comes before what
  /// was reduced is read on the host, which would wait without end for a rank that does not come.
  /// Local.
  void check();
  /// Ends what this rank waits for, for good: later calls throw an error of code `because`. From
  /// any thread; local, and the other ranks may wait until their own is called.
  void abort(ExitCode because = ExitCode::internal) noexcept;
  /// What did not go through a communicator that counts by itself.
  const CommCounters& counters() const { return counters_; }
  void reset_counters() { counters_ = {}; }

 protected:
  virtual void reduce(const TensorBuffer& buffer, ReduceOp op) = 0;
  /// For libraries that fail after the call.
  virtual void check_library() {}
  virtual void abort_library() noexcept {}
  /// Throws after abort().
  void require_not_aborted() const;

  CommCounters counters_;

 private:
  std::atomic<ExitCode> aborted_ = ExitCode::ok;
};

/// Reduces through `control`, which must outlive it and counts. Takes what Communicator::all_reduce
/// takes, in host memory.
std::unique_ptr<TensorReducer> make_host_reducer(Communicator& control);

}  // namespace espalier
