#pragma once

#include <memory>
#include <optional>
#include <string>

#include "espalier/comm/nccl_calls.h"
#include "espalier/comm/process_grid.h"
#include "espalier/comm/tensor_reducer.h"

/// Sums of tensors in GPU memory over NCCL. A sum is put on the stream of its tensor, since what
/// comes next on that stream needs it, and the main thread goes on; check() waits for all sums, one
/// after the other, looks meanwhile for what NCCL found wrong, and gives up after a deadline. It
/// never waits inside a library, so that abort() from another thread always ends the wait.
///
/// What is thrown: peer_lost (76) where another rank is gone or does not come; when ranks connect,
/// unsuitable (69) for everything else; afterwards internal (70) with the library's own words. A
/// communicator that failed is ended (ncclCommAbort), once, and the reducer with it.
namespace espalier::nccl {

struct Options {
  /// CUDA's number of this rank's GPU.
  int device = 0;
  /// Longest that this rank waits in one place for the others; 0: as long as it takes.
  double deadline_seconds = 600;
};

/// A communicator: used by the main thread, ended by any. Left in order (finalize, destroy) when
/// the last owner lets go of it, ended where it failed or an exception unwinds.
class Connection;

/// Joins `ranks` ranks that have the same `id`. Collective over them, and fails on one rank alone.
/// `control` is asked to make progress during waits, and outlives the connection.
std::shared_ptr<Connection> join(const Calls& calls, Communicator& control, const Options& options,
                                 int ranks, const UniqueId& id, int rank);
/// The ranks of `parent` that give the same color, ordered by key, `ranks` in number. Collective
/// over the parent's ranks, and fails on one rank alone.
std::shared_ptr<Connection> split(const std::shared_ptr<Connection>& parent, int color, int key,
                                  int ranks);

/// Which 16-bit floats cross ranks as they are: bfloat16 of activations and their gradients; none
/// of statistics, whose sums are wide. float16 goes as float32 always: its range is too small.
enum class Wire { activations, statistics };

/// Reduces device memory over `connection`, and host memory over `control`, which is of the same
/// ranks and outlives the reducer.
std::unique_ptr<TensorReducer> make_reducer(std::shared_ptr<Connection> connection,
                                            Communicator& control, Wire wire);

/// Why NCCL cannot serve these ranks: no NCCL in the build (`calls` is null), a rank without a GPU
/// (`device` is absent), ranks that share one. Empty where it can. The same on every rank.
/// Collective over `world`.
std::string obstacle(const Calls* calls, Communicator& world, std::optional<int> device);

/// Gives the groups of the grid reducers over NCCL: the unique id of rank 0 goes to all over MPI,
/// all join one communicator, and the tensor and data groups are split from it; a group of one rank
/// keeps the reducer that it has. Collective over the world of the grid. Throws AgreedError.
void connect(const Calls& calls, const ProcessGrid& grid, const Options& options);

}  // namespace espalier::nccl
