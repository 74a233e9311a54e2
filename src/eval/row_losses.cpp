#include "row_losses.h"

#include <numeric>
#include <utility>

#include <ATen/ATen.h>

#include "espalier/calib/calibration.h"
#include "espalier/model/tensor_ops.h"

namespace espalier {

RowLosses::RowLosses(std::string kind, const NamedTokens& data, Counting counting)
    : Evaluation(std::move(kind), data.name, data.tokens), counting_(counting) {}

void RowLosses::open(std::int64_t vocabulary) {
  file_ = TokenFile::open(tokens(), vocabulary, counting_);
}

void RowLosses::read(std::span<const std::int64_t> rows, const CausalLM& model,
                     const std::string& origin) {
  batch_ = make_batch(file_->read(rows), std::vector<double>(rows.size(), 1.0),
                      model.options().device, predictions_);
  batch_.origin = origin;
}

Problems RowLosses::compute(const CausalLM& model, const RankGroup& tensor,
                            std::span<double> values_NC) {
  TokenLosses losses = token_losses(model, batch_, tensor);
  take_losses(losses.nll_N, values_NC);
  return std::move(losses.problems);
}

void RowLosses::take_losses(const at::Tensor& nll_N, std::span<double> values_NC) const {
  const std::vector<double> nll = to_doubles(nll_N);
  auto next = nll.begin();
  for (std::size_t row = 0; row < predictions_.size(); ++row) {
    const auto end = next + predictions_[row];
    values_NC[2 * row] = std::accumulate(next, end, 0.0);
    values_NC[2 * row + 1] = static_cast<double>(predictions_[row]);
    next = end;
  }
}

}  // namespace espalier
