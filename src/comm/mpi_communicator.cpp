#include "mpi_communicator.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <numeric>
#include <string>

#include <fmt/format.h>

#include "buffer_rules.h"
#include "espalier/core/error.h"
#include "espalier/core/pulse.h"

namespace espalier {
namespace {

// In-place reductions in blocking pieces of this size were the fastest form over shared memory, and
// pieces keep every count far below MPI's int limit.
constexpr std::size_t kReduceBytes = std::size_t{2} << 20;
constexpr std::size_t kBroadcastBytes = std::size_t{16} << 20;
// Above this total, an all-gather becomes one broadcast per rank: displacements are ints too.
constexpr std::size_t kGatherBytes = std::size_t{64} << 20;

MPI_Datatype mpi_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return MPI_FLOAT;
    case DType::f64:
      return MPI_DOUBLE;
    case DType::i32:
      return MPI_INT32_T;
    case DType::i64:
      return MPI_INT64_T;
    case DType::u64:
      return MPI_UINT64_T;
    case DType::u8:
      return MPI_UINT8_T;
    default:
      break;
  }
  throw Error(ExitCode::internal, fmt::format("MPI has no {}", safetensors_name(dtype)));
}

MPI_Op mpi_op(ReduceOp op) {
  switch (op) {
    case ReduceOp::sum:
      return MPI_SUM;
    case ReduceOp::max:
      return MPI_MAX;
    case ReduceOp::min:
      return MPI_MIN;
  }
  throw Error(ExitCode::internal, "unknown reduction");
}

/// Counts one collective and the time until the end of the scope.
class Count {
 public:
  explicit Count(CommCounters& counters) : counters_(counters) { ++counters_.collectives; }
  ~Count() {
    const auto elapsed = std::chrono::steady_clock::now() - start_;
    counters_.seconds += std::chrono::duration<double>(elapsed).count();
  }
  Count(const Count&) = delete;
  Count& operator=(const Count&) = delete;

