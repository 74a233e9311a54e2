#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "espalier/comm/rank_group.h"
#include "espalier/core/error.h"
#include "espalier/model/causal_lm.h"

namespace espalier {

/// Prompts that are continued together.
struct PromptBatch {
  /// int64 on the model's device; a shorter prompt is padded on the right with any token.
  at::Tensor tokens_BT;
  /// Tokens of each prompt, at least 1; the longest has T.
  std::vector<std::int64_t> prompt_tokens;
  /// Tokens that a prompt is continued by at most.
  std::int64_t most_new = 0;
  /// For messages: "micro-batch 3 of 12, evaluation 'a', data rank 0".
  std::string origin{};
};

struct Continuations {
  /// Of each prompt, in order: the token that ended it is the last.
  std::vector<std::vector<std::int64_t>> tokens;
  /// A logit that is not finite (bad_content), the same on every tensor rank; the continuations end
  /// there. For the caller's next agreement.
  Problems problems;
};

/// Whether a prompt's continuation is at its end with this token. Called once for every token in
/// its order; must say the same on every tensor rank.
using EndsWith = std::function<bool(std::size_t prompt, std::int64_t token)>;

/// Continues every prompt by the most likely token until `ends` or most_new tokens. Keys and values
/// of earlier tokens are kept (model/kv_cache.h), so that after the prompts a step takes one token
/// a row; a prompt that has ended leaves the batch. What a row gets does not depend on the rows
/// beside it, but for the rounding of other matrix shapes.
///
/// Collective over `tensor`; per step 1 + 2 * layers all-reduces of [B, T, D] (T = 1 after the
/// prompts) and that of most_likely.
Continuations continue_greedily(const CausalLM& model, const PromptBatch& batch,
                                const EndsWith& ends, const RankGroup& tensor);

/// Each row's token with the largest logit; of several equal ones that with the lowest id, as
/// torch.argmax has it over the whole vocabulary.
struct MostLikely {
  std::vector<std::int64_t> token;
  /// NaN or infinite where any logit of the row is NaN, or the largest infinite.
  std::vector<double> logit;
};
/// From hidden states after the last layer, [n, D]: every rank finds the largest of its part of the
/// vocabulary, at most loss_chunk rows at a time; then one all-reduce of float64 [2, ranks, n]
/// lets every rank see all of them. Collective over `tensor`.
MostLikely most_likely(const CausalLM& model, const at::Tensor& hidden_ND, const RankGroup& tensor);

}  // namespace espalier
