#include "espalier/config/foreign_means.h"

#include <system_error>

#include <fmt/format.h>

#include "espalier/core/json.h"

namespace espalier {

std::vector<std::string> foreign_means(const ModelConfig& config,
                                       const std::filesystem::path& directory) {
  std::vector<std::string> found;
  if (config.exported) return found;
  if (parse_json(config.source_text, "config.json").contains("auto_map"))
    found.push_back(
        fmt::format("auto_map of config.json names code, which is not run: the model is computed "
                    "as a plain {}",
                    name_of(config.family)));
  std::error_code failure;
  if (std::filesystem::exists(directory / "adapter_config.json", failure))
    found.emplace_back(
        "adapter_config.json: an adapter beside the weights is not applied, transformers with peft "
        "would load it; merge it into the weights if it is meant to count");
  return found;
}

}  // namespace espalier
