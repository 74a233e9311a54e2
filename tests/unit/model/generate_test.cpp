#include "espalier/model/generate.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <gtest/gtest.h>

#include "espalier/model/memory.h"
#include "espalier/model/tensor_ops.h"
#include "model_case.h"

namespace espalier {
namespace {

using testing::ModelCase;

constexpr std::int64_t kMostNew = 12;

/// Ends a prompt with certain tokens, and each one after a number of its own.
class Ends {
 public:
  /// Of the prompt with this many tokens.
  static std::size_t most(std::int64_t prompt_tokens) {
    return static_cast<std::size_t>(prompt_tokens % 4) * 3 + 1;
  }
  static bool by(std::int64_t token) { return token % 7 == 3; }

  explicit Ends(const PromptBatch& batch) : batch_(batch), seen_(batch.prompt_tokens.size()) {}
  bool operator()(std::size_t prompt, std::int64_t token) {
    return ++seen_[prompt] == most(batch_.prompt_tokens[prompt]) || by(token);
  }

 private:
  const PromptBatch& batch_;
  std::vector<std::size_t> seen_;
};

/// Prompts of several lengths, padded with `padding`.
PromptBatch prompts_of(const ModelConfig& config, std::int64_t padding) {
  PromptBatch batch;
  batch.prompt_tokens = {3, 1, 9, 6, 9};
  const std::int64_t width = 9;
  batch.tokens_BT = at::full({5, width}, padding, at::kLong);
  for (std::int64_t row = 0; row < 5; ++row) {
    const std::int64_t tokens = batch.prompt_tokens[static_cast<std::size_t>(row)];
    batch.tokens_BT[row]
        .narrow(0, 0, tokens)
        .copy_((at::arange(tokens, at::kLong) * 11 + 13 * row + 5).remainder(config.vocabulary));
  }
  batch.most_new = kMostNew;
  return batch;
}

PromptBatch only_row(const PromptBatch& batch, std::size_t row) {
  const std::int64_t tokens = batch.prompt_tokens[row];
  return {batch.tokens_BT[static_cast<std::int64_t>(row)].narrow(0, 0, tokens).unsqueeze(0),
          {tokens},
          batch.most_new};
}

/// All tokens again for each new one, alone, without a cache; the logits of the whole vocabulary in
/// one place. `gap` becomes the smallest distance between the best two logits that occurred.
std::vector<std::int64_t> recomputed(const CausalLM& model, const PromptBatch& one, double& gap,
                                     const RankGroup& tensor) {
  std::vector<std::int64_t> generated;
  at::Tensor tokens_BT = one.tokens_BT;
  for (std::int64_t step = 0; step < one.most_new; ++step) {
    const at::Tensor x_BTD = forward_hidden(model, tokens_BT, tensor);
    const at::Tensor last = at::tensor({tokens_BT.size(1) - 1}, at::kLong);
    const at::Tensor logits_V = logits_at(model, x_BTD, last, tensor)[0];
    const at::Tensor best_two = std::get<0>(logits_V.topk(2));
    gap = std::min(gap, (best_two[0] - best_two[1]).item<double>());
    generated.push_back(logits_V.argmax().item<std::int64_t>());
    if (generated.size() == Ends::most(one.prompt_tokens[0]) || Ends::by(generated.back())) break;
    tokens_BT = at::cat({tokens_BT, at::tensor({{generated.back()}}, at::kLong).view({1, 1})}, 1);
  }
  return generated;
}

class Generate : public ::testing::TestWithParam<ModelFamily> {};

TEST_P(Generate, ABatchIsWhatEachPromptGivesAloneWithoutACache) {
  RankGroup& world = testing::world_group();
  const ModelCase c(GetParam());
  for (const ModelWidths& widths : {dense_widths(c.config()), testing::random_widths(c.config(), 5),
                                    testing::random_widths(c.config(), 11)}) {
    const CausalLM model = c.load(widths, world);
    const PromptBatch batch = prompts_of(c.config(), 0);
    const Continuations together = continue_greedily(model, batch, Ends(batch), world);
    EXPECT_TRUE(together.problems.empty());
    double gap = std::numeric_limits<double>::infinity();
    std::size_t longest = 0, shortest = kMostNew;
    for (std::size_t row = 0; row < batch.prompt_tokens.size(); ++row) {
      EXPECT_EQ(together.tokens[row], recomputed(model, only_row(batch, row), gap, world))
          << "row " << row;
      const PromptBatch alone = only_row(batch, row);
      EXPECT_EQ(continue_greedily(model, alone, Ends(alone), world).tokens[0],
                together.tokens[row]);
      longest = std::max(longest, together.tokens[row].size());
      shortest = std::min(shortest, together.tokens[row].size());
    }
    // Far above rounding, so that equal tokens are no luck; and rows do leave the batch.
    EXPECT_GT(gap, 1e-9);
    EXPECT_LT(shortest, longest);
  }
}

TEST_P(Generate, PaddingInfluencesNothing) {
  RankGroup& world = testing::world_group();
  const ModelCase c(GetParam());
  const CausalLM model = c.load(testing::random_widths(c.config(), 5), world);
  // Every token of every row to the last bit: the logits as well, not only which is largest.
  const auto trace = [&](std::int64_t padding) {
    const PromptBatch batch = prompts_of(c.config(), padding);
    KvCache cache(batch.prompt_tokens, 12, model.layers(), at::kCPU);
    const c10::InferenceMode mode;
    std::vector<at::Tensor> hidden;
    at::Tensor tokens_BT = batch.tokens_BT;
    for (int step = 0; step < 3; ++step) {
      at::Tensor x_BTD = model.embed_partial(tokens_BT);
      all_reduce_sum(x_BTD, world.reducer());
      for (std::int64_t l = 0; l < model.layers(); ++l) {
        at::Tensor a = model.attention_half(l, x_BTD, cache).partial_BTD;
        all_reduce_sum(a, world.reducer());
        x_BTD = x_BTD + a;
        at::Tensor m = model.mlp_half(l, x_BTD).partial_BTD;
        all_reduce_sum(m, world.reducer());
        x_BTD = x_BTD + m;
      }
      hidden.push_back(x_BTD.index({at::arange(5, at::kLong), cache.last_B()}));
      cache.advance();
      tokens_BT = at::full({5, 1}, 4 + step, at::kLong);
    }
    return at::cat(hidden);
  };
  EXPECT_TRUE(at::equal(trace(0), trace(c.config().vocabulary - 1)));
}

INSTANTIATE_TEST_SUITE_P(Families, Generate, ::testing::ValuesIn(testing::all_families()));

TEST(MostLikely, TiesGoToTheLowestIdWhereverItsRank) {
  RankGroup& world = testing::world_group();
  const ModelCase c(ModelFamily::llama);
  CausalLM model = c.load(dense_widths(c.config()), world);
  const std::int64_t V = c.config().vocabulary, D = c.config().hidden;
  const at::Tensor hidden_ND = at::linspace(-1, 1, 3 * D, at::kDouble).view({3, D});
  // Zero but for some ids whose logit is the first entry of the normalised row, without rounding.
  const auto most = [&](const std::vector<std::int64_t>& winners) {
    const Range mine = model.shard().vocabulary;
    at::Tensor head_VD = model.head_VD();
    head_VD.fill_(0);
    for (const std::int64_t id : winners)
      if (id >= mine.begin && id < mine.end) head_VD[id - mine.begin][0].fill_(1);
    return most_likely(model, hidden_ND, world);
  };
  EXPECT_EQ(most({}).token, (std::vector<std::int64_t>{0, 0, 0}));
  const MostLikely last = most({V - 1});
  for (std::size_t n = 0; n < 3; ++n) EXPECT_TRUE(last.token[n] == (last.logit[n] > 0 ? V - 1 : 0));
  for (const std::int64_t low : {std::int64_t{1}, V / 3, V / 2}) {
    const MostLikely tied = most({low, V - 1});
    for (std::size_t n = 0; n < 3; ++n) EXPECT_EQ(tied.token[n], tied.logit[n] > 0 ? low : 0);
    EXPECT_TRUE(std::any_of(tied.logit.begin(), tied.logit.end(), [](double v) { return v > 0; }));
  }
}

TEST(MostLikely, ALogitThatIsNotFiniteIsToldOnEveryRank) {
  RankGroup& world = testing::world_group();
  const ModelCase c(ModelFamily::qwen2);
  CausalLM model = c.load(dense_widths(c.config()), world);
  const Range mine = model.shard().vocabulary;
  const std::int64_t last = c.config().vocabulary - 1;
  if (last >= mine.begin && last < mine.end)
    model.head_VD()[last - mine.begin].fill_(std::numeric_limits<double>::quiet_NaN());
  PromptBatch batch = prompts_of(c.config(), 0);
  batch.origin = "micro-batch 1 of 1";
  const Continuations found = continue_greedily(model, batch, Ends(batch), world);
  const std::string text = testing::text_of(found.problems);
  EXPECT_NE(text.find("NaN or infinite"), std::string::npos) << text;
  EXPECT_NE(text.find("micro-batch 1 of 1"), std::string::npos) << text;
}

TEST(KvCache, HoldsTheKvHeadsOfThisRankForTheRowsThatAreLeft) {
  RankGroup& world = testing::world_group();
  const ModelCase c(ModelFamily::qwen3);
  const CausalLM model = c.load(testing::random_widths(c.config(), 5), world);
  const PromptBatch batch = prompts_of(c.config(), 0);
  const std::int64_t slots = 16;
  std::int64_t per_slot = 0;
  for (std::int64_t l = 0; l < model.layers(); ++l)
    if (!model.widths(l).query_heads.empty())
      per_slot += cached_per_token(static_cast<std::int64_t>(model.widths(l).kv_heads.size()),
                                   c.config().head_dim) *
                  8;
  std::int64_t held = 0, after = 0;
  {
    const c10::InferenceMode mode;
    KvCache cache(batch.prompt_tokens, slots, model.layers(), at::kCPU);
    const at::Tensor x_BTD = at::ones({5, 9, c.config().hidden}, at::kDouble);
    model.attention_half(0, x_BTD, cache);  // makes the table of angles
    const MemoryMeter meter;
    KvCache counted(batch.prompt_tokens, slots, model.layers(), at::kCPU);
    for (std::int64_t l = 0; l < model.layers(); ++l) model.attention_half(l, x_BTD, counted);
    held = meter.bytes();
    counted.advance();
    counted.keep({1, 3});
    after = meter.bytes();
  }
  // Beside them the positions of five rows.
  EXPECT_NEAR(static_cast<double>(held), static_cast<double>(5 * slots * per_slot), 64.0);
  EXPECT_NEAR(static_cast<double>(after), static_cast<double>(2 * slots * per_slot), 64.0);
}

}  // namespace
}  // namespace espalier
