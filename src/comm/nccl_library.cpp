// The only file that knows NCCL and the CUDA runtime: fills the table of calls.
#include <algorithm>
#include <iterator>

#include <cuda_runtime_api.h>
#include <fmt/format.h>
#include <nccl.h>

#include "espalier/comm/nccl_calls.h"
#include "espalier/core/error.h"

namespace espalier::nccl {
namespace {

static_assert(sizeof(UniqueId) == NCCL_UNIQUE_ID_BYTES);
static_assert(static_cast<int>(Result::success) == ncclSuccess);
static_assert(static_cast<int>(Result::unhandled_cuda_error) == ncclUnhandledCudaError);
static_assert(static_cast<int>(Result::system_error) == ncclSystemError);
static_assert(static_cast<int>(Result::internal_error) == ncclInternalError);
static_assert(static_cast<int>(Result::invalid_argument) == ncclInvalidArgument);
static_assert(static_cast<int>(Result::invalid_usage) == ncclInvalidUsage);
static_assert(static_cast<int>(Result::remote_error) == ncclRemoteError);
static_assert(static_cast<int>(Result::in_progress) == ncclInProgress);

Result told(ncclResult_t result) { return static_cast<Result>(result); }

ncclComm_t comm_of(Comm comm) { return static_cast<ncclComm_t>(comm); }
cudaEvent_t event_of(Event event) { return static_cast<cudaEvent_t>(event); }
cudaStream_t stream_of(Stream stream) { return static_cast<cudaStream_t>(stream); }

/// The error also stays as CUDA's last one, which LibTorch would meet and take for its own.
std::string told(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return {};
  static_cast<void>(cudaGetLastError());
  return fmt::format("{}: {}", call, cudaGetErrorString(error));
}

ncclDataType_t type_of(DType dtype) {
  switch (dtype) {
    case DType::u8:
      return ncclUint8;
    case DType::i32:
      return ncclInt32;
    case DType::i64:
      return ncclInt64;
    case DType::u64:
      return ncclUint64;
    case DType::bf16:
      return ncclBfloat16;
    case DType::f32:
      return ncclFloat32;
    case DType::f64:
      return ncclFloat64;
    default:
      ESPALIER_CHECK(false, "elements that the reducer does not take");
      return ncclNumTypes;
  }
}

ncclRedOp_t operation_of(ReduceOp op) {
  switch (op) {
    case ReduceOp::max:
      return ncclMax;
    case ReduceOp::min:
      return ncclMin;
    case ReduceOp::sum:
      break;
  }
  return ncclSum;
}

std::string bus_id_of(int device, std::string& bus_id) {
  char text[32] = "";
  std::string wrong =
      told(cudaDeviceGetPCIBusId(text, sizeof(text), device), "cudaDeviceGetPCIBusId");
  bus_id = text;
  return wrong;
}

std::string new_event(Event& event) {
  cudaEvent_t made = nullptr;
  std::string wrong =
      told(cudaEventCreateWithFlags(&made, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  event = made;
  return wrong;
}

std::string query(Event event, bool& reached) {
  const cudaError_t state = cudaEventQuery(event_of(event));
  reached = state == cudaSuccess;
  return state == cudaErrorNotReady ? std::string() : told(state, "cudaEventQuery");
}

Result new_id(UniqueId& id) {
  ncclUniqueId made;
  const ncclResult_t result = ncclGetUniqueId(&made);
  std::copy(std::begin(made.internal), std::end(made.internal), id.begin());
  return told(result);
}

/// `comm` is written through its own address, by a thread of NCCL too.
ncclComm_t* address_of(Comm& comm) {
  static_assert(sizeof(Comm) == sizeof(ncclComm_t));
  return reinterpret_cast<ncclComm_t*>(&comm);
}

Result init_rank(Comm& comm, int ranks, const UniqueId& id, int rank) {
  ncclUniqueId given;
  std::copy(id.begin(), id.end(), std::begin(given.internal));
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  config.commName = "espalier";
  return told(ncclCommInitRankConfig(address_of(comm), ranks, given, rank, &config));
}

std::string words(Comm comm, Result result) {
  const std::string last = ncclGetLastError(comm_of(comm));
  const std::string name = ncclGetErrorString(static_cast<ncclResult_t>(result));
  return last.empty() ? name : fmt::format("{}: {}", name, last);
}

Calls filled() {
  Calls calls;
  calls.use_device = [](int device) { return told(cudaSetDevice(device), "cudaSetDevice"); };
  calls.get_bus_id = bus_id_of;
  calls.create_event = new_event;
  calls.record_event = [](Event event, Stream stream) {
    return told(cudaEventRecord(event_of(event), stream_of(stream)), "cudaEventRecord");
  };
  calls.query_event = query;
  calls.destroy_event = [](Event event) { cudaEventDestroy(event_of(event)); };
  calls.get_unique_id = new_id;
  calls.init_rank = init_rank;
  // Without a configuration of its own the part is non-blocking as its parent is.
  calls.split = [](Comm parent, int color, int key, Comm& part) {
    return told(ncclCommSplit(comm_of(parent), color, key, address_of(part), nullptr));
  };
  calls.get_async_error = [](Comm comm, Result& state) {
    ncclResult_t found = ncclSuccess;
    const ncclResult_t result = ncclCommGetAsyncError(comm_of(comm), &found);
    state = told(found);
    return told(result);
  };
  calls.all_reduce = [](void* data, std::size_t count, DType dtype, ReduceOp op, Comm comm,
                        Stream stream) {
    return told(ncclAllReduce(data, data, count, type_of(dtype), operation_of(op), comm_of(comm),
                              stream_of(stream)));
  };
  calls.finalize = [](Comm comm) { return told(ncclCommFinalize(comm_of(comm))); };
  calls.destroy = [](Comm comm) { return told(ncclCommDestroy(comm_of(comm))); };
  calls.abort = [](Comm comm) { return told(ncclCommAbort(comm_of(comm))); };
  calls.words = words;
  return calls;
}

/// 22809 is 2.28.9.
std::string version_of(int code) {
  return fmt::format("{}.{}.{}", code / 10000, code / 100 % 100, code % 100);
}

}  // namespace

const Calls* library() {
  static const Calls calls = filled();
  return &calls;
}

std::string library_version() {
  int loaded = 0;
  const bool known = ncclGetVersion(&loaded) == ncclSuccess;
  return fmt::format("{}; compiled with {}", known ? version_of(loaded) : "unknown",
                     version_of(NCCL_VERSION_CODE));
}

}  // namespace espalier::nccl
