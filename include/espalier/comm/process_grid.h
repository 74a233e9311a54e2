#pragma once

#include <memory>

#include "espalier/comm/agreement.h"
#include "espalier/comm/communicator.h"
#include "espalier/comm/rank_group.h"

namespace espalier {

/// The ranks as a grid of tensor x data: rank = data_index * tensor + tensor_index, so that the
/// ranks of one tensor group are neighbours (and share a node wherever the launcher fills nodes in
/// order).
class ProcessGrid {
 public:
  /// Collective over `world`. Throws AgreedError(unsuitable) naming the counts that would work
  /// unless world.size() is a multiple of `tensor`.
  ProcessGrid(Communicator& world, int tensor);

  Communicator& world() const { return *world_; }
  /// Ranks that share one replica of the model.
  RankGroup& tensor() const { return *tensor_; }
  /// Ranks that hold the same shard for different data.
  RankGroup& data() const { return *data_; }

  int tensor_index() const { return tensor_->rank(); }
  int data_index() const { return data_->rank(); }
  int tensor_size() const { return tensor_->size(); }
  int data_size() const { return data_->size(); }
  bool is_root() const { return world_->rank() == 0; }

 private:
  Communicator* world_;
  std::unique_ptr<RankGroup> tensor_;
  std::unique_ptr<RankGroup> data_;
};

}  // namespace espalier
