#include "espalier/model/vocabulary_loss.h"

#include <c10/core/GradMode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "model_case.h"

namespace espalier {
namespace {

using testing::ModelCase;

/// The same loss by ATen's own cross-entropy over the whole vocabulary, differentiated by autograd.
std::pair<at::Tensor, at::Tensor> oracle(const ModelCase& c, const at::Tensor& x_BTD) {
  const RankGroup self(make_self_communicator());
  const CausalLM whole = c.load(dense_widths(c.config()), self);
  const c10::AutoGradMode mode(true);
  const at::Tensor leaf = x_BTD.clone().requires_grad_(true);
  const at::Tensor rows = whole.final_norm(leaf)
                              .reshape({-1, c.config().hidden})
                              .index_select(0, c.batch().positions_N);
  const at::Tensor nll = at::cross_entropy_loss(at::linear(rows, whole.head_VD()),
                                                c.batch().targets_N, {}, at::Reduction::None);
  const at::Tensor loss = (nll * c.batch().weights_N).sum();
  return {nll.detach(), torch::autograd::grad({loss}, {leaf})[0]};
}

TEST(VocabularyLoss, SplitVocabularyEqualsWholeOne) {
  RankGroup& world = testing::world_group();
  const ModelCase c(ModelFamily::llama);
  const CausalLM model = c.load(dense_widths(c.config()), world);
  const at::Tensor x_BTD = at::linspace(-2, 3, 2 * 9 * 24, at::kDouble).sin().view({2, 9, 24});
  const VocabularyLoss loss =
      vocabulary_loss(model, x_BTD, c.batch().positions_N, c.batch().targets_N, c.batch().weights_N,
                      world.reducer());
  const auto [nll, dx] = oracle(c, x_BTD);
  EXPECT_LE((loss.nll_N - nll).abs().max().item<double>(),
            testing::rounding(24 * 37, nll.abs().max().item<double>()));
  EXPECT_LE((loss.dx_BTD - dx).abs().max().item<double>(),
            testing::rounding(24 * 37, dx.abs().max().item<double>()));
}

TEST(VocabularyLoss, ChunksBoundTheLogits) {
  EXPECT_EQ(loss_chunk(152064 / 8), 2048);
  EXPECT_EQ(loss_chunk(152064), 441);
  EXPECT_EQ(loss_chunk(std::int64_t{1} << 40), 16);
  EXPECT_EQ(loss_chunk(0), 2048);
}

}  // namespace
}  // namespace espalier
