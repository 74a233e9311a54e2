#include "fused_loops.h"

#include <bit>
#include <cmath>
#include <type_traits>

#if defined(__x86_64__) && defined(__GNUC__) && __GNUC__ >= 12 && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define ESPALIER_FOR_VECTOR_UNITS \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define ESPALIER_FOR_VECTOR_UNITS
#endif
// A loop is only widened together with what it calls.
#define ESPALIER_INLINE [[gnu::always_inline]] inline

namespace espalier::loops {
namespace {

ESPALIER_INLINE float wide(float x) { return x; }
ESPALIER_INLINE double wide(double x) { return x; }
ESPALIER_INLINE float wide(Bf16 x) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16);
}

template <class S>
ESPALIER_INLINE S narrow(Wide<S> x) {
  if constexpr (std::is_same_v<S, Bf16>) {
    const auto bits = std::bit_cast<std::uint32_t>(x);
    const std::uint32_t nearest_even = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
    return {static_cast<std::uint16_t>(x == x ? nearest_even : 0x7fc0U)};
  } else {
    return x;
  }
}

/// To S and back.
template <class S>
ESPALIER_INLINE Wide<S> rounded(Wide<S> x) {
  return wide(narrow<S>(x));
}

/// Tokens and columns whose sums are made in the narrower type, before they are added to the
/// others.
constexpr std::size_t kTokens = 32, kColumns = 1024;

}  // namespace

template <class S>
ESPALIER_FOR_VECTOR_UNITS void rms_norm(const S* x, const S* w, double eps, S* y, Wide<S>* r,
                                        std::size_t rows, std::size_t size) {
  for (std::size_t row = 0; row < rows; ++row, x += size, y += size) {
    Wide<S> sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::size_t i = 0; i < size; ++i) sum += wide(x[i]) * wide(x[i]);
    const Wide<S> scale =
        1 / std::sqrt(sum / static_cast<Wide<S>>(size) + static_cast<Wide<S>>(eps));
    r[row] = scale;
#pragma omp simd
    for (std::size_t i = 0; i < size; ++i)
      y[i] = narrow<S>(wide(w[i]) * rounded<S>(wide(x[i]) * scale));
  }
}

template <class S>
ESPALIER_FOR_VECTOR_UNITS void rms_norm_back(const S* dy, const S* x, const S* w, const Wide<S>* r,
                                             S* dx, std::size_t rows, std::size_t size) {
  for (std::size_t row = 0; row < rows; ++row, dy += size, x += size, dx += size) {
    Wide<S> sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::size_t i = 0; i < size; ++i) sum += rounded<S>(wide(w[i]) * wide(dy[i])) * wide(x[i]);
    const Wide<S> scale = r[row];
    const Wide<S> back = scale * scale * scale * (sum / static_cast<Wide<S>>(size));
#pragma omp simd
    for (std::size_t i = 0; i < size; ++i)
      dx[i] = narrow<S>(scale * rounded<S>(wide(w[i]) * wide(dy[i])) - wide(x[i]) * back);
  }
}

template <class S>
ESPALIER_FOR_VECTOR_UNITS void rotate(const S* x, const S* cos, const S* sin, S* y,
                                      std::size_t heads, std::size_t size) {
  const std::size_t half = size / 2;
  for (std::size_t head = 0; head < heads; ++head, x += size, y += size)
#pragma omp simd
    for (std::size_t i = 0; i < half; ++i) {
      const Wide<S> a = wide(x[i]), b = wide(x[half + i]);
      y[i] = narrow<S>(rounded<S>(a * wide(cos[i])) - rounded<S>(b * wide(sin[i])));
      y[half + i] =
          narrow<S>(rounded<S>(b * wide(cos[half + i])) + rounded<S>(a * wide(sin[half + i])));
    }
}

template <class S>
ESPALIER_FOR_VECTOR_UNITS void rotate_back(const S* dy, const S* cos, const S* sin, S* dx,
                                           std::size_t heads, std::size_t size) {
  const std::size_t half = size / 2;
  for (std::size_t head = 0; head < heads; ++head, dy += size, dx += size)
#pragma omp simd
    for (std::size_t i = 0; i < half; ++i) {
      const Wide<S> a = wide(dy[i]), b = wide(dy[half + i]);
      dx[i] = narrow<S>(rounded<S>(a * wide(cos[i])) + rounded<S>(b * wide(sin[half + i])));
      dx[half + i] = narrow<S>(rounded<S>(b * wide(cos[half + i])) - rounded<S>(a * wide(sin[i])));
    }
}

template <class S>
ESPALIER_FOR_VECTOR_UNITS void token_dots(const S* a, const S* b, double* sums, std::size_t tokens,
                                          std::size_t columns, std::size_t stride) {
  for (std::size_t u = 0; u < columns; u += kColumns) {
    const std::size_t width = columns - u < kColumns ? columns - u : kColumns;
    for (std::size_t i = 0; i < width; ++i) sums[u + i] = 0;
    for (std::size_t begin = 0; begin < tokens; begin += kTokens) {
      const std::size_t end = tokens - begin < kTokens ? tokens : begin + kTokens;
      Wide<S> some[kColumns] = {};
      for (std::size_t t = begin; t < end; ++t)
#pragma omp simd
        for (std::size_t i = 0; i < width; ++i)
          some[i] += wide(a[t * stride + u + i]) * wide(b[t * stride + u + i]);
#pragma omp simd
      for (std::size_t i = 0; i < width; ++i) sums[u + i] += static_cast<double>(some[i]);
    }
  }
}

#define ESPALIER_LOOPS(S)                                                                     \
  template void rms_norm(const S*, const S*, double, S*, Wide<S>*, std::size_t, std::size_t); \
  template void rms_norm_back(const S*, const S*, const S*, const Wide<S>*, S*, std::size_t,  \
                              std::size_t);                                                   \
  template void rotate(const S*, const S*, const S*, S*, std::size_t, std::size_t);           \
  template void rotate_back(const S*, const S*, const S*, S*, std::size_t, std::size_t);      \
  template void token_dots(const S*, const S*, double*, std::size_t, std::size_t, std::size_t);
ESPALIER_LOOPS(float)
ESPALIER_LOOPS(double)
ESPALIER_LOOPS(Bf16)
#undef ESPALIER_LOOPS

}  // namespace espalier::loops
