#include "espalier/score/memory_need.h"

#include <algorithm>
#include <set>

#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "espalier/model/layerwise.h"
#include "espalier/score/score.h"
#include "model_case.h"

namespace espalier {
namespace {

/// The most that tensors of this thread took at once, told by LibTorch's own allocators.
class Peak final : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void* place, std::int64_t bytes, std::size_t, std::size_t,
                         c10::Device) override {
    // Sums of gradients that meet in the engine are freed without having been told.
    if (bytes < 0 && live_.erase(place) == 0) return;
    if (bytes > 0) live_.insert(place);
    now_ += bytes;
    peak_ = std::max(peak_, now_);
  }
  bool memoryProfilingEnabled() const override { return true; }
  std::int64_t bytes() const { return peak_; }

 private:
  std::set<void*> live_;
  std::int64_t now_ = 0, peak_ = 0;
};

ModelConfig wide_config(ModelFamily family, int layers, int channels) {
  ModelConfig config = testing::small_config(family);
  config.hidden = 64;
  config.layers = layers;
  config.heads = 8;
  config.kv_heads = family == ModelFamily::llama ? 8 : 4;
  config.head_dim = 8;
  config.channels = channels;
  config.vocabulary = 300;
  config.max_positions = 512;
  config.sliding_window.assign(static_cast<std::size_t>(layers), 0);
  return config;
}

TokenBatch batch_of(const ModelConfig& config, std::int64_t B, std::int64_t T) {
  TokenBatch batch;
  batch.tokens_BT =
      (at::arange(B * T, at::kLong) * 17 + 5).remainder(config.vocabulary).view({B, T});
  const at::Tensor all = at::arange(B * T, at::kLong);
  batch.positions_N = all.masked_select((all + 1).remainder(T) != 0);
  batch.targets_N = batch.tokens_BT.view(-1).index_select(0, batch.positions_N + 1);
  batch.weights_N = at::full({batch.positions_N.numel()}, 1e-3, at::kDouble);
  return batch;
}

struct Measured {
  std::int64_t weights = 0, statistics = 0, pass = 0;  // pass: beside weights, statistics included
};

class MemoryNeedTest : public ::testing::TestWithParam<ModelFamily> {
 protected:
  explicit MemoryNeedTest(int layers = 4, int channels = 260)
      : config_(wide_config(GetParam(), layers, channels)) {
    testing::write_random_checkpoint(config_, directory_.path(), 3);
    reader_.emplace(CheckpointReader::open(directory_.path()));
    pass_.tensor = testing::world().size();
    pass_.scored.assign(static_cast<std::size_t>(layers), {true, true});
    pass_.scored[0] = {false, false};  // protected
    pass_.curvature = Curvature::full;
    pass_.tokens = 6 * 96;
  }

  Measured measure(std::int64_t graph_bytes = 0) {
    RankGroup& tensor = testing::world_group();
    const CausalLM model = loaded();
    const TokenBatch batch = batch_of(config_, 6, 96);
    const auto peak = std::make_shared<Peak>();
    const c10::DebugInfoGuard guard{c10::DebugInfoKind::PROFILER_STATE, peak};
    const std::unique_ptr<Statistics> statistics = statistics_of(model);
    statistics->weigh({1.0}, 1.0);
    for (int i = 0; i < 2; ++i) {
      if (statistics->needs() == Needs::gradients)
        blockwise_backward(model, batch, {lowest_half(pass_.scored), graph_bytes}, *statistics,
                           tensor);
      else
        observed_losses(model, batch, *statistics, tensor);
    }
    const std::int64_t sums = statistics->bytes();
    // Ordering may take more than the pass.
    if (pass_.criterion == Criterion::obs)
      statistics->reduce(ProcessGrid(testing::world(), tensor.size()), {0, model.layers()})
          .throw_if_any();
    return {model.weight_bytes(), sums, peak->bytes()};
  }

