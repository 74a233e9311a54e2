#pragma once

#include "schema.h"

namespace espalier::config_detail {

/// Every key of the configuration file, in the order of reference.yaml. A new key is one row here
/// (and its field in RunConfig): parsing, defaults, reference.yaml, help, resume rules and printing
/// follow.
const Rows<RunConfig>& run_schema();

}  // namespace espalier::config_detail
