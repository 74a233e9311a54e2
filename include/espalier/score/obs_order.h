#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

namespace espalier {

/// One o_proj or down_proj, y = W x, with what is known of its inputs and of the loss: all that
/// says in which order its units fall. K inputs, D outputs. Any floating type; arithmetic is in
/// float64 on the tensors' device.
struct ObsSublayer {
  /// [K, K], A: the mean of x x^T over tokens.
  at::Tensor gram_KK;
  /// [D, D], G: the sum of g g^T over tokens, g the gradient of the loss with respect to y.
  /// Undefined: curvature_scale times the identity.
  at::Tensor curvature_DD;
  double curvature_scale = 0;
  /// [K, D]: W transposed, a row per input.
  at::Tensor reader_KD;
  /// How many inputs each unit has; they follow one another. A channel has 1, a query head
  /// head_dim.
  std::vector<std::int64_t> inputs_of_unit;
  /// d > 0, in units of each input's own power, so that a model whose inputs are rescaled keeps
  /// its order.
  double damping = 0.01;
};

/// Scores of the units of a sublayer: the cost of the greedy removal, each step with the other
/// columns of W updated in closed form, so that sorting by score gives the greedy order. With
/// P = (A + d diag(A))^-1 (an input that is always 0 gets 1 on the diagonal and costs nothing),
/// N = W^T G W and a unit's inputs u:
///   e_u = tr(P_uu^-1 N_uu);  the cheapest unit falls;  score = the largest e so far (where that is
///   an earlier one, 2^-50 of it more than the score before, so that no order is lost in ties);
///   R = P_uu^-1 P_u:;  P -= P_:u R;  W -= W_:u R, that is N = (I - E_u R)^T N (I - E_u R), E_u the
///   columns u of the identity.
/// The last unit's score is infinite. Of equal costs the lowest unit falls first. Channels are
/// taken out in blocks: the rows of P and N at hand are brought up to date one by one, the rest of
/// both once per block, by products of matrices; nothing is approximated by that. Optimal Brain
/// Surgeon (Hassibi, Stork 1993) for structures, with the curvature of The LLM Surgeon (arXiv
/// 2312.17244). Throws Error(bad_content) when A, G or W is not finite.
std::vector<double> obs_scores(const ObsSublayer& sublayer);

/// Floating-point operations of obs_scores, 2 to a multiplication with its addition: products of
/// matrices, and the rest that grows with K^3: factors, the inverse, solutions, and products with
/// vectors within a block. Pure arithmetic.
struct ObsOrderFlops {
  double products = 0;
  double others = 0;

  double all() const { return products + others; }
};
/// Of a sublayer with so many outputs, whose units have these inputs. `full`: with the matrix G,
/// not with its trace alone.
ObsOrderFlops obs_order_flops(const std::vector<std::int64_t>& inputs_of_unit, std::int64_t outputs,
                              bool full);

/// Bytes that obs_scores holds at its height beside its arguments.
std::int64_t obs_order_bytes(std::int64_t inputs, std::int64_t outputs);

}  // namespace espalier
