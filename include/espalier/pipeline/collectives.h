#pragma once

#include <optional>
#include <string>

#include "espalier/comm/process_grid.h"
#include "espalier/config/run_config.h"
#include "espalier/model/causal_lm.h"

namespace espalier {

/// How long a rank waits for the others' part of a sum over NCCL: 600 s, and at least four times
/// `hang_timeout`, since the watchdog, which can tell who is to blame, comes first; 0 (without end)
/// for a hang_timeout of 0.
double collective_deadline(std::optional<double> hang_timeout);

/// Gives the groups of the grid the reducer of tensors that execution.collectives asks for: `auto`
/// is NCCL where the build has it and every rank has a GPU of its own, else MPI. Returns how sums
/// of tensors go, in words: over "NCCL 2.28.9, ...", "MPI, ..." or, for one rank, "nothing".
/// Collective over the world of the grid; to be called once the devices are chosen and before
/// memory is looked at. Throws AgreedError(unsuitable) where `nccl` is asked for and cannot be,
/// with the reason.
std::string connect_collectives(const RunConfig& config, const ComputeOptions& options,
                                const ProcessGrid& grid, std::optional<double> hang_timeout = {});

}  // namespace espalier
