#pragma once

#include <cstdint>
#include <string>

#include "espalier/calib/rounds.h"
#include "espalier/calib/token_file.h"
#include "espalier/comm/process_grid.h"
#include "espalier/config/run_config.h"
#include "espalier/model/causal_lm.h"

namespace espalier {

/// exp(sum of nll / counted tokens) over the non-overlapping windows of one token file.
struct Perplexity {
  std::string name;
  double perplexity = 0;
  /// Nats per counted token.
  double loss = 0;
  /// Counted tokens.
  std::int64_t tokens = 0;
  /// Rows of the file.
  std::int64_t windows = 0;
  /// Row length: a perplexity means nothing without it.
  std::int64_t window_tokens = 0;
};

/// Evaluates on all rows of the file; a /loss_mask in it is honoured. Collective over grid.world();
/// the same value on every rank. Throws AgreedError and stop::Stopped as deal_rounds does.
Perplexity evaluate_perplexity(const CausalLM& model, const NamedTokens& data,
                               std::int64_t micro_batch_tokens, const ProcessGrid& grid,
                               const RoundHooks& hooks);

}  // namespace espalier
