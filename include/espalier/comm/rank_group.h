#pragma once

#include <memory>

#include "espalier/comm/communicator.h"
#include "espalier/comm/tensor_reducer.h"

namespace espalier {

/// Ranks that work on something together, and the two ways in which they do: what they agree on
/// and count goes through control(), sums of tensors through reducer().
class RankGroup {
 public:
  /// Tensors are reduced through `control`, in host memory.
  explicit RankGroup(std::unique_ptr<Communicator> control);
  /// `reducer` is of the same ranks in the same order.
  RankGroup(std::unique_ptr<Communicator> control, std::unique_ptr<TensorReducer> reducer);
  /// Aborts the reducer where an exception unwinds: a rank that fails alone must not wait for the
  /// others.
  ~RankGroup();
  RankGroup(const RankGroup&) = delete;
  RankGroup& operator=(const RankGroup&) = delete;

  int rank() const { return control_->rank(); }
  int size() const { return control_->size(); }
  Communicator& control() const { return *control_; }
  TensorReducer& reducer() const { return *reducer_; }
  /// In place of the one there is, of the same ranks in the same order.
  void set_reducer(std::unique_ptr<TensorReducer> reducer);

  /// Of both.
  CommCounters counters() const;
  void reset_counters();

 private:
  std::unique_ptr<Communicator> control_;
  std::unique_ptr<TensorReducer> reducer_;
};

}  // namespace espalier
