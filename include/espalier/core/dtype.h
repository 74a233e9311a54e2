#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string_view>

namespace espalier {

/// Element types of checkpoints and communication, named as safetensors names them.
enum class DType {
  boolean,
  u8,
  i8,
  u16,
  i16,
  u32,
  i32,
  u64,
  i64,
  f16,
  bf16,
  f32,
  f64,
  f8_e4m3,
  f8_e5m2
};

/// Bytes of one element.
std::size_t size_of(DType dtype);

/// The safetensors name: "BF16", "F32", ...
std::string_view safetensors_name(DType dtype);
std::optional<DType> dtype_from_safetensors(std::string_view name);

/// The name used by PyTorch and config.json: "bfloat16", "float32", ...
std::string_view torch_name(DType dtype);
std::optional<DType> dtype_from_torch(std::string_view name);

/// f16, bf16, f32 or f64.
bool is_floating(DType dtype);

/// Little-endian values of a floating type as float64, exactly, and float64 as that type: rounded
/// once, to nearest, ties to even; what is too large becomes infinite. `bytes` holds as many as
/// `values`.
void decode(DType dtype, std::span<const std::byte> bytes, std::span<double> values);
void encode(DType dtype, std::span<const double> values, std::span<std::byte> bytes);

}  // namespace espalier
