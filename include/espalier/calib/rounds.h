#pragma once

#include <cstdint>
#include <functional>

#include "espalier/comm/process_grid.h"

namespace espalier {

/// What a long phase tells the outside between micro-batches.
struct RoundHooks {
  /// Called on every rank before the ranks agree: looks for a STOP file, a time limit; calls
  /// stop::request().
  std::function<void()> poll;
  /// Called on every rank after the ranks agreed.
  std::function<void(std::int64_t done, std::int64_t total)> progress;
};

/// Agrees over `world` on a failure of any rank (everybody throws the same AgreedError) and on
/// requests to stop (everybody throws stop::Stopped). One all-reduce of two numbers when all is
/// well. Collective.
void agree_to_continue(Communicator& world, const std::string& phase,
                       std::vector<Problem>& problems, const RoundHooks& hooks);

/// Deals micro-batches number `done` to `count`: each round gives data rank d of D the (done +
/// d)-th, then `done` moves on by D, so that what is done is always a prefix. Per round every rank
/// first calls `read` for its own (file access may fail alone), then all agree, then `compute` runs
/// with the tensor group's collectives. A data rank without a micro-batch only takes part in the
/// agreement. Collective over grid.world(). `compute` may throw AgreedError (the same on its tensor
/// group); everything else it throws is a lone failure and leaves at once. After stop::Stopped,
/// `done` is the same on every rank, and computed.
void deal_rounds(const ProcessGrid& grid, const std::string& phase, std::int64_t count,
                 std::int64_t& done, const std::function<void(std::int64_t micro_batch)>& read,
                 const std::function<void()>& compute, const RoundHooks& hooks);

}  // namespace espalier
