#include "ledger.h"

#include <tuple>

namespace espalier {
namespace {

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }
std::size_t place(UnitKind kind) { return kind == UnitKind::attention ? 0 : 1; }

}  // namespace

bool falls_before(const Candidate& a, const Candidate& b) {
  return std::tie(a.key, a.layer, a.kind, a.unit) < std::tie(b.key, b.layer, b.kind, b.unit);
}

Ledger::Ledger(const ModelConfig& config, const PruningPlan& plan, Floors floors,
               std::int64_t width_multiple)
    : sizes_(unit_parameters(config)),
      floors_(floors),
      by_group_(plan.attention_unit == AttentionUnit::kv_group),
      entry_(units_per_bundle(config, plan.attention_unit)),
      block_(width_multiple),
      group_size_(config.group_size()),
      kv_heads_(config.kv_heads),
      heads_(at(config.layers), config.heads),
      channels_(at(config.layers), config.channels),
      readers_(at(config.layers * config.kv_heads), config.group_size()),
      removed_{std::vector<std::int64_t>(at(config.layers), 0),
               std::vector<std::int64_t>(at(config.layers), 0)} {
  replay_attention(plan.attention_removed_at);
  replay_channels(plan.mlp_removed_at);
}

void Ledger::replay_attention(const UnitMatrix<std::int32_t>& removed_at) {
  // Of a bundle one head stands for all: that of the first group.
  const std::int64_t units = is_bundled() ? group_size_ : removed_at.units;
  for (std::int64_t layer = 0; layer < removed_at.layers; ++layer)
    for (std::int64_t unit = 0; unit < units; ++unit)
      if (removed_at.at(layer, unit) >= 0)
        remove({0, static_cast<std::int32_t>(layer), static_cast<std::int32_t>(unit),
                UnitKind::attention});
}

void Ledger::replay_channels(const UnitMatrix<std::int32_t>& removed_at) {
  for (std::int64_t layer = 0; layer < removed_at.layers; ++layer) {
    std::int64_t lost = 0;
    for (std::int64_t unit = 0; unit < removed_at.units; ++unit)
      if (removed_at.at(layer, unit) >= 0) ++lost;
    lose_channels(layer, lost);
  }
}

bool Ledger::may_fall(const Candidate& unit) const {
  if (unit.kind == UnitKind::mlp) return channels_[at(unit.layer)] - block_ >= floors_.channels;
  return heads_[at(unit.layer)] - (by_group_ ? group_size_ : entry_) >= floors_.heads;
}

std::size_t Ledger::group_of(const Candidate& head) const {
  return at(head.layer * kv_heads_ + (is_bundled() ? 0 : head.unit / group_size_));
}

std::int64_t Ledger::attention_cost(const Candidate& unit) const {
  if (by_group_) return sizes_.group(group_size_);
  return entry_ * (readers_[group_of(unit)] == 1 ? sizes_.group(1) : sizes_.query_head);
}

std::int64_t Ledger::cost(const Candidate& unit) const {
  return unit.kind == UnitKind::mlp ? block_ * sizes_.channel : attention_cost(unit);
}

void Ledger::lose_channels(std::int64_t layer, std::int64_t count) {
  removed_parameters_[place(UnitKind::mlp)] += count * sizes_.channel;
  removed_units_[place(UnitKind::mlp)] += count;
  removed_[place(UnitKind::mlp)][at(layer)] += count;
  channels_[at(layer)] -= count;
}

void Ledger::lose_attention(const Candidate& unit) {
  removed_parameters_[place(UnitKind::attention)] += attention_cost(unit);
  removed_units_[place(UnitKind::attention)] += entry_;
  removed_[place(UnitKind::attention)][at(unit.layer)] += entry_;
  heads_[at(unit.layer)] -= by_group_ ? group_size_ : entry_;
  if (!by_group_) --readers_[group_of(unit)];
}

void Ledger::remove(const Candidate& unit) {
  if (unit.kind == UnitKind::mlp)
    lose_channels(unit.layer, block_);
  else
    lose_attention(unit);
}

std::int64_t Ledger::units(UnitKind kind) const { return removed_units_[place(kind)]; }

std::int64_t Ledger::units(UnitKind kind, std::int32_t layer) const {
  return removed_[place(kind)][at(layer)];
}

std::int64_t Ledger::parameters(UnitKind kind) const { return removed_parameters_[place(kind)]; }

std::int64_t Ledger::parameters() const { return removed_parameters_[0] + removed_parameters_[1]; }

}  // namespace espalier
