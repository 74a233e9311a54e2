#include "espalier/model/packed_rows.h"

#include <utility>

#include <ATen/ATen.h>

namespace espalier {

PackedRows::PackedRows(at::Tensor position_BT, at::Tensor sequence_BT)
    : position_BT_(std::move(position_BT)),
      sequence_BT_(std::move(sequence_BT)),
      positions_(position_BT_.max().item<std::int64_t>() + 1) {}

const at::Tensor& PackedRows::visible(std::int64_t window) const {
  at::Tensor& visible_B1TT = visible_[window];
  if (visible_B1TT.defined()) return visible_B1TT;
  const std::int64_t tokens = position_BT_.size(1);
  const at::Tensor place_T = at::arange(tokens, position_BT_.options());
  const at::Tensor earlier_TT = place_T.unsqueeze(1) >= place_T.unsqueeze(0);
  const at::Tensor own_BTT = sequence_BT_.unsqueeze(2) == sequence_BT_.unsqueeze(1);
  const at::Tensor common_B1T = (sequence_BT_ == 0).unsqueeze(1);
  at::Tensor visible_BTT = own_BTT.logical_or(common_B1T).logical_and_(earlier_TT);
  if (window > 0)
    visible_BTT.logical_and_(position_BT_.unsqueeze(2) - position_BT_.unsqueeze(1) < window);
  visible_B1TT = visible_BTT.unsqueeze(1);
  return visible_B1TT;
}

const RotaryTable& PackedRows::rotary(const RotaryTable& table) const {
  if (rotary_.cos_TE.defined()) return rotary_;
  const std::int64_t B = position_BT_.size(0), T = position_BT_.size(1), E = table.cos_TE.size(1);
  const at::Tensor place_N = position_BT_.reshape({-1});
  rotary_ = {table.cos_TE.index_select(0, place_N).view({B, 1, T, E}),
             table.sin_TE.index_select(0, place_N).view({B, 1, T, E})};
  return rotary_;
}

}  // namespace espalier
