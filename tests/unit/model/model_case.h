#pragma once

#include <ATen/ATen.h>

#include "espalier/comm/process_grid.h"
#include "espalier/model/blockwise.h"
#include "espalier/model/load.h"
#include "support/mpi_test_main.h"
#include "support/random_model.h"

namespace espalier::testing {

/// A random checkpoint in float64 on all ranks as one tensor group, with a batch of two sequences
/// of which the second is shorter.
class ModelCase {
 public:
  explicit ModelCase(ModelFamily family) : ModelCase(small_config(family)) {}
  explicit ModelCase(ModelConfig config) : config_(std::move(config)) {
    write_random_checkpoint(config_, directory_.path(), 7);
    reader_.emplace(CheckpointReader::open(directory_.path()));
    const at::Tensor mixed = at::arange(2 * 9, at::kLong) * 17 + 5;
    batch_.tokens_BT = mixed.remainder(config_.vocabulary).view({2, 9});
    std::vector<std::int64_t> positions;
    for (std::int64_t t = 0; t < 8; ++t) positions.push_back(t);
    for (std::int64_t t = 0; t < 5; ++t) positions.push_back(9 + t);
    batch_.positions_N = at::tensor(positions, at::kLong);
    batch_.targets_N = batch_.tokens_BT.view(-1).index_select(0, batch_.positions_N + 1);
    batch_.weights_N =
        at::linspace(0.5, 1.5, static_cast<std::int64_t>(positions.size()), at::kDouble);
  }

  const ModelConfig& config() const { return config_; }
  const TokenBatch& batch() const { return batch_; }
  WeightSource source() const { return {&*reader_, dense_widths(config_)}; }

  /// Loads this rank's share of `widths`.
  CausalLM load(const ModelWidths& widths, const RankGroup& tensor,
                at::ScalarType dtype = at::kDouble) const {
    ComputeOptions options;
    options.dtype = dtype;
    return load_causal_lm(config_, widths, source(), options, tensor.size(), tensor.rank());
  }

  /// sum_n weights_n nll_n
  double objective(const CausalLM& model, const RankGroup& tensor) const {
    return (token_losses(model, batch_, tensor).nll_N * batch_.weights_N).sum().item<double>();
  }

 private:
  ModelConfig config_;
  TemporaryDirectory directory_;
  std::optional<CheckpointReader> reader_;
  TokenBatch batch_;
};

inline const std::vector<ModelFamily>& all_families() {
  static const std::vector<ModelFamily> families{ModelFamily::llama, ModelFamily::mistral,
                                                 ModelFamily::qwen2, ModelFamily::qwen3};
  return families;
}

/// All messages in one text.
inline std::string text_of(const Problems& problems) {
  std::string text;
  for (const Problem& problem : problems.list()) text += problem.message() + "\n";
  return text;
}

/// 2 x terms x epsilon of float64, relative to `scale`.
inline double rounding(double terms, double scale) { return 2 * terms * 2.3e-16 * scale; }

}  // namespace espalier::testing
