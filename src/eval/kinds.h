#pragma once

#include <memory>

#include "espalier/eval/evaluation.h"

namespace espalier {

/// exp(sum of nll / counted tokens) over the rows of a token file; a /loss_mask is honoured.
std::unique_ptr<Evaluation> make_perplexity(const NamedTokens& data);
/// acc and acc_norm over the items of a file of options (docs/method.md).
std::unique_ptr<Evaluation> make_multiple_choice(const NamedTokens& data);
std::unique_ptr<Evaluation> make_exact_match(const ExactMatchConfig& config);

}  // namespace espalier
