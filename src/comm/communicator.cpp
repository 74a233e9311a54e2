#include "espalier/comm/communicator.h"

#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "buffer_rules.h"
#include "espalier/core/error.h"

namespace espalier {
namespace {

template <class T>
HostBuffer host_buffer(std::span<T> values, DType dtype) {
  return {values.data(), values.size(), dtype};
}

template <class T>
std::vector<T> gather_elements(Communicator& comm, std::span<const T> values) {
  const std::vector<std::byte> bytes = comm.all_gather(std::as_bytes(values));
  std::vector<T> all(bytes.size() / sizeof(T));
  if (!all.empty()) std::memcpy(all.data(), bytes.data(), all.size() * sizeof(T));
  return all;
}

}  // namespace

void require_address(const HostBuffer& buffer, std::string_view operation) {
  if (buffer.count > 0 && buffer.data == nullptr) {
    throw Error(ExitCode::internal, fmt::format("{} was given {} elements without an address",
                                                operation, buffer.count));
  }
}

bool is_reducible(DType dtype) {
  switch (dtype) {
    case DType::f32:
    case DType::f64:
    case DType::i32:
    case DType::i64:
    case DType::u64:
    case DType::u8:
      return true;
    default:
      return false;
  }
}

void require_reducible(const HostBuffer& buffer) {
  if (is_reducible(buffer.dtype)) return;
  throw Error(ExitCode::internal,
              fmt::format("all_reduce was given {}", safetensors_name(buffer.dtype)),
              "it takes F32, F64, I32, I64, U64 and U8; MPI has no 16-bit float",
              "Accumulate in a wider type");
}

void require_root(int root, int size) {
  if (root >= 0 && root < size) return;
  throw Error(ExitCode::internal, fmt::format("broadcast from rank {} of {}", root, size));
}

void Communicator::all_reduce_sum(std::span<double> values) {
  all_reduce(host_buffer(values, DType::f64), ReduceOp::sum);
}

void Communicator::all_reduce_sum(std::span<float> values) {
  all_reduce(host_buffer(values, DType::f32), ReduceOp::sum);
}

void Communicator::all_reduce_sum(std::span<std::int64_t> values) {
  all_reduce(host_buffer(values, DType::i64), ReduceOp::sum);
}

double Communicator::max(double value) {
  all_reduce(host_buffer(std::span(&value, 1), DType::f64), ReduceOp::max);
  return value;
}

std::int64_t Communicator::min(std::int64_t value) {
  all_reduce(host_buffer(std::span(&value, 1), DType::i64), ReduceOp::min);
  return value;
}

std::vector<double> Communicator::gather(std::span<const double> values) {
  return gather_elements(*this, values);
}

std::vector<std::int32_t> Communicator::gather(std::span<const std::int32_t> values) {
  return gather_elements(*this, values);
}

std::vector<std::int64_t> Communicator::gather(std::span<const std::int64_t> values) {
  return gather_elements(*this, values);
}

std::vector<std::string> Communicator::gather_text(const std::string& text) {
  // all_gather leaves no mark between contributions, so each text carries its length.
  const std::uint64_t length = text.size();
  std::vector<std::byte> contribution(sizeof(length) + text.size());
  std::memcpy(contribution.data(), &length, sizeof(length));
  if (!text.empty()) std::memcpy(contribution.data() + sizeof(length), text.data(), text.size());

  const std::vector<std::byte> all = all_gather(contribution);
  std::vector<std::string> texts;
  for (std::size_t at = 0; at < all.size();) {
    std::uint64_t size = 0;
    std::memcpy(&size, all.data() + at, sizeof(size));
    at += sizeof(size);
    texts.emplace_back(reinterpret_cast<const char*>(all.data() + at), size);
    at += size;
  }
  return texts;
}

std::string Communicator::broadcast_text(const std::string& text, int root) {
  std::uint64_t length = text.size();
  broadcast({&length, 1, DType::u64}, root);
  std::string result = rank() == root ? text : std::string(length, '\0');
  broadcast({result.data(), result.size(), DType::u8}, root);
  return result;
}

}  // namespace espalier
