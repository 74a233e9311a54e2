#include "espalier/model/generate.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include "espalier/core/pulse.h"
#include "espalier/model/tensor_ops.h"
#include "espalier/model/vocabulary_loss.h"

namespace espalier {
namespace {

/// Hidden states after the last layer of the tokens that the pass takes. Collective.
at::Tensor forward(const CausalLM& model, const at::Tensor& tokens_BT, KvCache& cache,
                   const RankGroup& tensor) {
  at::Tensor x_BTD = model.embed_partial(tokens_BT);
  all_reduce_sum(x_BTD, tensor.reducer());
  const auto add = [&](at::Tensor partial_BTD) {
    pulse::beat();
    all_reduce_sum(partial_BTD, tensor.reducer());
    x_BTD = x_BTD + partial_BTD;
  };
  for (std::int64_t layer = 0; layer < model.layers(); ++layer) {
    add(model.attention_half(layer, x_BTD, cache).partial_BTD);
    add(model.mlp_half(layer, x_BTD).partial_BTD);
  }
  return x_BTD;
}

/// [B, D] of each row's last token.
at::Tensor last_hidden(const at::Tensor& x_BTD, const KvCache& cache) {
  const at::Tensor last_B = cache.last_B();
  return x_BTD.index({at::arange(cache.rows(), last_B.options()), last_B});
}

/// Each row's largest logit and its token, [2, n] in float64, of this rank's vocabulary.
at::Tensor local_best(const CausalLM& model, const at::Tensor& hidden_ND, std::int64_t chunk) {
  const Range vocabulary = model.shard().vocabulary;
  const std::int64_t n = hidden_ND.size(0);
  at::Tensor best_2N = at::zeros({2, n}, hidden_ND.options().dtype(at::kDouble));
  best_2N[0].fill_(-std::numeric_limits<double>::infinity());
  if (vocabulary.size() == 0) return best_2N;
  const at::Tensor rows_ND = model.final_norm(hidden_ND);
  for (std::int64_t begin = 0; begin < n; begin += chunk) {
    const std::int64_t size = std::min(chunk, n - begin);
    const at::Tensor logits_CV = at::linear(rows_ND.narrow(0, begin, size), model.head_VD());
    const at::Tensor place_C1 = logits_CV.argmax(-1, /*keepdim=*/true);
    best_2N[0].narrow(0, begin, size).copy_(logits_CV.gather(-1, place_C1).squeeze(-1));
    best_2N[1].narrow(0, begin, size).copy_(place_C1.squeeze(-1) + vocabulary.begin);
  }
  return best_2N;
}

Problem not_finite(const PromptBatch& batch, std::size_t prompt, std::size_t token) {
  return {ExitCode::bad_content,
          fmt::format("the logits of token {} after prompt {} are NaN or infinite", token, prompt),
          "no most likely token can be chosen",
          "Use a wider model.dtype (float16 overflows easily), or check the weights.",
          batch.origin};
}

}  // namespace

MostLikely most_likely(const CausalLM& model, const at::Tensor& hidden_ND,
                       const RankGroup& tensor) {
  const std::int64_t n = hidden_ND.size(0), ranks = tensor.size();
  const std::int64_t chunk =
      loss_chunk(even_cut(model.config().vocabulary, tensor.size(), 0).size());
  at::Tensor all_2RN = at::zeros({2, ranks, n}, hidden_ND.options().dtype(at::kDouble));
  all_2RN.select(1, tensor.rank()).copy_(local_best(model, hidden_ND, chunk));
  // Every entry is one rank's and zero on the others: their sum is the gathered table.
  all_reduce_sum(all_2RN, tensor.reducer());
  tensor.reducer().check();
  const std::vector<double> value_RN = to_doubles(all_2RN[0]), token_RN = to_doubles(all_2RN[1]);
  MostLikely best;
  for (std::int64_t row = 0; row < n; ++row) {
    std::int64_t at = row;
    for (std::int64_t other = row; other < ranks * n; other += n) {
      const double value = value_RN[static_cast<std::size_t>(other)];
      // Ranks hold rising parts of the vocabulary: of equals the first has the lowest id.
      if (std::isnan(value) || value > value_RN[static_cast<std::size_t>(at)]) at = other;
      if (std::isnan(value)) break;
    }
    best.token.push_back(static_cast<std::int64_t>(token_RN[static_cast<std::size_t>(at)]));
    best.logit.push_back(value_RN[static_cast<std::size_t>(at)]);
  }
  return best;
}

Continuations continue_greedily(const CausalLM& model, const PromptBatch& batch,
                                const EndsWith& ends, const RankGroup& tensor) {
  const c10::NoGradGuard no_gradient;
  const std::size_t prompts = batch.prompt_tokens.size();
  Continuations result{std::vector<std::vector<std::int64_t>>(prompts), {}};
  std::vector<std::size_t> live(prompts);  // the prompt of each row
  std::iota(live.begin(), live.end(), std::size_t{0});
  // The last token is not looked back at.
  KvCache cache(batch.prompt_tokens, batch.tokens_BT.size(1) + batch.most_new - 1, model.layers(),
                model.options().device);
  at::Tensor tokens_BT = batch.tokens_BT;
  for (std::int64_t step = 0; step < batch.most_new; ++step) {
    const MostLikely next =
        most_likely(model, last_hidden(forward(model, tokens_BT, cache, tensor), cache), tensor);
    cache.advance();
    std::vector<std::int64_t> kept, tokens;
    for (std::size_t row = 0; row < live.size(); ++row) {
      std::vector<std::int64_t>& continuation = result.tokens[live[row]];
      if (!std::isfinite(next.logit[row]))
        result.problems.add(not_finite(batch, live[row], continuation.size()));
      continuation.push_back(next.token[row]);
      if (ends(live[row], next.token[row])) continue;
      kept.push_back(static_cast<std::int64_t>(row));
      tokens.push_back(next.token[row]);
    }
    if (kept.empty() || !result.problems.empty()) break;
    if (kept.size() < live.size()) {
      cache.keep(kept);
      // Rising places, each no earlier than where it goes.
      for (std::size_t row = 0; row < kept.size(); ++row)
        live[row] = live[static_cast<std::size_t>(kept[row])];
      live.resize(kept.size());
    }
    tokens_BT = at::tensor(tokens, at::kLong).unsqueeze(1).to(model.options().device);
  }
  return result;
}

}  // namespace espalier
