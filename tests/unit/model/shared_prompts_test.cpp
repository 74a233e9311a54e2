#include "espalier/calib/shared_prompts.h"

#include <gtest/gtest.h>

#include "espalier/calib/calibration.h"
#include "unit/model/model_case.h"

namespace espalier {
namespace {

using testing::ModelCase;

constexpr std::int64_t kWidth = 14;

/// Rows by their tokens; the last `answer` ones of each count.
TokenRows rows_of(const std::vector<std::vector<std::int32_t>>& rows,
                  const std::vector<std::size_t>& answer) {
  TokenRows all{kWidth, {}, {}, {}};
  for (std::size_t r = 0; r < rows.size(); ++r) {
    std::vector<std::int32_t> row = rows[r];
    all.length.push_back(static_cast<std::int32_t>(row.size()));
    for (std::size_t t = 0; t < kWidth; ++t)
      all.counted.push_back(t + answer[r] >= row.size() && t < row.size() ? 1 : 0);
    row.resize(kWidth, 0);
    all.tokens.insert(all.tokens.end(), row.begin(), row.end());
  }
  return all;
}

std::vector<std::int64_t> longs(const at::Tensor& tensor) {
  const at::Tensor flat = tensor.to(at::kLong).contiguous().view({-1});
  return {flat.const_data_ptr<std::int64_t>(), flat.const_data_ptr<std::int64_t>() + flat.numel()};
}

TEST(SharedPrompts, APromptIsThereOnceUpToItsLastToken) {
  // Prompt 1 2 3; the last of its tokens predicts, so every option has one of its own. The answers
  // of the first two begin alike, which changes nothing.
  const TokenRows rows = rows_of(
      {{1, 2, 3, 7, 8}, {1, 2, 3, 7}, {1, 2, 3, 9, 9, 9}, {4, 5}, {4, 6, 6}}, {2, 1, 3, 1, 2});
  const std::vector<double> weights{0.5, -0.25, -0.25, 1, -1};
  std::vector<std::int64_t> predictions;
  const auto batch =
      share_prompts(rows, std::vector<std::size_t>{0, 3}, weights, at::kCPU, predictions);
  ASSERT_TRUE(batch);
  // Of the second item nothing can be shared: its one common token predicts.
  EXPECT_EQ(longs(batch->tokens_BT[0]),
            (std::vector<std::int64_t>{1, 2, 3, 7, 8, 3, 7, 3, 9, 9, 9}));
  EXPECT_EQ(longs(batch->tokens_BT[1]),
            (std::vector<std::int64_t>{4, 5, 4, 6, 6, 0, 0, 0, 0, 0, 0}));
  EXPECT_EQ(longs(batch->real_BT.sum(1)), (std::vector<std::int64_t>{11, 5}));
  EXPECT_EQ(predictions, (std::vector<std::int64_t>{2, 1, 3, 1, 2}));
  EXPECT_EQ(longs(batch->targets_N), (std::vector<std::int64_t>{7, 8, 7, 9, 9, 9, 5, 6, 6}));
  EXPECT_EQ(longs(batch->tokens_BT.view(-1).index_select(0, batch->positions_N)),
            (std::vector<std::int64_t>{3, 7, 3, 3, 9, 9, 4, 4, 6}));
  EXPECT_TRUE(at::equal(batch->weights_N, at::tensor({0.25, 0.25, -0.25, -0.25 / 3, -0.25 / 3,
                                                      -0.25 / 3, 1.0, -0.5, -0.5},
                                                     at::kDouble)));
  EXPECT_FALSE(batch->samples_SB.defined()) << "a row is a sample";
  // The last token of the third option sees the prompt and its own, not the other options.
  EXPECT_EQ(longs(batch->packed->visible(0)[0][0][10]),
            (std::vector<std::int64_t>{1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1}));
  EXPECT_EQ(longs(batch->packed->visible(4)[0][0][10]),
            (std::vector<std::int64_t>{0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1}))
      << "a window counts places in the sequence";
  EXPECT_EQ(batch->packed->positions(), 6);
}

TEST(SharedPrompts, AreLeftAloneWhereNothingIsSaved) {
  std::vector<std::int64_t> predictions;
  const TokenRows apart = rows_of({{1, 2, 3}, {4, 2, 3}}, {1, 1});
  EXPECT_FALSE(share_prompts(apart, std::vector<std::size_t>{0}, std::vector<double>{1, -1},
                             at::kCPU, predictions));
  // One item of many options beside others of two: padding would cost more than is shared.
  const TokenRows uneven = rows_of({{1, 2, 3},
                                    {1, 2, 4},
                                    {1, 2, 5},
                                    {1, 2, 6},
                                    {1, 2, 7},
                                    {1, 2, 8},
                                    {1, 3},
                                    {1, 4},
                                    {1, 5},
                                    {1, 6}},
                                   {1, 1, 1, 1, 1, 1, 1, 1, 1, 1});
  EXPECT_FALSE(share_prompts(uneven, std::vector<std::size_t>{0, 6, 8},
                             std::vector<double>(10, 0.1), at::kCPU, predictions));
}

/// Items of 2 to 5 options with prompts of 1 to 6 tokens and answers of 1 to 7.
TokenRows drawn_rows(std::int64_t vocabulary, std::vector<std::size_t>& begins) {
  std::uint64_t state = 11;
  const auto draw = [&](std::uint64_t below) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (state >> 33) % below;
  };
  const auto token = [&] {
    return static_cast<std::int32_t>(draw(static_cast<std::uint64_t>(vocabulary)));
  };
  std::vector<std::vector<std::int32_t>> rows;
  std::vector<std::size_t> answers;
  for (int item = 0; item < 6; ++item) {
    begins.push_back(rows.size());
    std::vector<std::int32_t> prompt(item == 0 ? 1 : 1 + draw(6));
    for (std::int32_t& t : prompt) t = token();
    const std::size_t options = 2 + draw(4);
    for (std::size_t k = 0; k < options; ++k) {
      rows.push_back(prompt);
      answers.push_back(1 + draw(7));
      for (std::size_t t = 0; t < answers.back(); ++t) rows.back().push_back(token());
    }
  }
  return rows_of(rows, answers);
}

/// Sums over tokens of gate times gradient, and gradients of weights, of every half.
class Sums final : public BackwardObserver {
 public:
  bool wants_gate(std::int64_t, UnitKind) const override { return true; }
  std::vector<TensorRole> wants_weights(std::int64_t, UnitKind half) const override {
    if (half == UnitKind::mlp) return {TensorRole::gate, TensorRole::down};
    return {TensorRole::q, TensorRole::k, TensorRole::v, TensorRole::o};
  }
  void observe(std::int64_t, UnitKind, const HalfGradients& gradients) override {
    sums.push_back((gradients.gate * gradients.gate_gradient).sum(at::IntArrayRef{0, 1}));
    for (const WeightGradient& gradient : gradients.weight_gradients)
      sums.push_back(gradient.product());
  }
  std::vector<at::Tensor> sums;
};

class SharedPromptsOf : public ::testing::TestWithParam<ModelFamily> {};

TEST_P(SharedPromptsOf, AreTheSameComputation) {
  const RankGroup& tensor = testing::world_group();
  const ModelCase c(GetParam());
  std::vector<std::size_t> begins;
  const TokenRows rows = drawn_rows(c.config().vocabulary, begins);
  std::vector<double> weights(rows.length.size());
  for (std::size_t r = 0; r < weights.size(); ++r)
    weights[r] = (r % 3 == 0 ? 1.0 : -0.5) / static_cast<double>(weights.size());
  std::vector<std::int64_t> plain_counts, packed_counts;
  const TokenBatch plain = make_batch(rows, weights, at::kCPU, plain_counts);
  const auto packed = share_prompts(rows, begins, weights, at::kCPU, packed_counts);
  ASSERT_TRUE(packed);
  EXPECT_EQ(packed_counts, plain_counts);
  EXPECT_LT(packed->tokens_BT.numel(), plain.tokens_BT.numel());
  for (const ModelWidths& widths :
       {dense_widths(c.config()), testing::random_widths(c.config(), 4)}) {
    const CausalLM model = c.load(widths, tensor);
    Sums of_plain, of_packed;
    const BackwardPass one = blockwise_backward(model, plain, {}, of_plain, tensor);
    const BackwardPass other = blockwise_backward(model, *packed, {}, of_packed, tensor);
    EXPECT_LT((one.nll_N - other.nll_N).abs().max().item<double>(), 1e-13);
    ASSERT_EQ(of_plain.sums.size(), of_packed.sums.size());
    for (std::size_t i = 0; i < of_plain.sums.size(); ++i) {
      if (of_plain.sums[i].numel() == 0) continue;
      const double size = of_plain.sums[i].abs().max().item<double>();
      EXPECT_LE((of_plain.sums[i] - of_packed.sums[i]).abs().max().item<double>(),
                1e-12 * size + 1e-17)
          << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, SharedPromptsOf, ::testing::ValuesIn(testing::all_families()));

}  // namespace
}  // namespace espalier
