#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "espalier/calib/token_file.h"
#include "espalier/config/model_config.h"
#include "espalier/config/run_config.h"

namespace espalier {

/// Looks at every token file that `use` reads (run: calibration, evaluation and refit, score:
/// calibration, eval: evaluation) before a weight is loaded: opens it for what the configuration
/// counts, and reads the share's part of every row that will ever be read. Throws every problem;
/// what is wrong with the rows is known once all shares are done.
///
/// Returns notes on what is no error, the same in every share: rows beyond the model's
/// max_position_embeddings, and a tokenizer or a vocabulary other than those in `model_directory`.
/// Not collective.
std::vector<std::string> check_data(const RunConfig& config, ConfigUse use,
                                    const ModelConfig& model,
                                    const std::filesystem::path& model_directory, Share share);

}  // namespace espalier
