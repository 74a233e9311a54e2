#include "entries.h"

#include <algorithm>
#include <utility>

namespace espalier {

Entries::Entries(const ModelConfig& config, const PruneRules& rules, AttentionUnit unit,
                 EntryKey key, std::vector<Candidate> heads, std::vector<Candidate> channels) {
  ranked_ = std::move(heads);
  if (unit == AttentionUnit::equal_per_group) {
    bundles_.emplace(config, std::move(ranked_));
    ranked_ = bundles_->candidates(key);
  }
  if (rules.width_multiple > 1) {
    blocks_.emplace(rules.width_multiple, std::move(channels));
    channels = blocks_->candidates(key);
  }
  ranked_.insert(ranked_.end(), channels.begin(), channels.end());
  std::sort(ranked_.begin(), ranked_.end(), falls_before);
}

void Entries::append_units(const Candidate& entry, std::vector<Candidate>& units) const {
  if (entry.kind == UnitKind::mlp && blocks_) {
    const auto channels = blocks_->channels_of(entry);
    units.insert(units.end(), channels.begin(), channels.end());
  } else if (entry.kind == UnitKind::attention && bundles_) {
    const std::vector<Candidate> heads = bundles_->heads_of(entry);
    units.insert(units.end(), heads.begin(), heads.end());
  } else {
    units.push_back(entry);
  }
}

std::vector<Candidate> Entries::units_of(const std::vector<Candidate>& entries) const {
  std::vector<Candidate> units;
  units.reserve(entries.size());
  for (const Candidate& entry : entries) append_units(entry, units);
  return units;
}

}  // namespace espalier
