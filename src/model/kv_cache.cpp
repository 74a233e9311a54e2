#include "espalier/model/kv_cache.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "espalier/core/error.h"

namespace espalier {

KvCache::KvCache(std::vector<std::int64_t> prompt_tokens, std::int64_t slots, std::int64_t layers,
                 at::Device device)
    : slots_(slots), device_(device), layers_(static_cast<std::size_t>(layers)) {
  set_position(std::move(prompt_tokens));
}

void KvCache::set_position(std::vector<std::int64_t> position) {
  position_ = std::move(position);
  position_B_ = at::tensor(position_, at::kLong).to(device_);
  mask_.reset();
}

at::Tensor KvCache::last_B() const {
  return takes_prompts_ ? position_B_ - 1 : at::zeros_like(position_B_);
}

void KvCache::put(std::int64_t layer, const at::Tensor& k, const at::Tensor& v) {
  Layer& held = layers_[static_cast<std::size_t>(layer)];
  if (takes_prompts_) {
    const std::int64_t tokens = k.size(2);
    const at::Tensor place_T = at::arange(tokens, position_B_.options());
    const at::Tensor padded_B1T1 =
        (place_T.unsqueeze(0) >= position_B_.unsqueeze(1)).view({rows(), 1, tokens, 1});
    const auto keep_prompt = [&](const at::Tensor& x_BKTE) {
      at::Tensor all_BKSE =
          at::zeros({rows(), x_BKTE.size(1), slots_, x_BKTE.size(3)}, x_BKTE.options());
      all_BKSE.narrow(2, 0, tokens).copy_(x_BKTE.masked_fill(padded_B1T1, 0));
      return all_BKSE;
    };
    held = {keep_prompt(k), keep_prompt(v)};
    return;
  }
  const at::Tensor slot_BK1E = position_B_.view({-1, 1, 1, 1}).expand(k.sizes());
  held.k_BKSE.scatter_(2, slot_BK1E, k);
  held.v_BKSE.scatter_(2, slot_BK1E, v);
}

KvCache::Seen KvCache::seen(std::int64_t layer, std::int64_t window) const {
  const auto [earliest, latest] = std::minmax_element(position_.begin(), position_.end());
  const std::int64_t begin = window > 0 ? std::max<std::int64_t>(0, *earliest - window + 1) : 0;
  const std::int64_t size = *latest + 1 - begin;
  if (!mask_.defined() || window_ != window) {
    const at::Tensor slot_S = at::arange(begin, begin + size, position_B_.options());
    const at::Tensor distance_BS = position_B_.unsqueeze(1) - slot_S.unsqueeze(0);
    mask_ = distance_BS >= 0;
    if (window > 0) mask_.logical_and_(distance_BS < window);
    mask_ = mask_.view({rows(), 1, 1, size});
    window_ = window;
  }
  const Layer& held = layers_[static_cast<std::size_t>(layer)];
  return {held.k_BKSE.narrow(2, begin, size), held.v_BKSE.narrow(2, begin, size), mask_};
}

void KvCache::advance() {
  // The first token after a prompt of n tokens stands at position n.
  if (!takes_prompts_)
    for (std::int64_t& position : position_) ++position;
  takes_prompts_ = false;
  set_position(std::move(position_));
}

void KvCache::keep(const std::vector<std::int64_t>& rows) {
  const at::Tensor index = at::tensor(rows, at::kLong).to(device_);
  for (Layer& layer : layers_) {
    if (!layer.k_BKSE.defined()) continue;
    layer.k_BKSE = layer.k_BKSE.index_select(0, index);
    layer.v_BKSE = layer.v_BKSE.index_select(0, index);
  }
  std::vector<std::int64_t> position;
  position.reserve(rows.size());
  for (const std::int64_t row : rows) position.push_back(position_[static_cast<std::size_t>(row)]);
  set_position(std::move(position));
}

}  // namespace espalier
