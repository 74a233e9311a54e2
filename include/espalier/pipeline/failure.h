#pragma once

#include <exception>
#include <string>

#include "espalier/core/error.h"

namespace espalier {

/// What a user is told of any exception: an Error as it is; memory that ran out, whoever noticed
/// it, is `unsuitable` with what was asked for; everything else `internal`. `where` names the rank.
Error as_error(const std::exception& exception, const std::string& where);

}  // namespace espalier
