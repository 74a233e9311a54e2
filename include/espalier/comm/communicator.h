#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "espalier/core/dtype.h"

namespace espalier {

enum class ReduceOp { sum, max, min };

/// Host memory that a collective works on.
struct HostBuffer {
  void* data = nullptr;
  /// Elements.
  std::size_t count = 0;
  DType dtype = DType::f32;
};

/// What went between ranks so far: counted where the library is called, never computed.
struct CommCounters {
  /// Calls that crossed ranks: none in a group of one.
  std::uint64_t collectives = 0;
  /// Handed to the library by this rank.
  std::uint64_t bytes = 0;
  /// Spent inside.
  double seconds = 0;
};

/// What a group of ranks agrees on, counts and tells: numbers and texts in host memory. Tensors are
/// a TensorReducer's. Every method that is not const-and-local is collective over the group and
/// must be called by all its ranks in the same order, from the main thread only. Implementations:
/// `self` (one rank, no library) and `mpi`. Foreign failures throw Error(internal) with the
/// library's own words.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// "self" or "mpi".
  virtual std::string name() const = 0;

  /// In-place reduction; every rank gets the result. f32, f64, i32, i64, u64 and u8; sums of 16-bit
  /// floats are refused, since MPI has no such type: accumulate wide.
  virtual void all_reduce(HostBuffer buffer, ReduceOp op) = 0;
  /// Rank `root`'s content to everybody.
  virtual void broadcast(HostBuffer buffer, int root) = 0;
  /// Concatenates the ranks' contributions (of any lengths) in rank order on every rank.
  virtual std::vector<std::byte> all_gather(std::span<const std::byte> contribution) = 0;
  virtual void barrier() = 0;
  /// Lets the library go on with what it still holds for others. For loops that wait for something
  /// else than this communicator. Local.
  virtual void progress() {}
  /// Groups by color, ordered by key. Every rank of this communicator calls it; one with a negative
  /// color joins no group and gets nullptr. A group of one rank is a `self` communicator.
  virtual std::unique_ptr<Communicator> split(int color, int key) = 0;

  const CommCounters& counters() const { return counters_; }
  void reset_counters() { counters_ = {}; }

  // Conveniences on host memory.
  void all_reduce_sum(std::span<double> values);
  void all_reduce_sum(std::span<float> values);
  void all_reduce_sum(std::span<std::int64_t> values);
  double max(double value);
  std::int64_t min(std::int64_t value);
  /// Concatenation over ranks, on every rank.
  std::vector<double> gather(std::span<const double> values);
  std::vector<std::int32_t> gather(std::span<const std::int32_t> values);
  std::vector<std::int64_t> gather(std::span<const std::int64_t> values);
  /// Rank r's text at place r, on every rank.
  std::vector<std::string> gather_text(const std::string& text);
  std::string broadcast_text(const std::string& text, int root);

 protected:
  CommCounters counters_;
};

/// One rank, no library.
std::unique_ptr<Communicator> make_self_communicator();

}  // namespace espalier
