#include <functional>

#include <gtest/gtest.h>

#include "espalier/score/score.h"
#include "espalier/store/files.h"
#include "support/random_model.h"

namespace espalier {
namespace {

using testing::TemporaryDirectory;

std::filesystem::path token_file(const TemporaryDirectory& directory, const std::string& name,
                                 std::int64_t rows, std::int64_t width) {
  const std::vector<std::int32_t> tokens(static_cast<std::size_t>(rows * width), 3);
  Hdf5Writer file;
  file.write("/tokens", std::span<const std::int32_t>(tokens), {rows, width});
  const std::vector<std::uint8_t> mask(tokens.size(), 1);  // for an objective that wants one
  file.write("/loss_mask", std::span<const std::uint8_t>(mask), {rows, width});
  file.attribute("/", "format", std::string("espalier-tokens"));
  file.attribute("/", "version", std::int64_t{1});
  const std::vector<std::byte> image = file.finish();
  const std::filesystem::path path = directory.path() / name;
  write_new_file(path, std::span<const std::byte>(image), WriteScope::other);
  return path;
}

/// All that goes into the work of a pass.
struct Ingredients {
  ModelWidths widths;
  int tensor_ranks = 1;
  ComputeOptions options;
  CalibrationConfig calibration;
  ScoreRequest request;
};

class Work : public ::testing::Test {
 protected:
  Work() : config_(testing::small_config(ModelFamily::qwen2)) {
    plain_.widths = dense_widths(config_);
    plain_.calibration.domains = {
        {"a", token_file(directory_, "a.h5", 9, 4), 8, 1.0, Objective::causal_lm},
        {"b", token_file(directory_, "b.h5", 6, 4), {}, 2.0, Objective::causal_lm}};
    plain_.calibration.micro_batch_tokens = 8;
    plain_.request.importance.criterion = Criterion::taylor_gate;
    plain_.request.scored = all_halves(config_);
    plain_.request.iteration = 1;
  }

  std::string work(const Ingredients& of) const {
    std::vector<ShardWidths> shards;
    for (int i = 0; i < of.tensor_ranks; ++i)
      shards.push_back(shard_of(config_, of.widths, of.tensor_ranks, i));
    const CausalLM model(config_, std::move(shards), 0, of.options);
    const Calibration data =
        Calibration::draw(of.calibration, of.request.iteration, config_.vocabulary);
    return work_of(model, data, of.request);
  }

  std::string changed(const std::function<void(Ingredients&)>& change) const {
    Ingredients other = plain_;
    change(other);
    return work(other);
  }

  TemporaryDirectory directory_;
  ModelConfig config_;
  Ingredients plain_;
};

TEST_F(Work, EveryIngredientOfASumCounts) {
  using I = Ingredients;
  const std::vector<std::pair<const char*, std::function<void(I&)>>> changes{
      {"criterion", [](I& i) { i.request.importance.criterion = Criterion::taylor_gate_sample; }},
      {"reduction", [](I& i) { i.request.importance.reduction = Reduction::scores; }},
      {"accumulate", [](I& i) { i.request.importance.accumulate = Accumulate::float64; }},
      {"dtype", [](I& i) { i.options.dtype = at::kBFloat16; }},
      {"combine", [](I& i) { i.request.combine = Combine::weighted_mean; }},
      {"attention unit", [](I& i) { i.request.unit = AttentionUnit::kv_group; }},
      {"scored halves", [](I& i) { i.request.scored[1][0] = false; }},
      {"a channel that fell", [](I& i) { i.widths.layers[1].channels.pop_back(); }},
      {"a head that fell", [](I& i) { i.widths.layers[2].query_heads.pop_back(); }},
      {"iteration", [](I& i) { i.request.iteration = 2; }},
      {"tokens of a micro-batch", [](I& i) { i.calibration.micro_batch_tokens = 12; }},
      {"number of sequences", [](I& i) { i.calibration.domains[0].sequences = 7; }},
      {"drawn sequences", [](I& i) { i.calibration.seed = 4; }},
      {"name of a domain", [](I& i) { i.calibration.domains[1].name = "c"; }},
      {"weight of a domain", [](I& i) { i.calibration.domains[1].weight = 2.5; }},
      {"objective of a domain", [](I& i) { i.calibration.domains[1].objective = Objective::sft; }},
      {"order of the domains",
       [](I& i) { std::swap(i.calibration.domains[0], i.calibration.domains[1]); }},
  };
  std::map<std::string, const char*> seen{{work(plain_), "nothing"}};
  for (const auto& [what, change] : changes) {
    const auto [place, is_new] = seen.emplace(changed(change), what);
    EXPECT_TRUE(is_new) << "another " << what << " is the same work as another " << place->second;
  }
}

TEST_F(Work, WhatComesAfterTheSumsDoesNotCount) {
  using I = Ingredients;
  const std::vector<std::pair<const char*, std::function<void(I&)>>> changes{
      {"normalization", [](I& i) { i.request.importance.normalization = Normalization::block_l2; }},
      {"memory for graphs", [](I& i) { i.request.spare_bytes = 1 << 20; }},
      {"layout", [](I& i) { i.tensor_ranks = 2; }},
  };
  for (const auto& [what, change] : changes) EXPECT_EQ(changed(change), work(plain_)) << what;
}

TEST_F(Work, ANameCannotLookLikeWhatFollowsIt) {
  const auto named = [](const char* name, double weight) {
    return [=](Ingredients& i) {
      i.calibration.domains.resize(1);
      i.calibration.domains[0].name = name;
      i.calibration.domains[0].weight = weight;
    };
  };
  EXPECT_NE(changed(named("a 1", 0)), changed(named("a", 1)));
}

}  // namespace
}  // namespace espalier
