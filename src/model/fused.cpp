#include "espalier/model/fused.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include "fused_loops.h"

namespace espalier {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Numbers that a thread is given at least.
constexpr std::int64_t kGrain = 32768;
/// Columns of sums over tokens that a thread is given.
constexpr std::int64_t kColumns = 1024;

bool has_loops(at::ScalarType type) {
  return type == at::kFloat || type == at::kDouble || type == at::kBFloat16;
}
bool for_loops(const at::Tensor& x, at::ScalarType type) {
  return x.device().is_cpu() && x.scalar_type() == type && x.is_contiguous();
}

/// A tensor's type as the loops know it.
template <class F>
void with_type(at::ScalarType type, F&& f) {
  if (type == at::kFloat)
    f(float());
  else if (type == at::kDouble)
    f(double());
  else
    f(loops::Bf16());
}

template <class S>
const S* in(const at::Tensor& tensor) {
  return static_cast<const S*>(tensor.const_data_ptr());
}
template <class S>
S* out(const at::Tensor& tensor) {
  return static_cast<S*>(tensor.mutable_data_ptr());
}

/// f(begin, size) on threads, for `count` pieces of `size` numbers.
template <class F>
void in_parallel(std::int64_t count, std::int64_t size, F&& f) {
  at::parallel_for(0, count, std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(1, size)),
                   [&](std::int64_t begin, std::int64_t end) { f(begin, end - begin); });
}

struct RmsNorm : torch::autograd::Function<RmsNorm> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& w_D,
                            double eps) {
    const std::int64_t size = x.size(-1), rows = size > 0 ? x.numel() / size : 0;
    const at::Tensor y = at::empty_like(x);
    const at::ScalarType wide = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    const at::Tensor r_N = at::empty({rows}, x.options().dtype(wide));
    with_type(x.scalar_type(), [&](auto number) {
      using S = decltype(number);
      using W = loops::Wide<S>;
      in_parallel(rows, size, [&](std::int64_t begin, std::int64_t count) {
        loops::rms_norm(in<S>(x) + begin * size, in<S>(w_D), eps, out<S>(y) + begin * size,
                        out<W>(r_N) + begin, static_cast<std::size_t>(count),
                        static_cast<std::size_t>(size));
      });
    });
    context->save_for_backward({x, w_D, r_N});
    return y;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &w_D = saved[1], &r_N = saved[2];
    const at::Tensor dy = gradients[0].contiguous();
    const at::Tensor dx = at::empty_like(x);
    const std::int64_t size = x.size(-1), rows = r_N.numel();
    with_type(x.scalar_type(), [&](auto number) {
      using S = decltype(number);
      using W = loops::Wide<S>;
      in_parallel(rows, size, [&](std::int64_t begin, std::int64_t count) {
        loops::rms_norm_back(in<S>(dy) + begin * size, in<S>(x) + begin * size, in<S>(w_D),
                             in<W>(r_N) + begin, out<S>(dx) + begin * size,
                             static_cast<std::size_t>(count), static_cast<std::size_t>(size));
      });
    });
    return {dx, at::Tensor(), at::Tensor()};
  }
};

/// f(token, row of the angles) for B * T tokens.
template <class F>
void for_tokens(const at::Tensor& x_BTHE, F&& f) {
  const std::int64_t T = x_BTHE.size(1);
  in_parallel(x_BTHE.size(0) * T, x_BTHE.size(2) * x_BTHE.size(3),
              [&](std::int64_t begin, std::int64_t count) {
                for (std::int64_t token = begin; token < begin + count; ++token)
                  f(token, token % T);
              });
}

