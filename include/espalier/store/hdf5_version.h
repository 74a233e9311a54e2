#pragma once

#include <string>

namespace espalier {

/// "1.10.8 (built with 1.10.8)": the loaded library beside the header's version.
std::string hdf5_library_version();

}  // namespace espalier
