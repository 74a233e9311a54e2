#pragma once

#include <cstddef>
#include <cstdint>

/// Loops over contiguous memory of one thread, for vector units that are chosen when the program
/// runs. S is float, double or Bf16; narrow numbers are computed as float and rounded where
/// LibTorch's operations one by one would round them. NaN goes through.
namespace espalier::loops {

/// A bfloat16 as it lies in memory.
struct Bf16 {
  std::uint16_t bits;
};

template <class S>
struct WideType {
  using type = S;
};
template <>
struct WideType<Bf16> {
  using type = float;
};
template <class S>
using Wide = typename WideType<S>::type;

/// y = w x r of `rows` rows of `size`, r = 1 / sqrt(mean(x^2) + eps), kept for the way back.
template <class S>
void rms_norm(const S* x, const S* w, double eps, S* y, Wide<S>* r, std::size_t rows,
              std::size_t size);
/// dx = r dn - x r^3 mean(dn x) where dn = w dy.
template <class S>
void rms_norm_back(const S* dy, const S* x, const S* w, const Wide<S>* r, S* dx, std::size_t rows,
                   std::size_t size);

/// One token: y = x cos + rotate_half(x) sin of `heads` rows of `size`, which is even.
template <class S>
void rotate(const S* x, const S* cos, const S* sin, S* y, std::size_t heads, std::size_t size);
/// Its transpose: dx = dy cos + rotate_half^T(dy sin).
template <class S>
void rotate_back(const S* dy, const S* cos, const S* sin, S* dx, std::size_t heads,
                 std::size_t size);

/// sums[u] = sum over `tokens` rows t of a[t, u] b[t, u], for u < `columns` in rows of `stride`.
template <class S>
void token_dots(const S* a, const S* b, double* sums, std::size_t tokens, std::size_t columns,
                std::size_t stride);

}  // namespace espalier::loops
