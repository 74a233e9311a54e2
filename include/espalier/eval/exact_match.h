#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "espalier/calib/generation_file.h"
#include "espalier/calib/rounds.h"
#include "espalier/comm/process_grid.h"
#include "espalier/config/run_config.h"
#include "espalier/model/causal_lm.h"

namespace espalier {

/// How often a greedily generated answer is the expected one, as lm-evaluation-harness scores its
/// task gsm8k (eval/answers.h). The standard errors are those of a mean of `items` zeros and ones,
/// sqrt(p (1 - p) / (items - 1)); 0 for a single item.
struct ExactMatch {
  std::string name;
  double strict = 0;
  double strict_stderr = 0;
  double flexible = 0;
  double flexible_stderr = 0;
  std::int64_t items = 0;
};

/// One prompt's answer.
struct GeneratedAnswer {
  /// Row of the file.
  std::int64_t item = 0;
  /// With the token that ended it.
  std::vector<std::int64_t> tokens;
  /// Their bytes up to the first stop text.
  std::string text;
  bool strict = false;
  bool flexible = false;
};

/// The items in the order and the groups in which they go through the model: longest prompts first,
/// so that neighbours are of one length; as many together as keep (longest prompt + max_new_tokens)
/// x rows within micro_batch_tokens, at least one. Pure, and the same for every layout.
std::vector<std::vector<std::int64_t>> prompt_batches(const std::vector<std::int32_t>& prompt_tokens,
                                                      std::int64_t max_new_tokens,
                                                      std::int64_t micro_batch_tokens);

/// Continues every prompt of the file by at most max_new_tokens of the likeliest tokens
/// (model/generate.h), until one of the file's eos_ids or a text of its `stop`, and compares.
/// `answers`, if given, receives those of this data rank. Collective over grid.world(); the same
/// value on every rank. Throws AgreedError and stop::Stopped as deal_rounds does.
ExactMatch evaluate_exact_match(const CausalLM& model, const ExactMatchConfig& config,
                                std::int64_t micro_batch_tokens, const ProcessGrid& grid,
                                const RoundHooks& hooks,
                                std::vector<GeneratedAnswer>* answers = nullptr);

}  // namespace espalier
