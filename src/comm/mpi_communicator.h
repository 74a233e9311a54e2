#pragma once

#include <memory>
#include <string_view>

#include <mpi.h>

#include "espalier/comm/communicator.h"

namespace espalier {

/// Throws Error(internal) with the call's name and MPI's own words unless `code` is MPI_SUCCESS.
void check_mpi(int code, std::string_view call);

/// Wraps `comm` and owns it: it is freed with the wrapper. A group of one becomes a `self`
/// communicator, since it needs no library.
std::unique_ptr<Communicator> adopt_mpi_communicator(MPI_Comm comm);

}  // namespace espalier