/// Gives [B, H, T, E] whose memory is that of [B, T, H, E].
struct Rotation : torch::autograd::Function<Rotation> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x_BTHE,
                            const at::Tensor& cos_TE, const at::Tensor& sin_TE) {
    const at::Tensor y_BTHE = at::empty_like(x_BTHE);
    turn(x_BTHE, cos_TE, sin_TE, y_BTHE, [](auto... a) { loops::rotate(a...); });
    context->save_for_backward({cos_TE, sin_TE});
    return y_BTHE.transpose(1, 2);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor dy_BTHE = gradients[0].transpose(1, 2).contiguous();
    const at::Tensor dx_BTHE = at::empty_like(dy_BTHE);
    turn(dy_BTHE, saved[0], saved[1], dx_BTHE, [](auto... a) { loops::rotate_back(a...); });
    return {dx_BTHE, at::Tensor(), at::Tensor()};
  }

 private:
  template <class Loop>
  static void turn(const at::Tensor& x_BTHE, const at::Tensor& cos_TE, const at::Tensor& sin_TE,
                   const at::Tensor& y_BTHE, Loop&& loop) {
    const std::int64_t heads = x_BTHE.size(2), E = x_BTHE.size(3);
    with_type(x_BTHE.scalar_type(), [&](auto number) {
      using S = decltype(number);
      for_tokens(x_BTHE, [&](std::int64_t token, std::int64_t angle) {
        loop(in<S>(x_BTHE) + token * heads * E, in<S>(cos_TE) + angle * E,
             in<S>(sin_TE) + angle * E, out<S>(y_BTHE) + token * heads * E,
             static_cast<std::size_t>(heads), static_cast<std::size_t>(E));
      });
    });
  }
};

}  // namespace

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight_D, double eps) {
  const at::ScalarType type = x.scalar_type();
  if (has_loops(type) && for_loops(x, type) && for_loops(weight_D, type) &&
      !weight_D.requires_grad() && x.dim() > 0 && weight_D.numel() == x.size(-1))
    return RmsNorm::apply(x, weight_D, eps);
  return composed::rms_norm(x, weight_D, eps);
}

at::Tensor rotated_heads(const at::Tensor& x_BTHE, const RotaryTable& table) {
  const at::ScalarType type = x_BTHE.scalar_type();
  const std::array<std::int64_t, 2> of_tokens{x_BTHE.size(1), x_BTHE.size(3)};
  const bool one_row_a_token =
      table.cos_TE.sizes().equals(of_tokens) && table.sin_TE.sizes().equals(of_tokens);
  if (has_loops(type) && for_loops(x_BTHE, type) && for_loops(table.cos_TE, type) &&
      for_loops(table.sin_TE, type) && one_row_a_token)
    return Rotation::apply(x_BTHE, table.cos_TE, table.sin_TE);
  return composed::rotated_heads(x_BTHE, table);
}

at::Tensor token_dots(const at::Tensor& a_BTU, const at::Tensor& b_BTU) {
  const at::ScalarType type = a_BTU.scalar_type();
  if (!has_loops(type) || !for_loops(a_BTU, type) || !for_loops(b_BTU, type) ||
      a_BTU.sizes() != b_BTU.sizes())
    return composed::token_dots(a_BTU, b_BTU);
  const std::int64_t B = a_BTU.size(0), T = a_BTU.size(1), U = a_BTU.size(2);
  const at::Tensor sums_BU = at::empty({B, U}, at::TensorOptions(at::kDouble));
  const std::int64_t pieces = (U + kColumns - 1) / kColumns;
  with_type(type, [&](auto number) {
    using S = decltype(number);
    in_parallel(B * pieces, T * kColumns, [&](std::int64_t begin, std::int64_t count) {
      for (std::int64_t piece = begin; piece < begin + count; ++piece) {
        const std::int64_t b = piece / pieces, u = piece % pieces * kColumns;
        loops::token_dots(in<S>(a_BTU) + b * T * U + u, in<S>(b_BTU) + b * T * U + u,
                          out<double>(sums_BU) + b * U + u, static_cast<std::size_t>(T),
                          static_cast<std::size_t>(std::min(kColumns, U - u)),
                          static_cast<std::size_t>(U));
      }
    });
  });
  return sums_BU;
}

namespace composed {

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight_D, double eps) {
  const bool half_precision = x.scalar_type() == at::kHalf || x.scalar_type() == at::kBFloat16;
  const at::Tensor wide = half_precision ? x.to(at::kFloat) : x;
  const at::Tensor mean_square = wide.pow(2).mean(-1, /*keepdim=*/true);
  return weight_D * (wide * at::rsqrt(mean_square + eps)).to(x.scalar_type());
}

at::Tensor rotated_heads(const at::Tensor& x_BTHE, const RotaryTable& table) {
  return apply_rotary(x_BTHE.transpose(1, 2), table);
}

at::Tensor token_dots(const at::Tensor& a_BTU, const at::Tensor& b_BTU) {
  const at::ScalarType wide = a_BTU.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return (a_BTU.to(wide) * b_BTU.to(wide)).sum(1).to(at::kDouble);
}

}  // namespace composed
}  // namespace espalier
