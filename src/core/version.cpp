#include "espalier/core/version.h"

namespace espalier {

std::string_view version() { return ESPALIER_VERSION; }
std::string_view git_hash() { return ESPALIER_GIT_HASH; }
std::string_view compiler() { return "GCC " __VERSION__; }

}  // namespace espalier