 private:
  CommCounters& counters_;
  const pulse::Wait wait_{pulse::Waiting::ranks};
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

class MpiCommunicator final : public Communicator {
 public:
  explicit MpiCommunicator(MPI_Comm comm) : comm_(comm) {
    check_mpi(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    check_mpi(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
    check_mpi(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
  }

  ~MpiCommunicator() override {
    int finalized = 0;
    MPI_Finalized(&finalized);
    // Freeing is collective by the standard: a rank that alone unwinds an exception must not wait
    // in it.
    if (finalized == 0 && std::uncaught_exceptions() == 0) MPI_Comm_free(&comm_);
  }

  MpiCommunicator(const MpiCommunicator&) = delete;
  MpiCommunicator& operator=(const MpiCommunicator&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string name() const override { return "mpi"; }

  void all_reduce(HostBuffer buffer, ReduceOp op) override {
    require_address(buffer, "all_reduce");
    require_reducible(buffer);
    if (buffer.count == 0) return;
    const Count count(counters_);
    const std::size_t width = size_of(buffer.dtype);
    const std::size_t chunk = kReduceBytes / width;
    auto* bytes = static_cast<std::byte*>(buffer.data);
    for (std::size_t at = 0; at < buffer.count; at += chunk) {
      const std::size_t n = std::min(chunk, buffer.count - at);
      check_mpi(MPI_Allreduce(MPI_IN_PLACE, bytes + at * width, static_cast<int>(n),
                              mpi_type(buffer.dtype), mpi_op(op), comm_),
                "MPI_Allreduce");
      counters_.bytes += n * width;
    }
  }

  void broadcast(HostBuffer buffer, int root) override {
    require_address(buffer, "broadcast");
    require_root(root, size_);
    if (buffer.count == 0) return;
    const Count count(counters_);
    broadcast_bytes(static_cast<std::byte*>(buffer.data), buffer.count * size_of(buffer.dtype),
                    root);
  }

  std::vector<std::byte> all_gather(std::span<const std::byte> contribution) override {
    const Count count(counters_);
    const std::vector<std::uint64_t> lengths = gather_lengths(contribution.size());
    const std::uint64_t total = std::accumulate(lengths.begin(), lengths.end(), std::uint64_t{0});
    std::vector<std::byte> all(total);
    if (total == 0) return all;
    if (total <= kGatherBytes) {
      gather_at_once(contribution, lengths, all);
    } else {
      gather_rank_by_rank(contribution, lengths, all);
    }
    return all;
  }

  void barrier() override {
    const Count count(counters_);
    check_mpi(MPI_Barrier(comm_), "MPI_Barrier");
  }

  void progress() override {
    int is_there = 0;
    check_mpi(MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, comm_, &is_there, MPI_STATUS_IGNORE),
              "MPI_Iprobe");
  }

  std::unique_ptr<Communicator> split(int color, int key) override {
    const Count count(counters_);
    MPI_Comm part = MPI_COMM_NULL;
    check_mpi(MPI_Comm_split(comm_, color < 0 ? MPI_UNDEFINED : color, key, &part),
              "MPI_Comm_split");
    return part == MPI_COMM_NULL ? nullptr : adopt_mpi_communicator(part);
  }

 private:
  void broadcast_bytes(std::byte* bytes, std::size_t size, int root) {
    for (std::size_t at = 0; at < size; at += kBroadcastBytes) {
      const std::size_t n = std::min(kBroadcastBytes, size - at);
      check_mpi(MPI_Bcast(bytes + at, static_cast<int>(n), MPI_BYTE, root, comm_), "MPI_Bcast");
      counters_.bytes += n;
    }
  }

  std::vector<std::uint64_t> gather_lengths(std::uint64_t mine) {
    std::vector<std::uint64_t> lengths(static_cast<std::size_t>(size_));
    check_mpi(MPI_Allgather(&mine, 1, MPI_UINT64_T, lengths.data(), 1, MPI_UINT64_T, comm_),
              "MPI_Allgather");
    counters_.bytes += sizeof(mine);
    return lengths;
  }

  void gather_at_once(std::span<const std::byte> contribution,
                      const std::vector<std::uint64_t>& lengths, std::vector<std::byte>& all) {
    std::vector<int> counts;
    std::vector<int> displacements;
    int at = 0;
    for (const std::uint64_t length : lengths) {
      counts.push_back(static_cast<int>(length));
      displacements.push_back(at);
      at += counts.back();
    }
    check_mpi(MPI_Allgatherv(contribution.data(), static_cast<int>(contribution.size()), MPI_BYTE,
                             all.data(), counts.data(), displacements.data(), MPI_BYTE, comm_),
              "MPI_Allgatherv");
    counters_.bytes += contribution.size();
  }

  void gather_rank_by_rank(std::span<const std::byte> contribution,
                           const std::vector<std::uint64_t>& lengths, std::vector<std::byte>& all) {
    std::byte* at = all.data();
    for (int root = 0; root < size_; ++root) {
      const std::uint64_t length = lengths[static_cast<std::size_t>(root)];
      if (root == rank_) std::copy(contribution.begin(), contribution.end(), at);
      broadcast_bytes(at, length, root);
      at += length;
    }
  }

  MPI_Comm comm_;
  int rank_ = 0;
  int size_ = 1;
};

}  // namespace

void check_mpi(int code, std::string_view call) {
  if (code == MPI_SUCCESS) return;
  std::string words(MPI_MAX_ERROR_STRING, '\0');
  int length = 0;
  if (MPI_Error_string(code, words.data(), &length) != MPI_SUCCESS) length = 0;
  words.resize(static_cast<std::size_t>(length));
  throw Error(ExitCode::internal, fmt::format("{} failed with code {}", call, code), words);
}

std::unique_ptr<Communicator> adopt_mpi_communicator(MPI_Comm comm) {
  auto adopted = std::make_unique<MpiCommunicator>(comm);
  if (adopted->size() > 1) return adopted;
  return make_self_communicator();
}

}  // namespace espalier
