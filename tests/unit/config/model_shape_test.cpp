#include "espalier/config/model_shape.h"

#include <gtest/gtest.h>

#include "espalier/core/error.h"

namespace espalier {
namespace {

constexpr const char* kSizes =
    "hidden=1024,channels=2816,layers=8,heads=16,kv_heads=4,vocabulary=8192";

TEST(ModelShape, OfSizes) {
  const ModelConfig config = config_of_shape(kSizes);
  EXPECT_EQ(config.family, ModelFamily::llama);
  EXPECT_EQ(config.hidden, 1024);
  EXPECT_EQ(config.channels, 2816);
  EXPECT_EQ(config.layers, 8);
  EXPECT_EQ(config.heads, 16);
  EXPECT_EQ(config.kv_heads, 4);
  EXPECT_EQ(config.head_dim, 64);
  EXPECT_EQ(config.vocabulary, 8192);
  EXPECT_FALSE(config.tied_embeddings);
  EXPECT_EQ(config.dtype, DType::f32);
  EXPECT_EQ(config.sliding_window, std::vector<std::int64_t>(8, 0));
  EXPECT_EQ(config_of_shape(std::string(kSizes) + ",head_dim=32").head_dim, 32);
}

TEST(ModelShape, OfKnownModels) {
  const ModelConfig qwen = config_of_shape("Qwen2.5-7B", 3);
  EXPECT_EQ(qwen.family, ModelFamily::qwen2);
  EXPECT_EQ(qwen.hidden, 3584);
  EXPECT_EQ(qwen.heads, 28);
  EXPECT_EQ(qwen.kv_heads, 4);
  EXPECT_EQ(qwen.channels, 18944);
  EXPECT_EQ(qwen.vocabulary, 152064);
  EXPECT_TRUE(qwen.qkv_bias);
  EXPECT_EQ(qwen.dtype, DType::bf16);
  EXPECT_EQ(qwen.layers, 3);
  EXPECT_EQ(qwen.sliding_window.size(), 3u);
  EXPECT_TRUE(config_of_shape("qwen3-8b").qk_norm);
  for (const std::string& name : known_shapes()) {
    const ModelConfig config = config_of_shape(name);
    EXPECT_GT(config.layers, 20) << name;
    EXPECT_EQ(config.head_dim, 128) << name;
    EXPECT_EQ(config.sliding_window,
              std::vector<std::int64_t>(static_cast<std::size_t>(config.layers), 0))
        << name;
  }
}

std::string refusal(const std::string& shape) {
  try {
    config_of_shape(shape);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage) << shape;
    return error.what();
  }
  ADD_FAILURE() << shape << " was taken";
  return {};
}

TEST(ModelShape, RefusesWhatIsNoShape) {
  const auto says = [](const std::string& shape, const std::string& part) {
    EXPECT_NE(refusal(shape).find(part), std::string::npos) << refusal(shape);
  };
  says("qwen2.5-8b", "did you mean 'qwen2.5-7b'?");
  says("hidden=8", "channels is missing; layers is missing");
  says(std::string(kSizes) + ",hiden=3", "'hiden' is not a size");
  says(std::string(kSizes) + ",hidden=3", "hidden twice");
  says("hidden=0,channels=-4,layers=two,heads=,kv_heads=4x,vocabulary=1e3",
       "'hidden=0' is not a whole number from 1; 'channels=-4' is not a whole number from 1; "
       "'layers=two' is not a whole number from 1; 'heads=' is not a whole number from 1; "
       "'kv_heads=4x' is not a whole number from 1; 'vocabulary=1e3'");
  says("hidden=10,channels=8,layers=1,heads=4,kv_heads=2,vocabulary=8", "no multiple of heads");
  says("hidden=12,channels=8,layers=1,heads=4,kv_heads=3,vocabulary=8", "num_key_value_heads");
  says("hidden=12,channels=8,layers=1,heads=4,kv_heads=2,vocabulary=8,head_dim=3", "head_dim");
  says("", "no such model is known");
  says("hidden=99999999999999999999", "is not a whole number");
}

}  // namespace
}  // namespace espalier
