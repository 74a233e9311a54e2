#pragma once

namespace espalier {

/// Teaches problems_of (core/error.h) the exceptions of every foreign library that the modules
/// below use. Once per process, before the first command.
void register_foreign_errors();

}  // namespace espalier
