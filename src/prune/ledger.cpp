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

Ledger::Ledger(const ModelConfig& config, const PruningPlan& plan, Floors floors)
    : sizes_(unit_parameters(config)),
      floors_(floors),
      by_group_(plan.attention_unit == AttentionUnit::kv_group),
      group_size_(config.group_size()),
      kv_heads_(config.kv_heads),
      heads_(at(config.layers), config.heads),
      channels_(at(config.layers), config.channels),
      readers_(at(config.layers * config.kv_heads), config.group_size()),
      removed_{std::vector<std::int64_t>(at(config.layers), 0),
               std::vector<std::int64_t>(at(config.layers), 0)} {
  const auto replay = [this](UnitKind kind, const UnitMatrix<std::int32_t>& removed_at) {
    for (std::int64_t layer = 0; layer < removed_at.layers; ++layer)
      for (std::int64_t unit = 0; unit < removed_at.units; ++unit)
        if (removed_at.at(layer, unit) >= 0)
          remove({0, static_cast<std::int32_t>(layer), static_cast<std::int32_t>(unit), kind});
  };
  replay(UnitKind::attention, plan.attention_removed_at);
  replay(UnitKind::mlp, plan.mlp_removed_at);
}

bool Ledger::may_fall(const Candidate& unit) const {
  if (unit.kind == UnitKind::mlp) return channels_[at(unit.layer)] - 1 >= floors_.channels;
  return heads_[at(unit.layer)] - (by_group_ ? group_size_ : 1) >= floors_.heads;
}

bool Ledger::is_last_reader(const Candidate& head) const {
  return readers_[at(head.layer * kv_heads_ + head.unit / group_size_)] == 1;
}

std::int64_t& Ledger::readers(const Candidate& head) {
  return readers_[at(head.layer * kv_heads_ + head.unit / group_size_)];
}

std::int64_t Ledger::cost(const Candidate& unit) const {
  if (unit.kind == UnitKind::mlp) return sizes_.channel;
  if (by_group_) return sizes_.group(group_size_);
  return is_last_reader(unit) ? sizes_.group(1) : sizes_.query_head;
}

void Ledger::remove(const Candidate& unit) {
  removed_parameters_[place(unit.kind)] += cost(unit);
  ++removed_units_[place(unit.kind)];
  ++removed_[place(unit.kind)][at(unit.layer)];
  if (unit.kind == UnitKind::mlp) {
    --channels_[at(unit.layer)];
  } else if (by_group_) {
    heads_[at(unit.layer)] -= group_size_;
  } else {
    --heads_[at(unit.layer)];
    --readers(unit);
  }
}

std::int64_t Ledger::units(UnitKind kind) const { return removed_units_[place(kind)]; }

std::int64_t Ledger::units(UnitKind kind, std::int32_t layer) const {
  return removed_[place(kind)][at(layer)];
}

std::int64_t Ledger::parameters(UnitKind kind) const { return removed_parameters_[place(kind)]; }

std::int64_t Ledger::parameters() const { return removed_parameters_[0] + removed_parameters_[1]; }

}  // namespace espalier
