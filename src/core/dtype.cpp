#include "espalier/core/dtype.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "espalier/core/error.h"

namespace espalier {
namespace {

struct Row {
  DType dtype;
  std::size_t bytes;
  std::string_view safetensors;
  std::string_view torch;
};

constexpr std::array<Row, 15> kRows{{
    {DType::boolean, 1, "BOOL", "bool"},
    {DType::u8, 1, "U8", "uint8"},
    {DType::i8, 1, "I8", "int8"},
    {DType::u16, 2, "U16", "uint16"},
    {DType::i16, 2, "I16", "int16"},
    {DType::u32, 4, "U32", "uint32"},
    {DType::i32, 4, "I32", "int32"},
    {DType::u64, 8, "U64", "uint64"},
    {DType::i64, 8, "I64", "int64"},
    {DType::f16, 2, "F16", "float16"},
    {DType::bf16, 2, "BF16", "bfloat16"},
    {DType::f32, 4, "F32", "float32"},
    {DType::f64, 8, "F64", "float64"},
    {DType::f8_e4m3, 1, "F8_E4M3", "float8_e4m3fn"},
    {DType::f8_e5m2, 1, "F8_E5M2", "float8_e5m2"},
}};

const Row& row(DType dtype) { return kRows[static_cast<std::size_t>(dtype)]; }

static_assert(std::endian::native == std::endian::little, "values are stored little-endian");

double from_bf16(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

double from_f16(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000) << 16;
  const std::uint32_t rest = static_cast<std::uint32_t>(bits & 0x7fff) << 13;
  // Exponent 31 of float16 is 255 of float32; others are 112 more there, subnormal ones as well.
  if (rest >= 0x0f800000) return std::bit_cast<float>(sign | rest | 0x7f800000);
  return std::bit_cast<float>(sign | rest) * 0x1p112F;
}

/// The 16 bits of a sign, an exponent and `fraction` bits.
std::uint16_t to_16_bits(double value, int fraction) {
  const int bias = (1 << (14 - fraction)) - 1;
  const auto infinite = static_cast<std::uint16_t>(((2 * bias + 1) << fraction));
  const auto sign = static_cast<std::uint16_t>(std::signbit(value) ? 0x8000 : 0);
  if (std::isnan(value)) return static_cast<std::uint16_t>(infinite | (1 << (fraction - 1)));
  const double size = std::abs(value);
  if (std::isinf(value) || size >= std::ldexp(1.0, bias + 1)) return sign | infinite;
  if (size == 0) return sign;
  const int exponent = std::max(std::ilogb(size), 1 - bias);
  // From 2^fraction up for a normal number, so that it carries one into the exponent.
  const double steps = std::nearbyint(std::ldexp(size, fraction - exponent));
  return sign |
         static_cast<std::uint16_t>(((exponent + bias - 1) << fraction) + static_cast<int>(steps));
}

template <class T, class F>
void each_of(std::span<const std::byte> bytes, std::span<double> values, F&& convert) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    T stored;
    std::memcpy(&stored, bytes.data() + i * sizeof(T), sizeof(T));
    values[i] = convert(stored);
  }
}

template <class T, class F>
void store_each(std::span<const double> values, std::span<std::byte> bytes, F&& convert) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    const T stored = convert(values[i]);
    std::memcpy(bytes.data() + i * sizeof(T), &stored, sizeof(T));
  }
}

}  // namespace

std::size_t size_of(DType dtype) { return row(dtype).bytes; }
std::string_view safetensors_name(DType dtype) { return row(dtype).safetensors; }
std::string_view torch_name(DType dtype) { return row(dtype).torch; }

std::optional<DType> dtype_from_safetensors(std::string_view name) {
  for (const Row& r : kRows)
    if (r.safetensors == name) return r.dtype;
  return std::nullopt;
}

std::optional<DType> dtype_from_torch(std::string_view name) {
  for (const Row& r : kRows)
    if (r.torch == name) return r.dtype;
  return std::nullopt;
}

bool is_floating(DType dtype) {
  return dtype == DType::f16 || dtype == DType::bf16 || dtype == DType::f32 || dtype == DType::f64;
}

void decode(DType dtype, std::span<const std::byte> bytes, std::span<double> values) {
  ESPALIER_CHECK(is_floating(dtype) && bytes.size() == values.size() * size_of(dtype),
                 "values are decoded from another number of bytes");
  const auto as_is = [](auto value) { return static_cast<double>(value); };
  if (dtype == DType::f64) return each_of<double>(bytes, values, as_is);
  if (dtype == DType::f32) return each_of<float>(bytes, values, as_is);
  if (dtype == DType::bf16) return each_of<std::uint16_t>(bytes, values, from_bf16);
  each_of<std::uint16_t>(bytes, values, from_f16);
}

void encode(DType dtype, std::span<const double> values, std::span<std::byte> bytes) {
  ESPALIER_CHECK(is_floating(dtype) && bytes.size() == values.size() * size_of(dtype),
                 "values are encoded into another number of bytes");
  if (dtype == DType::f64) return store_each<double>(values, bytes, [](double v) { return v; });
  if (dtype == DType::f32)
    return store_each<float>(values, bytes, [](double v) { return static_cast<float>(v); });
  const int fraction = dtype == DType::bf16 ? 7 : 10;
  store_each<std::uint16_t>(values, bytes, [&](double v) { return to_16_bits(v, fraction); });
}

}  // namespace espalier
