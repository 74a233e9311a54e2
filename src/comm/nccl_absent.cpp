#include "espalier/comm/nccl_calls.h"

namespace espalier::nccl {

const Calls* library() { return nullptr; }

std::string library_version() { return "not in this build"; }

}  // namespace espalier::nccl
