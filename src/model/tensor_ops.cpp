#include "espalier/model/tensor_ops.h"

#include <atomic>
#include <cstdint>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "espalier/core/error.h"

namespace espalier {
namespace {

/// The type in which `type` is summed, on this rank and across ranks: 16-bit floats have no sum in
/// MPI and would lose bits.
at::ScalarType wide_type(at::ScalarType type) {
  return type == at::kBFloat16 || type == at::kHalf ? at::kFloat : type;
}

Memory memory_of(const at::Tensor& tensor) {
  return tensor.device().is_cpu() ? Memory::host : Memory::device;
}

/// The stream on which the device's tensors are computed, as its own library knows it.
void* stream_of(const at::Device& device) {
  if (device.is_cpu()) return nullptr;
  const c10::impl::VirtualGuardImpl of_device(device.type());
  return of_device.getStreamNativeHandle(of_device.getStream(device));
}

/// How a tensor travels.
struct Wire {
  at::ScalarType type = at::kFloat;
  Memory memory = Memory::host;
};

/// The way with the fewest bytes copied of those that the reducer takes.
Wire wire_of(const at::Tensor& tensor, const TensorReducer& reducer) {
  for (const Memory memory : {memory_of(tensor), Memory::host})
    for (const at::ScalarType type : {tensor.scalar_type(), wide_type(tensor.scalar_type())})
      if (reducer.takes(to_dtype(type), memory)) return {type, memory};
  throw Error(ExitCode::internal,
              "the reducer of tensors takes no " +
                  std::string(safetensors_name(to_dtype(tensor.scalar_type()))) +
                  ", neither as it is nor as a wider type");
}

/// The tensor itself, or a contiguous copy that can travel.
at::Tensor on_the_wire(const at::Tensor& tensor, const Wire& wire) {
  const bool staged = wire.memory != memory_of(tensor);
  if (!staged && tensor.is_contiguous() && wire.type == tensor.scalar_type()) return tensor;
  at::TensorOptions where = at::TensorOptions().dtype(wire.type).pinned_memory(staged);
  if (!staged) where = where.device(tensor.device());
  return at::empty(tensor.sizes(), where).copy_(tensor);
}

void all_reduce(at::Tensor& tensor, TensorReducer& reducer, ReduceOp op) {
  if (reducer.size() == 1 || tensor.numel() == 0) return;
  const Wire wire = wire_of(tensor, reducer);
  const at::Tensor moved = on_the_wire(tensor, wire);
  reducer.all_reduce({moved.data_ptr(), static_cast<std::size_t>(moved.numel()),
                      to_dtype(wire.type), wire.memory, stream_of(moved.device())},
                     op);
  if (moved.is_same(tensor))
    // Autograd does not see what another library writes: a graph that saved the value must refuse
    // it, not use it.
    tensor.unsafeGetTensorImpl()->bump_version();
  else
    tensor.copy_(moved);
}

}  // namespace

at::ScalarType to_scalar_type(DType dtype) {
  switch (dtype) {
    case DType::boolean:
      return at::kBool;
    case DType::u8:
      return at::kByte;
    case DType::i8:
      return at::kChar;
    case DType::i16:
      return at::kShort;
    case DType::i32:
      return at::kInt;
    case DType::i64:
      return at::kLong;
    case DType::f16:
      return at::kHalf;
    case DType::bf16:
      return at::kBFloat16;
    case DType::f32:
      return at::kFloat;
    case DType::f64:
      return at::kDouble;
    default:
      throw Error(
          ExitCode::bad_content,
          "elements of type " + std::string(safetensors_name(dtype)) + " cannot be computed with");
  }
}

DType to_dtype(at::ScalarType type) {
  switch (type) {
    case at::kBool:
      return DType::boolean;
    case at::kByte:
      return DType::u8;
    case at::kInt:
      return DType::i32;
    case at::kLong:
      return DType::i64;
    case at::kHalf:
      return DType::f16;
    case at::kBFloat16:
      return DType::bf16;
    case at::kFloat:
      return DType::f32;
    case at::kDouble:
      return DType::f64;
    default:
      ESPALIER_CHECK(false, "a tensor type without a DType");
      return DType::f32;
  }
}

void all_reduce_sum(at::Tensor& tensor, TensorReducer& reducer) {
  all_reduce(tensor, reducer, ReduceOp::sum);
}
void all_reduce_max(at::Tensor& tensor, TensorReducer& reducer) {
  all_reduce(tensor, reducer, ReduceOp::max);
}

at::Tensor gathered(const at::Tensor& part, std::int64_t dim, const Range& mine, std::int64_t all,
                    TensorReducer& reducer) {
  if (reducer.size() == 1) return part;
  std::vector<std::int64_t> sizes = part.sizes().vec();
  sizes[static_cast<std::size_t>(dim)] = all;
  at::Tensor whole = at::zeros(sizes, part.options());
  whole.narrow(dim, mine.begin, mine.size()).copy_(part);
  all_reduce_sum(whole, reducer);
  return whole;
}

at::Tensor take(const at::Tensor& tensor, std::int64_t dim, const IndexRuns& indices) {
  if (indices.is_all(tensor.size(dim))) return tensor;
  if (indices.runs().size() <= 1) {
    const Range range = indices.envelope();
    return tensor.narrow(dim, range.begin, range.size()).clone(at::MemoryFormat::Contiguous);
  }
  const at::Tensor index = at::tensor(indices.indices(), at::kLong).to(tensor.device());
  return tensor.index_select(dim, index);
}

namespace {

/// Whether no number has all bits of its exponent set, which infinities and NaN have. No tensor of
/// flags is made: fresh memory costs more than looking.
template <class Bits>
bool bits_are_finite(const at::Tensor& tensor, Bits exponent) {
  const auto* values = static_cast<const Bits*>(tensor.const_data_ptr());
  std::atomic<bool> finite{true};
  at::parallel_for(0, tensor.numel(), std::int64_t{1} << 18,
                   [&](std::int64_t begin, std::int64_t end) {
                     Bits found = 0;
                     for (std::int64_t i = begin; i < end; ++i)
                       found |= static_cast<Bits>((values[i] & exponent) == exponent);
                     if (found != 0) finite = false;
                   });
  return finite;
}

}  // namespace

bool all_finite(const at::Tensor& tensor) {
  if (tensor.numel() == 0) return true;
  if (tensor.device().is_cpu() && tensor.is_contiguous()) switch (tensor.scalar_type()) {
      case at::kDouble:
        return bits_are_finite<std::uint64_t>(tensor, 0x7ff0000000000000U);
      case at::kFloat:
        return bits_are_finite<std::uint32_t>(tensor, 0x7f800000U);
      case at::kBFloat16:
        return bits_are_finite<std::uint16_t>(tensor, 0x7f80U);
      case at::kHalf:
        return bits_are_finite<std::uint16_t>(tensor, 0x7c00U);
      default:
        break;
    }
  return at::isfinite(tensor).all().item<bool>();
}

at::Tensor finite_flag(const at::Tensor& tensor) {
  // Where a sum is asked for in another type, LibTorch first converts all of a tensor on a CPU: 23
  // times the time. bfloat16 is summed in float32 as it is, and has its range.
  if (tensor.scalar_type() == at::kBFloat16) return at::isfinite(tensor.sum());
  return at::isfinite(tensor.sum(wide_type(tensor.scalar_type())));
}

std::vector<double> to_doubles(const at::Tensor& tensor) {
  const at::Tensor host = tensor.detach().to(at::kCPU, at::kDouble).contiguous();
  const double* data = host.const_data_ptr<double>();
  return {data, data + host.numel()};
}

}  // namespace espalier
