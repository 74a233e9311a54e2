#include "espalier/pipeline/foreign_errors.h"

#include "espalier/model/torch_errors.h"

namespace espalier {

void register_foreign_errors() { register_torch_errors(); }

}  // namespace espalier
