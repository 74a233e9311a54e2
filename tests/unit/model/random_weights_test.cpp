#include "espalier/model/random_weights.h"

#include <cmath>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "espalier/store/files.h"
#include "model_case.h"
#include "support/temporary_directory.h"

namespace espalier {
namespace {

void write_all(const ModelConfig& config, const ModelWidths& widths, at::ScalarType dtype,
               const std::filesystem::path& directory) {
  RandomCheckpoint checkpoint(config, widths, dtype, directory);
  for (std::int64_t step = 0; step < checkpoint.steps(); ++step) checkpoint.write(step);
}

class RandomCheckpointTest : public ::testing::TestWithParam<ModelFamily> {};

TEST_P(RandomCheckpointTest, HoldsWhatTheModelAsksFor) {
  const ModelConfig config = testing::small_config(GetParam());
  const ModelWidths widths = testing::random_widths(config, 3);
  const testing::TemporaryDirectory directory;
  write_all(config, widths, at::kFloat, directory.path());
  const CheckpointReader reader = CheckpointReader::open(directory.path());
  const WeightSource source{&reader, widths};
  EXPECT_TRUE(check_checkpoint(config, source).warnings.empty());  // throws for missing ones
  EXPECT_EQ(stored_type(source), at::kFloat);
  // It needs no name once it is open.
  remove_file(directory.path() / "model.safetensors");
  CausalLM model = load_causal_lm(config, widths, source, {}, 1, 0);
  for (const TensorSpec& spec : tensor_catalog(config)) {
    const at::Tensor drawn = model.tensor(spec).flatten();
    const auto count = static_cast<double>(drawn.numel());
    if (spec.role == TensorRole::final_norm) {
      EXPECT_TRUE(at::equal(drawn, at::ones_like(drawn)));
    }
    if (spec.role != TensorRole::embedding) continue;
    EXPECT_NEAR(drawn.mean().item<double>(), 0, 5 * 0.02 / std::sqrt(count));
    EXPECT_NEAR(drawn.std().item<double>(), 0.02, 5 * 0.02 / std::sqrt(2 * count));
  }
}

INSTANTIATE_TEST_SUITE_P(Families, RandomCheckpointTest,
                         ::testing::ValuesIn(testing::all_families()),
                         [](const auto& tested) { return std::string(name_of(tested.param)); });

TEST(RandomCheckpoint, IsOfTheDtypeThatIsAskedFor) {
  const ModelConfig config = testing::small_config(ModelFamily::llama);
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
    const testing::TemporaryDirectory directory;
    write_all(config, dense_widths(config), dtype, directory.path());
    const CheckpointReader reader = CheckpointReader::open(directory.path());
    EXPECT_EQ(stored_type({&reader, dense_widths(config)}), dtype);
  }
}

TEST(RandomCheckpoint, IsReadLayerByLayer) {
  const ModelConfig config = testing::small_config(ModelFamily::qwen3);
  const ModelWidths widths = dense_widths(config);
  const testing::TemporaryDirectory directory;
  write_all(config, widths, at::kFloat, directory.path());
  const CheckpointReader reader = CheckpointReader::open(directory.path());
  const WeightSource source{&reader, widths};
  const CausalLM whole = load_causal_lm(config, widths, source, {}, 1, 0);
  CausalLM few = unloaded_model(config, widths, {}, 1, 0);
  StreamedLayers layers(few, source);
  EXPECT_EQ(layers.seconds(), 0);
  double before = 0;
  for (std::int64_t l = 0; l < config.layers; ++l) {
    layers.hold(l, l + 1);
    EXPECT_TRUE(at::equal(few.layer(l).down_DF, whole.layer(l).down_DF));
    EXPECT_GT(layers.seconds(), before);
    before = layers.seconds();
  }
}

}  // namespace
}  // namespace espalier
