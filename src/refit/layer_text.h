#pragma once

#include <string>

#include "espalier/refit/refit.h"

namespace espalier::refit_detail {

/// A layer's facts and the names, dtypes and shapes of its matrices, as ranks tell them each other:
/// JSON. The values of the matrices follow by themselves.
std::string layer_text(const RefittedLayer& layer);
/// The same with matrices that are still to be filled.
RefittedLayer layer_from(const std::string& text);

}  // namespace espalier::refit_detail