  CausalLM loaded() {
    RankGroup& tensor = testing::world_group();
    ComputeOptions options;
    options.dtype = pass_.dtype;
    return load_causal_lm(config_, pass_.widths, {&*reader_, dense_widths(config_)}, options,
                          tensor.size(), tensor.rank());
  }
  std::unique_ptr<Statistics> statistics_of(const CausalLM& model) const {
    StatisticsOptions what;
    what.criterion = pass_.criterion;
    what.unit = pass_.unit;
    what.accumulate = pass_.accumulate;
    what.curvature = pass_.curvature;
    what.scored = pass_.scored;
    return make_statistics(model, what);
  }

  /// The same work layer by layer, beside the weights.
  std::int64_t measure_layers() {
    RankGroup& tensor = testing::world_group();
    const ProcessGrid grid(testing::world(), tensor.size());
    const CausalLM model = loaded();
    const TokenBatch batch = batch_of(config_, 6, 96);
    const auto peak = std::make_shared<Peak>();
    const c10::DebugInfoGuard guard{c10::DebugInfoKind::PROFILER_STATE, peak};
    const std::unique_ptr<Statistics> statistics = statistics_of(model);
    statistics->weigh({1.0}, 1.0);
    const bool back = statistics->needs() == Needs::gradients;
    LayerwisePass pass(model, tensor, boundaries_in_memory(at::kCPU),
                       back ? lowest_half(pass_.scored) : 2 * model.layers());
    const auto each = [&](const auto& work) {
      for (std::size_t k = 0; k < kMicroBatches; ++k) work(k);
    };
    each([&](std::size_t k) {
      pass.add(batch);
      pass.embed(k).throw_if_any();
    });
    for (std::int64_t layer = 0; layer < model.layers(); ++layer) {
      each([&](std::size_t k) {
        pass.fetch_forward(layer, k);
        pass.forward(layer, k, *statistics).throw_if_any();
      });
      pass.leave_forward(layer);
    }
    each([&](std::size_t k) {
      pass.fetch_loss(k);
      pass.loss(k).problems.throw_if_any();
    });
    for (std::int64_t layer = model.layers() - 1; layer >= pass.lowest_layer(); --layer) {
      each([&](std::size_t k) {
        pass.fetch_backward(layer, k);
        pass.backward(layer, k, *statistics).throw_if_any();
      });
      pass.leave_backward(layer);
      statistics->reduce(grid, {layer, layer + 1}).throw_if_any();
    }
    EXPECT_EQ(pass.boundary_bytes(), memory_need(config_, pass_).boundaries) << what();
    return peak->bytes();
  }

  /// What is computed of the fullest rank is what that rank takes.
  void compare() {
    RankGroup& tensor = testing::world_group();
    const Measured mine = measure();
    const MemoryNeed need = memory_need(config_, pass_);
    const auto most = [&](std::int64_t bytes) { return -tensor.control().min(-bytes); };
    EXPECT_EQ(need.weights + need.statistics, most(mine.weights + mine.statistics));
    const auto passed = static_cast<double>(most(mine.pass));
    const auto expected = static_cast<double>(need.total() - need.weights);
    const double ratio = expected / passed;
    EXPECT_GT(ratio, 0.9) << what();
    EXPECT_LT(ratio, 1.06) << what();
  }

  std::string what() const {
    return fmt::format("{}, {}, tensor {}, computed without weights {}", at::toString(pass_.dtype),
                       name_of(pass_.criterion), pass_.tensor,
                       memory_need(config_, pass_).total() - memory_need(config_, pass_).weights);
  }

  static constexpr std::size_t kMicroBatches = 3;
  ModelConfig config_;
  testing::TemporaryDirectory directory_;
  std::optional<CheckpointReader> reader_;
  PassShape pass_;
};

