#pragma once

#include <string>
#include <vector>

#include "espalier/core/error.h"
#include "yaml_reader.h"

namespace espalier::config_detail {

/// Puts every `key=value` of the command line into the tree, in order: `a.b=c`, list elements by
/// number
/// (`calibration.domains.0.weight=2` or `calibration.domains[0].weight=2`), the value as YAML.
/// Missing maps are made; whether the keys exist is for the schema to say. Records what cannot be
/// placed.
void apply_overrides(YamlNode& root, const std::vector<std::string>& overrides, Problems& problems);

}  // namespace espalier::config_detail
