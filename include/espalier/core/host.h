#pragma once

#include <string>

namespace espalier {

/// gethostname(2): any bytes.
std::string host_name();

}  // namespace espalier
