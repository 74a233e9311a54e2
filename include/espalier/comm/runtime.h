#pragma once

#include <memory>
#include <string>

#include "espalier/comm/communicator.h"

namespace espalier {

/// Owns MPI for the process. Without a launcher's variables in the environment MPI is not
/// initialised at all and world() is a `self` communicator, so a single process needs no MPI at run
/// time.
class CommRuntime {
 public:
  /// Initialises MPI (MPI_THREAD_SERIALIZED at least) when OMPI_COMM_WORLD_SIZE, PMIX_RANK,
  /// PMI_RANK or a SLURM_STEP_NUM_TASKS above 1 says that a launcher started us. Throws
  /// Error(unsuitable) when the launcher says several ranks and MPI says one ("started by a
  /// launcher that this MPI does not understand"). SLURM_NTASKS is not consulted: it is set inside
  /// salloc too.
  CommRuntime();
  /// Barrier-free finalisation; call finish() first when ranks end with a code together.
  ~CommRuntime();
  CommRuntime(const CommRuntime&) = delete;
  CommRuntime& operator=(const CommRuntime&) = delete;

  Communicator& world();
  /// Index of this rank among the ranks of its node (MPI_COMM_TYPE_SHARED).
  int node_rank() const;
  int node_size() const;
  /// Barrier and finalise, so that every rank may exit with its code without being killed.
  void finish();
  /// Ends the whole job with `code` at once (one rank's lone failure).
  [[noreturn]] void abort(int code);
  /// "Open MPI v4.1.4, ..." as the loaded library says, and the header's version beside it.
  static std::string library_version();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace espalier
