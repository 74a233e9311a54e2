#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <map>

#include <gtest/gtest.h>

#include "espalier/model/gate.h"
#include "espalier/score/score.h"
#include "espalier/score/sums_by_domain.h"
#include "espalier/score/unit_sums.h"
#include "espalier/store/files.h"
#include "model_case.h"

namespace espalier {
namespace {

using testing::ModelCase;

/// The criterion of docs/criteria.md: the mean over tokens of the sum of |x_e| over a unit's
/// entries.
class MeanSize final : public SumsByDomain {
 public:
  MeanSize(const CausalLM& model, const StatisticsOptions& options)
      : SumsByDomain(model, options) {}

  Needs needs() const override { return Needs::inputs; }
  bool wants_input(std::int64_t layer, UnitKind half) const override {
    return is_observed(layer, half);
  }
  std::int64_t sums_of(const LayerWidths& widths, UnitKind half) const override {
    return gate_entries(widths, half, model().config());
  }
  void observe_input(std::int64_t layer, UnitKind half, const at::Tensor& input_BTU,
                     const at::Tensor& real_BT) override {
    at::Tensor size_BTU = input_BTU.abs().to(at::kDouble);
    if (real_BT.defined()) size_BTU = size_BTU * real_BT.unsqueeze(-1);
    add(layer, half, size_BTU.sum(at::IntArrayRef{0, 1}));
  }

