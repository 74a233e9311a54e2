#pragma once

#include "espalier/comm/communicator.h"
#include "espalier/comm/rank_group.h"
#include "espalier/comm/runtime.h"

namespace espalier::testing {

/// All ranks of this test program: the MPI world under a launcher, `self` without one. Valid inside
/// tests.
Communicator& world();

/// The same ranks with a reducer of tensors.
RankGroup& world_group();

/// The runtime that owns it, for tests of the node's ranks.
CommRuntime& runtime();

}  // namespace espalier::testing
