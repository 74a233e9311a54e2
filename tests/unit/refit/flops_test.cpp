#include "espalier/refit/flops.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "espalier/comm/process_grid.h"
#include "espalier/model/load.h"
#include "espalier/model/work_meter.h"
#include "espalier/refit/refit.h"
#include "espalier/refit/solve.h"
#include "espalier/store/hdf5_file.h"
#include "support/random_model.h"

namespace espalier {
namespace {

constexpr std::int64_t kRows = 6, kTokens = 9;

/// Rows of which every second is shorter, so that padding goes through the model.
Calibration data_for(const ModelConfig& config) {
  std::vector<std::int32_t> tokens, lengths;
  for (std::int64_t i = 0; i < kRows * kTokens; ++i)
    tokens.push_back(static_cast<std::int32_t>((17 * i + 5) % config.vocabulary));
  for (std::int64_t row = 0; row < kRows; ++row)
    lengths.push_back(static_cast<std::int32_t>(row % 2 == 0 ? kTokens : 5));
  Hdf5Writer file;
  file.write("/tokens", std::span<const std::int32_t>(tokens), {kRows, kTokens});
  file.write("/length", std::span<const std::int32_t>(lengths), {kRows});
  file.attribute("/", "format", std::string("espalier-tokens"));
  file.attribute("/", "version", std::int64_t{1});
  const std::vector<std::byte> image = file.finish();
  return Calibration::whole(
      TokenFile::from_image(image, "drawn tokens", config.vocabulary, Counting::every_token),
      "drawn", 4 * kTokens);
}

/// What a refit of drawn widths asks LibTorch for.
double counted(const ModelConfig& config, const ModelWidths& kept, const RefitConfig& settings,
               std::int64_t& computed, std::int64_t& tokens) {
  const testing::TemporaryDirectory directory;
  testing::write_random_checkpoint(config, directory.path(), 7);
  const CheckpointReader reader = CheckpointReader::open(directory.path());
  const std::unique_ptr<Communicator> world = make_self_communicator();
  const ProcessGrid grid(*world, 1);
  ComputeOptions options;
  options.dtype = at::kDouble;
  const RefitRequest request{settings, {&reader, dense_widths(config)}, kept, {}};
  CausalLM model = load_causal_lm(config, kept, request.source, options, 1, 0);
  const Calibration data = data_for(config);
  computed = 0;
  for (const MicroBatch& batch : data.micro_batches()) {
    const at::Tensor tokens_BT =
        data.read(batch, Differentiated::pooled_loss, at::kCPU).batch.tokens_BT;
    computed += tokens_BT.numel();
  }
  const WorkMeter meter;
  tokens = refit(model, data, request, grid, {}).tokens;
  return meter.work().flops;
}

TEST(RefitFlops, AreWhatIsDispatched) {
  for (const ModelFamily family : {ModelFamily::llama, ModelFamily::qwen3})
    for (const auto& [moments, matrices] :
         {std::pair(false, RefitMatrices::outputs), std::pair(true, RefitMatrices::outputs),
          std::pair(false, RefitMatrices::all), std::pair(true, RefitMatrices::all)}) {
      const ModelConfig config = testing::small_config(family);
      // Layer 1 without heads, layer 2 without channels.
      const ModelWidths kept = testing::random_widths(config, 2);
      RefitConfig settings;
      settings.shrink_to = moments ? ShrinkTo::obs : ShrinkTo::dense;
      settings.matrices = matrices;
      RefitWork work{dense_widths(config), kept, 0, 0, moments, matrices};
      const double found = counted(config, kept, settings, work.computed_tokens, work.tokens);
      EXPECT_GT(work.computed_tokens, work.tokens);
      EXPECT_EQ(work.tokens, 3 * kTokens + 3 * 5);
      const RefitFlops flops = refit_flops(config, work);
      const auto ridges = static_cast<double>(ridge_candidates().size());
      EXPECT_DOUBLE_EQ(flops.streams + flops.sums + ridges * flops.ridge.products +
                           flops.residuals + flops.solution.products,
                       found);
      // One that is given is tried alone.
      settings.ridge = 0.1;
      const double fixed = counted(config, kept, settings, work.computed_tokens, work.tokens);
      EXPECT_DOUBLE_EQ(found - fixed, (ridges - 1) * flops.ridge.products);
    }
}

TEST(RefitFlops, SolutionsByHand) {
  ModelConfig config = testing::small_config(ModelFamily::llama);
  ModelWidths kept = dense_widths(config);
  for (LayerWidths& layer : kept.layers) {
    layer.query_heads.clear();
    layer.kv_heads.clear();
    layer.channels.clear();
  }
  kept.layers[0].channels = {0, 3, 4};
  const auto D = static_cast<double>(config.hidden);
  const double factor = 27.0 / 3, solution = 2 * 9 * D;
  RefitWork work{dense_widths(config), kept, 10, 10, false, RefitMatrices::outputs};
  EXPECT_DOUBLE_EQ(refit_flops(config, work).ridge.solutions, 2 * (factor + solution));
  EXPECT_DOUBLE_EQ(refit_flops(config, work).solution.solutions, factor + solution);
  EXPECT_EQ(refit_flops(config, work).solution.products, 0);
  work.moments = true;
  EXPECT_DOUBLE_EQ(refit_flops(config, work).solution.solutions, 2 * (factor + solution));
  EXPECT_EQ(refitted_elements(config, kept, RefitMatrices::outputs), 3 * config.hidden);
  // The gate and up of the one half that has units: D inputs, 3 outputs each.
  EXPECT_EQ(refitted_elements(config, kept, RefitMatrices::all), 3 * 3 * config.hidden);
  work.moments = false;
  work.matrices = RefitMatrices::all;
  const RefitFlops flops = refit_flops(config, work);
  EXPECT_DOUBLE_EQ(flops.solution.solutions,
                   factor + solution + 2 * (D * D * D / 3 + 2 * D * D * 3));
  EXPECT_DOUBLE_EQ(flops.sums, 20 * 3 * (3 + D) + 60 * D * D);
}

}  // namespace
}  // namespace espalier
