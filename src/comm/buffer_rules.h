#pragma once

#include <string_view>

#include "espalier/comm/communicator.h"

namespace espalier {

/// What every host implementation asks of a buffer, so that one process refuses what many would
/// refuse. Throws Error(internal): device memory, or elements without an address.
void require_host_memory(const CommBuffer& buffer, std::string_view operation);

/// The element types that all_reduce takes. Throws Error(internal) naming the type otherwise.
void require_reducible(const CommBuffer& buffer);

/// Throws Error(internal) unless 0 <= root < size.
void require_root(int root, int size);

}  // namespace espalier
