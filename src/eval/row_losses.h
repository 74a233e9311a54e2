#pragma once

#include <optional>
#include <vector>

#include "espalier/calib/token_file.h"
#include "espalier/eval/evaluation.h"
#include "espalier/model/blockwise.h"

namespace espalier {

/// What the kinds share that only look at likelihoods. Two numbers for each row: the sum of -log p
/// of its counted tokens, and how many there are.
class RowLosses : public Evaluation {
 public:
  RowLosses(std::string kind, const NamedTokens& data, Counting counting);

  void open(std::int64_t vocabulary) override;
  std::vector<std::int32_t> row_lengths() const override { return file_->lengths(); }
  std::int64_t columns() const override { return 2; }
  void read(std::span<const std::int64_t> rows, const CausalLM& model,
            const std::string& origin) override;
  Problems compute(const CausalLM& model, const RankGroup& tensor,
                   std::span<double> values_NC) override;
  bool wants_losses_only() const override { return true; }
  TokenBatch batch() const override { return batch_; }
  void take_losses(const at::Tensor& nll_N, std::span<double> values_NC) const override;

 protected:
  const TokenFile& file() const { return *file_; }

 private:
  Counting counting_;
  std::optional<TokenFile> file_;
  TokenBatch batch_;
  std::vector<std::int64_t> predictions_;  // of each row of the batch
};

}  // namespace espalier
