#pragma once

#include <string_view>

#include "espalier/comm/communicator.h"

namespace espalier {

/// What every host implementation asks of a buffer, so that one process refuses what many would
/// refuse. Throws Error(internal) for elements without an address.
void require_address(const HostBuffer& buffer, std::string_view operation);

/// The element types that all_reduce takes.
bool is_reducible(DType dtype);
/// Throws Error(internal) naming the type unless it is one of them.
void require_reducible(const HostBuffer& buffer);

/// Throws Error(internal) unless 0 <= root < size.
void require_root(int root, int size);

}  // namespace espalier
