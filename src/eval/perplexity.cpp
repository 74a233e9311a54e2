#include "espalier/eval/perplexity.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "espalier/calib/calibration.h"

namespace espalier {

Perplexity evaluate_perplexity(const CausalLM& model, const NamedTokens& data,
                               std::int64_t micro_batch_tokens, const ProcessGrid& grid,
                               const RoundHooks& hooks) {
  std::optional<TokenFile> file;
  together(grid.world(), "evaluate", [&] {
    file = TokenFile::open(data.tokens, model.config().vocabulary, Counting::loss_mask_if_present);
  });
  const std::int64_t size = sequences_per_micro_batch(micro_batch_tokens, file->sequence_tokens());
  const std::int64_t count = (file->rows() + size - 1) / size;
  double sum = 0;
  std::int64_t tokens = 0;
  TokenBatch batch;
  const auto read = [&](std::int64_t j) {
    std::vector<std::int64_t> rows(
        static_cast<std::size_t>(std::min(size, file->rows() - j * size)));
    std::iota(rows.begin(), rows.end(), j * size);
    std::vector<std::int64_t> predictions;
    batch = make_batch(file->read(rows), 1.0, model.options().device, predictions);
    batch.origin = fmt::format("micro-batch {} of {}, evaluation '{}', data rank {}", j + 1, count,
                               data.name, grid.data_index());
  };
  const auto compute = [&] {
    TokenLosses losses = token_losses(model, batch, grid.tensor());
    sum += losses.nll_N.sum().item<double>();
    tokens += losses.nll_N.numel();
    return std::move(losses.problems);
  };
  std::int64_t done = 0;
  deal_rounds(grid, "evaluate", count, done, read, compute, hooks);
  grid.data().control().all_reduce_sum(std::span<double>(&sum, 1));
  grid.data().control().all_reduce_sum(std::span<std::int64_t>(&tokens, 1));
  const double loss = sum / static_cast<double>(tokens);
  return {data.name, std::exp(loss), loss, tokens, file->rows(), file->sequence_tokens()};
}

}  // namespace espalier
