#include <cmath>
#include <cstdint>

#include "kinds.h"
#include "row_losses.h"

namespace espalier {
namespace {

class Perplexity : public RowLosses {
 public:
  explicit Perplexity(const NamedTokens& data)
      : RowLosses("perplexity", data, Counting::loss_mask_if_present) {}

  TaskOutcome outcome(std::span<const double> values_NC) const override {
    double sum = 0, counted = 0;
    for (std::size_t at = 0; at < values_NC.size(); at += 2) {
      sum += values_NC[at];
      counted += values_NC[at + 1];
    }
    const auto tokens = static_cast<std::int64_t>(counted);
    const double loss = sum / counted, perplexity = std::exp(loss);
    // Tokens of a window depend on one another, so their mean has no simple standard error.
    return {kind(),
            name(),
            {{name(), "perplexity", perplexity, std::nullopt, tokens},
             {name(), "loss", loss, std::nullopt, tokens}},
            {{"perplexity", perplexity},
             {"loss", loss},
             {"tokens", tokens},
             {"windows", file().rows()},
             {"window_tokens", file().sequence_tokens()}},
            {}};
  }
};

}  // namespace

std::unique_ptr<Evaluation> make_perplexity(const NamedTokens& data) {
  return std::make_unique<Perplexity>(data);
}

}  // namespace espalier