 private:
  std::vector<double> value(std::int64_t layer, UnitKind half,
                            const std::vector<std::span<const double>>& by_domain,
                            const Mixture& mixture) const override {
    std::vector<double> sums(by_domain.front().size());
    double tokens = 0;
    for (std::size_t d = 0; d < by_domain.size(); ++d) {
      const double times = mixture.per_token(d);
      for (std::size_t e = 0; e < sums.size(); ++e) sums[e] += times * by_domain[d][e];
      tokens += times * mixture.tokens[d];
    }
    for (double& sum : sums) sum /= tokens;
    return entries_to_units(model(), unit(), layer, half, sums);
  }
};

constexpr std::int64_t kRows = 5, kWidth = 7;

/// Rows of different lengths.
std::filesystem::path token_file(const testing::TemporaryDirectory& directory, const char* name,
                                 int seed) {
  std::vector<std::int32_t> tokens, length;
  for (std::int64_t i = 0; i < kRows * kWidth; ++i)
    tokens.push_back(static_cast<std::int32_t>((i * 17 + seed) % 29));
  for (std::int64_t i = 0; i < kRows; ++i)
    length.push_back(static_cast<std::int32_t>(kWidth - (i * seed) % 4));
  Hdf5Writer file;
  file.write("/tokens", std::span<const std::int32_t>(tokens), {kRows, kWidth});
  file.write("/length", std::span<const std::int32_t>(length), {kRows});
  file.attribute("/", "format", std::string("espalier-tokens"));
  file.attribute("/", "version", std::int64_t{1});
  const std::vector<std::byte> image = file.finish();
  const std::filesystem::path path = directory.path() / name;
  write_new_file(path, std::span<const std::byte>(image), WriteScope::other);
  return path;
}

/// The scores of one token after the other, of one rank that has the whole model.
class Naive final : public InputObserver {
 public:
  bool wants_input(std::int64_t, UnitKind) const override { return true; }
  void observe_input(std::int64_t layer, UnitKind half, const at::Tensor& input_BTU,
                     const at::Tensor& real_BT) override {
    const at::Tensor input = input_BTU.contiguous();
    std::vector<double>& sums = sums_[{layer, half}];
    sums.resize(static_cast<std::size_t>(input.size(2)));
    for (std::int64_t b = 0; b < input.size(0); ++b)
      for (std::int64_t t = 0; t < input.size(1); ++t)
        if (!real_BT.defined() || real_BT[b][t].item<bool>())
          for (std::int64_t e = 0; e < input.size(2); ++e)
            sums[static_cast<std::size_t>(e)] += weight * of(input[b][t][e].item<double>());
  }
  double weight = 1;
  std::function<double(double)> of = [](double x) { return std::abs(x); };
  std::map<std::pair<std::int64_t, UnitKind>, std::vector<double>> sums_;
};

class AddedCriterion : public ::testing::TestWithParam<int> {};

TEST_P(AddedCriterion, GivesTheSameScoresOnAnyLayout) {
  Communicator& world = testing::world();
  const int tensor = GetParam();
  if (world.size() % tensor != 0) GTEST_SKIP() << tensor << " tensor ranks of " << world.size();
  const ProcessGrid grid(world, tensor);
  const ModelCase c(ModelFamily::qwen2);
  const testing::TemporaryDirectory directory;
  CalibrationConfig config;
  config.domains = {{"a", token_file(directory, "a.h5", 3), {}, 1.0, Objective::causal_lm},
                    {"b", token_file(directory, "b.h5", 5), 4, 3.0, Objective::causal_lm}};
  config.micro_batch_tokens = 2 * kWidth;
  ScoreRequest request;
  request.importance.normalization = Normalization::none;
  request.scored = all_halves(c.config());
  request.iteration = 1;
  request.each_domain = true;
  request.make = [](const CausalLM& model, const StatisticsOptions& options) {
    return std::make_unique<MeanSize>(model, options);
  };
  const CausalLM model = c.load(dense_widths(c.config()), grid.tensor());
  const auto draw = [&] { return Calibration::draw(config, 1, c.config().vocabulary); };
  const ScorePass pass = score(model, draw(), request, grid, {});

  const RankGroup self(make_self_communicator());
  const CausalLM whole = c.load(dense_widths(c.config()), self);
  const Calibration data = draw();
  Naive naive;
  double tokens = 0;
  for (const MicroBatch& place : data.micro_batches()) {
    const CalibrationBatch batch = data.read(place, Differentiated::domain_loss, at::kCPU);
    naive.weight = config.domains[batch.domain].weight / 2;  // the mean of 1 and 3
    observed_losses(whole, batch.batch, naive, self);
    tokens += naive.weight * static_cast<double>(batch.real_tokens);
  }
  const auto expected = [&](std::int64_t layer, UnitKind half, std::int64_t unit) {
    const std::int64_t width = half == UnitKind::mlp ? 1 : c.config().head_dim;
    double sum = 0;
    for (std::int64_t e = unit * width; e < (unit + 1) * width; ++e)
      sum += naive.sums_.at({layer, half})[static_cast<std::size_t>(e)];
    return sum / tokens;
  };
  for (const UnitKind half : {UnitKind::attention, UnitKind::mlp}) {
    const ScoreList& list = half == UnitKind::attention ? pass.table.attention : pass.table.mlp;
    ASSERT_FALSE(list.score.empty());
    for (std::size_t i = 0; i < list.score.size(); ++i) {
      const double value = expected(list.layer[i], half, list.unit[i]);
      EXPECT_NEAR(list.score[i], value, testing::rounding(1000, value));
    }
  }
  ASSERT_EQ(pass.of_domains.size(), 2u);
  EXPECT_NE(pass.of_domains[0].mlp.score, pass.of_domains[1].mlp.score);
}

class MeansOfFeatures : public ::testing::TestWithParam<int> {};

TEST_P(MeansOfFeatures, AreOfAllTokensByTheWeightsOfTheirDomains) {
  Communicator& world = testing::world();
  const int tensor = GetParam();
  if (world.size() % tensor != 0) GTEST_SKIP() << tensor << " tensor ranks of " << world.size();
  const ProcessGrid grid(world, tensor);
  const testing::TemporaryDirectory directory;
  CalibrationConfig config;
  config.domains = {{"a", token_file(directory, "a.h5", 3), {}, 1.0, Objective::causal_lm},
                    {"b", token_file(directory, "b.h5", 5), 4, 3.0, Objective::causal_lm}};
  config.micro_batch_tokens = 2 * kWidth;
  for (const ModelFamily family : {ModelFamily::llama, ModelFamily::qwen3}) {
    const ModelCase c(family);
    const ModelWidths kept = testing::random_widths(c.config(), 3);  // a layer without heads, too
    const CausalLM model = c.load(kept, grid.tensor());
    const RankGroup self(make_self_communicator());
    const CausalLM whole = c.load(kept, self);
    const auto draw = [&] { return Calibration::draw(config, 1, c.config().vocabulary); };
    const Calibration data = draw();
    Naive naive;
    naive.of = [](double x) { return x; };
    double tokens = 0;
    for (const MicroBatch& place : data.micro_batches()) {
      const CalibrationBatch batch = data.read(place, Differentiated::domain_loss, at::kCPU);
      naive.weight = config.domains[batch.domain].weight / 2;
      observed_losses(whole, batch.batch, naive, self);
      tokens += naive.weight * static_cast<double>(batch.real_tokens);
    }
    for (const Combine combine : {Combine::pooled, Combine::max}) {
      ScoreRequest request;
      request.importance.criterion = Criterion::flap;
      request.importance.normalization = Normalization::none;
      request.combine = combine;
      request.unit =
          family == ModelFamily::qwen3 ? AttentionUnit::query_head : AttentionUnit::kv_group;
      request.scored = all_halves(c.config());
      request.scored[0][1] = false;
      request.iteration = 1;
      request.means = true;
      const ScorePass pass = score(model, draw(), request, grid, {});
      ASSERT_TRUE(pass.means.has_value());
      for (const UnitKind half : {UnitKind::attention, UnitKind::mlp})
        for (std::int64_t l = 0; l < c.config().layers; ++l) {
          const LayerWidths& layer = kept.layers[static_cast<std::size_t>(l)];
          const auto& units = half == UnitKind::mlp ? layer.channels : layer.query_heads;
          const std::int64_t width = half == UnitKind::mlp ? 1 : c.config().head_dim;
          std::map<std::int64_t, double> wanted;  // by feature
          const bool scored = request.scored[static_cast<std::size_t>(l)][half == UnitKind::mlp];
          for (std::size_t u = 0; scored && u < units.size(); ++u)
            for (std::int64_t e = 0; e < width; ++e)
              wanted[units[u] * width + e] =
                  naive.sums_.at(
                      {l,
                       half})[u * static_cast<std::size_t>(width) + static_cast<std::size_t>(e)] /
                  tokens;
          for (std::int64_t f = 0; f < pass.means->of(half).units; ++f) {
            const double mean = pass.means->of(half).at(l, f);
            EXPECT_EQ(std::isnan(mean), !wanted.contains(f)) << l << " " << f;
            if (wanted.contains(f)) {
              EXPECT_NEAR(mean, wanted[f], testing::rounding(1000, 1)) << l << " " << f;
            }
          }
        }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(TensorRanks, MeansOfFeatures, ::testing::Values(1, 2, 3));
INSTANTIATE_TEST_SUITE_P(TensorRanks, AddedCriterion, ::testing::Values(1, 2, 3));

}  // namespace
}  // namespace espalier
