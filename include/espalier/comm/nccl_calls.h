#pragma once

#include <array>
#include <cstddef>
#include <functional>
#include <string>

#include "espalier/comm/communicator.h"
#include "espalier/core/dtype.h"

/// What the reduction on GPUs calls of NCCL and of the CUDA runtime, as a table, so that how it
/// waits, gives up and leaves (comm/nccl_reducer.h) works and is tested where neither library is.
namespace espalier::nccl {

/// ncclResult_t, number by number.
enum class Result : int {
  success = 0,
  unhandled_cuda_error = 1,
  system_error = 2,
  internal_error = 3,
  invalid_argument = 4,
  invalid_usage = 5,
  remote_error = 6,
  in_progress = 7,
};

/// ncclUniqueId.
using UniqueId = std::array<char, 128>;
/// ncclComm_t, cudaEvent_t and cudaStream_t.
using Comm = void*;
using Event = void*;
using Stream = void*;

/// Communicators are made non-blocking: every call returns at once, and `in_progress` says that it
/// has not come to its end, which get_async_error then tells. The functions of CUDA return what the
/// library says is wrong; empty: nothing is. All but `abort` are called by the main thread.
struct Calls {
  /// cudaSetDevice.
  std::function<std::string(int device)> use_device;
  /// cudaDeviceGetPCIBusId: "0000:3B:00.0".
  std::function<std::string(int device, std::string& bus_id)> get_bus_id;
  /// cudaEventCreateWithFlags, without timing.
  std::function<std::string(Event& event)> create_event;
  std::function<std::string(Event event, Stream stream)> record_event;
  /// cudaEventQuery: whether the stream has come to where the event was recorded.
  std::function<std::string(Event event, bool& reached)> query_event;
  std::function<void(Event event)> destroy_event;

  std::function<Result(UniqueId& id)> get_unique_id;
  /// ncclCommInitRankConfig on the device in use.
  std::function<Result(Comm& comm, int ranks, const UniqueId& id, int rank)> init_rank;
  /// ncclCommSplit. `part` may be written until the parent is no longer in progress.
  std::function<Result(Comm parent, int color, int key, Comm& part)> split;
  /// ncclCommGetAsyncError.
  std::function<Result(Comm comm, Result& state)> get_async_error;
  /// ncclAllReduce, in place.
  std::function<Result(void* data, std::size_t count, DType dtype, ReduceOp op, Comm comm,
                       Stream stream)>
      all_reduce;
  std::function<Result(Comm comm)> finalize;
  std::function<Result(Comm comm)> destroy;
  std::function<Result(Comm comm)> abort;
  /// ncclGetErrorString and ncclGetLastError; `comm` may be null.
  std::function<std::string(Comm comm, Result result)> words;
};

/// Those of the libraries that this program is linked with; null in a build without NCCL.
const Calls* library();
/// "2.28.9; compiled with 2.28.9", or "not in this build".
std::string library_version();

}  // namespace espalier::nccl
