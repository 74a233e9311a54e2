#include "fused_loops.h"

#include <bit>
#include <cmath>
#include <limits>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define ESPALIER_FOR_VECTOR_UNITS __attribute__((target_clones("avx512f", "avx2", "default")))
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

template <class W>
struct Exp;
template <>
struct Exp<float> {
  using Bits = std::uint32_t;
  static constexpr int kMantissa = 23, kDegree = 7;
  static constexpr float kRound = 0x1.8p23F;
  static constexpr float kLn2High = 0x1.63p-1F, kLn2Low = -0x1.bd0106p-13F;
  static constexpr float kMost = 87;
};
template <>
struct Exp<double> {
  using Bits = std::uint64_t;
  static constexpr int kMantissa = 52, kDegree = 13;
  static constexpr double kRound = 0x1.8p52;
  static constexpr double kLn2High = 0x1.62e42fee00000p-1, kLn2Low = 0x1.a39ef35793c76p-33;
  static constexpr double kMost = 708;
};

/// exp(x) for |x| <= kMost, that of the nearest bound beyond it: 2^k exp(x - k ln 2) with the
/// series of exp on half of ln 2 to each side. No branch, so that loops of it are widened.
template <class W>
ESPALIER_INLINE W exp_within(W x) {
  using E = Exp<W>;
  x = x < -E::kMost ? -E::kMost : x;  // in this order NaN stays
  x = x > E::kMost ? E::kMost : x;
  // The integer k stands in the lowest bits of the sum.
  const W shifted = x * static_cast<W>(0x1.71547652b82fep0) + E::kRound;
  const W k = shifted - E::kRound;
  const W r = (x - k * E::kLn2High) - k * E::kLn2Low;
  W sum = 1;
  for (int n = E::kDegree; n > 0; --n) sum = 1 + sum * r / static_cast<W>(n);
  const auto power = std::bit_cast<typename E::Bits>(shifted) << E::kMantissa;
  return std::bit_cast<W>(std::bit_cast<typename E::Bits>(sum) + power);
}

template <class W>
ESPALIER_INLINE W sigmoid(W x) {
  return 1 / (1 + exp_within(-x));
}

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
ESPALIER_FOR_VECTOR_UNITS void swiglu(const S* g, const S* u, S* h, std::size_t size) {
#pragma omp simd
  for (std::size_t i = 0; i < size; ++i) {
    const Wide<S> z = wide(g[i]);
    h[i] = narrow<S>(rounded<S>(z * sigmoid(z)) * wide(u[i]));
  }
}

template <class S>
ESPALIER_FOR_VECTOR_UNITS void swiglu_back(const S* dh, const S* g, const S* u, S* dg, S* du,
                                           std::size_t size) {
#pragma omp simd
  for (std::size_t i = 0; i < size; ++i) {
    const Wide<S> z = wide(g[i]), d = wide(dh[i]);
    const Wide<S> s = sigmoid(z);
    du[i] = narrow<S>(d * rounded<S>(z * s));
    dg[i] = narrow<S>(rounded<S>(d * wide(u[i])) * s * (1 + z * (1 - s)));
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

#define ESPALIER_LOOPS(S)                                                                     \
  template void rms_norm(const S*, const S*, double, S*, Wide<S>*, std::size_t, std::size_t); \
  template void rms_norm_back(const S*, const S*, const S*, const Wide<S>*, S*, std::size_t,  \
                              std::size_t);                                                   \
  template void swiglu(const S*, const S*, S*, std::size_t);                                  \
  template void swiglu_back(const S*, const S*, const S*, S*, S*, std::size_t);               \
  template void rotate(const S*, const S*, const S*, S*, std::size_t, std::size_t);           \
  template void rotate_back(const S*, const S*, const S*, S*, std::size_t, std::size_t);
ESPALIER_LOOPS(float)
ESPALIER_LOOPS(double)
ESPALIER_LOOPS(Bf16)
#undef ESPALIER_LOOPS

}  // namespace espalier::loops
