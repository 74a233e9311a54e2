#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "espalier/comm/process_grid.h"

namespace espalier {

/// Deals micro-batches number `done` to `count`: each round gives data rank d of D the (done +
/// d)-th, then `done` moves on by D, so that what is done is always a prefix. Per round every rank
/// first calls `read` for its own (file access may fail alone), then all agree, then `compute` runs
/// with the tensor group's collectives. A data rank without a micro-batch only takes part in the
/// agreement. Collective over grid.world().
///
/// What `compute` finds wrong it returns after its last collective; all ranks throw it together in
/// the next round. What it throws instead is a lone failure in a tensor group of several ranks,
/// since its peers are in a collective, and leaves at once. After stop::Stopped, `done` is the same
/// on every rank, and computed.
void deal_rounds(const ProcessGrid& grid, const std::string& phase, std::int64_t count,
                 std::int64_t& done, const std::function<void(std::int64_t micro_batch)>& read,
                 const std::function<Problems()>& compute, const RoundHooks& hooks);

}  // namespace espalier
