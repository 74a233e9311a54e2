#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "espalier/config/model_config.h"

namespace espalier {

/// What lies in a model directory, or stands in its config.json, that a loader with other means
/// (peft, code of the checkpoint) would act on and espalier does not: a sentence each. Nothing for
/// exports of ours.
std::vector<std::string> foreign_means(const ModelConfig& config,
                                       const std::filesystem::path& directory);

}  // namespace espalier
