#pragma once

#include <memory>

#include "espalier/score/statistics.h"

// One function per criterion, each in a file of its own. t runs over tokens, s over sequences, e
// over the entries of a unit at its gate: the input of o_proj (head_dim entries a query head) or of
// down_proj (one a channel).

namespace espalier::criteria {

/// arXiv 2510.18030: the sum over the unit's weights of |w g|, g the gradient of the whole
/// objective, accumulated over all data before the absolute value. With reduction `scores` each
/// rank takes the absolute value of its own share.
std::unique_ptr<Statistics> taylor(const CausalLM& model, const StatisticsOptions& options);
/// |sum_t h dh| at the gate.
std::unique_ptr<Statistics> taylor_gate(const CausalLM& model, const StatisticsOptions& options);
/// sum_s |sum_{t in s} h dh|.
std::unique_ptr<Statistics> taylor_gate_sample(const CausalLM& model,
                                               const StatisticsOptions& options);
/// Wanda for structures (arXiv 2306.11695, 2312.11983): sum_e ||W_:e||_1 ||x_e||_2, W the matrix
/// that reads the unit, the L2 norm over all tokens.
std::unique_ptr<Statistics> wanda_sp(const CausalLM& model, const StatisticsOptions& options);
/// FLAP (arXiv 2312.11983): the variance of x_e over all tokens (unbiased) times ||W_:e||_2^2,
/// standardised over the entries of the half, then the mean over the unit's.
std::unique_ptr<Statistics> flap(const CausalLM& model, const StatisticsOptions& options);
/// Structured Optimal Brain Surgeon: what the greedy removal of units costs when the weights that
/// read the others are updated in closed form (score/obs_order.h), from A = mean_t x x^T at the
/// gate and G = sum_t g g^T, g the gradient of the tokens' summed loss at the output of o_proj or
/// down_proj. Over all domains each token counts share_d T / T_d, T tokens in all, T_d of its
/// domain: 1 where domains are of the same size and weight.
std::unique_ptr<Statistics> obs(const CausalLM& model, const StatisticsOptions& options);
/// sum |w| over the same tensors as taylor.
std::unique_ptr<Statistics> magnitude(const CausalLM& model, const StatisticsOptions& options);
/// A uniform number per unit: a counter-based hash of (seed, iteration, layer, kind, unit).
std::unique_ptr<Statistics> random(const CausalLM& model, const StatisticsOptions& options);

}  // namespace espalier::criteria
