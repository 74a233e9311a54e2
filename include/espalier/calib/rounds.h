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

/// Deals `count` micro-batches: in round j data rank d of D has the (j D + d)-th. Per round every
/// rank first calls `read` for its own (file access may fail alone), then all agree, then `compute`
/// runs with the tensor group's collectives. A data rank without a micro-batch only takes part in
/// the agreement. Collective over grid.world(). `compute` may throw AgreedError (the same on its
/// tensor group); everything else it throws is a lone failure and leaves at once.
void deal_rounds(const ProcessGrid& grid, const std::string& phase, std::int64_t count,
                 const std::function<void(std::int64_t micro_batch)>& read,
                 const std::function<void()>& compute, const RoundHooks& hooks);

}  // namespace espalier
