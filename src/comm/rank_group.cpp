#include "espalier/comm/rank_group.h"

#include <exception>
#include <utility>

namespace espalier {

RankGroup::RankGroup(std::unique_ptr<Communicator> control)
    : control_(std::move(control)), reducer_(make_host_reducer(*control_)) {}

RankGroup::RankGroup(std::unique_ptr<Communicator> control, std::unique_ptr<TensorReducer> reducer)
    : control_(std::move(control)), reducer_(std::move(reducer)) {}

RankGroup::~RankGroup() {
  if (std::uncaught_exceptions() > 0) reducer_->abort();
}

void RankGroup::set_reducer(std::unique_ptr<TensorReducer> reducer) {
  reducer_ = std::move(reducer);
}

CommCounters RankGroup::counters() const {
  CommCounters sum = control_->counters();
  sum.collectives += reducer_->counters().collectives;
  sum.bytes += reducer_->counters().bytes;
  sum.seconds += reducer_->counters().seconds;
  return sum;
}

void RankGroup::reset_counters() {
  control_->reset_counters();
  reducer_->reset_counters();
}

}  // namespace espalier