TEST_P(MemoryNeedTest, IsWhatAPassTakes) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kDouble})
    for (const Criterion criterion : {Criterion::taylor, Criterion::taylor_gate,
                                      Criterion::wanda_sp, Criterion::flap, Criterion::obs})
      for (const ModelWidths& widths :
           {dense_widths(config_), testing::random_widths(config_, 5)}) {
        pass_.dtype = dtype;
        pass_.criterion = criterion;
        pass_.widths = widths;
        compare();
      }
}

TEST_P(MemoryNeedTest, IsWhatAPassTakesLayerByLayer) {
  pass_.layer_by_layer = true;
  pass_.boundary_tokens = static_cast<std::int64_t>(kMicroBatches) * pass_.tokens;
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16})
    for (const Criterion criterion :
         {Criterion::taylor, Criterion::taylor_gate, Criterion::flap, Criterion::obs})
      for (const ModelWidths& widths :
           {dense_widths(config_), testing::random_widths(config_, 5)}) {
        pass_.dtype = dtype;
        pass_.criterion = criterion;
        pass_.widths = widths;
        const MemoryNeed need = memory_need(config_, pass_);
        const auto taken =
            static_cast<double>(-testing::world_group().control().min(-measure_layers()));
        const double ratio = static_cast<double>(need.total() - need.weights) / taken;
        EXPECT_GT(ratio, 0.9) << what() << ", taken " << taken;
        EXPECT_LT(ratio, 1.25) << what() << ", taken " << taken;
      }
}

/// Enough layers for their inputs to outweigh one graph.
class KeptGraphsTest : public MemoryNeedTest {
 protected:
  KeptGraphsTest() : MemoryNeedTest(16, 32) {}
};

TEST_P(KeptGraphsTest, AreForecast) {
  pass_.dtype = at::kFloat;
  for (const Criterion criterion : {Criterion::taylor, Criterion::taylor_gate})
    for (const ModelWidths& widths : {dense_widths(config_), testing::random_widths(config_, 5)}) {
      pass_.criterion = criterion;
      pass_.widths = widths;
      const Measured least = measure();
      for (const int eighths : {6, 12, 24, 80}) {
        const std::int64_t bytes = (least.pass - least.statistics) * eighths / 8;
        const auto taken =
            static_cast<double>(-testing::world_group().control().min(-measure(bytes).pass));
        pass_.spare_bytes = bytes + least.statistics;
        const MemoryNeed need = memory_need(config_, pass_);
        EXPECT_EQ(need.kept_graphs > 0, eighths > 8) << what();
        const auto expected = static_cast<double>(need.total() + need.kept_graphs - need.weights);
        EXPECT_GT(expected / taken, 0.9) << what() << ", " << eighths << " eighths";
        EXPECT_LT(expected / taken, 1.06) << what() << ", " << eighths << " eighths";
      }
    }
}

TEST_P(KeptGraphsTest, StayWithinWhatTheyMayTake) {
  pass_.dtype = at::kFloat;
  pass_.criterion = Criterion::taylor_gate;
  pass_.widths = dense_widths(config_);
  const Measured least = measure();
  // Graphs of halves that are still to come may be larger than those that were measured.
  for (const int quarters : {3, 4, 5, 6, 8, 12}) {
    const std::int64_t bytes = least.pass * quarters / 4;
    const Measured with = measure(bytes);
    EXPECT_LE(with.pass - with.statistics, std::max(bytes, least.pass - least.statistics) * 1.06)
        << "with " << bytes << " bytes; without any " << least.pass;
  }
}

INSTANTIATE_TEST_SUITE_P(Families, MemoryNeedTest, ::testing::ValuesIn(testing::all_families()),
                         [](const auto& family) { return std::string(name_of(family.param)); });

INSTANTIATE_TEST_SUITE_P(Families, KeptGraphsTest, ::testing::ValuesIn(testing::all_families()),
                         [](const auto& family) { return std::string(name_of(family.param)); });

}  // namespace
}  // namespace espalier
