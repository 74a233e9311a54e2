#include "scored_units.h"

#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/score/unit_sums.h"

namespace espalier {

template <class F>
void ScoredUnits::for_each_shard(std::int64_t layer, F&& f) const {
  for (const ShardWidths& shard : model_.shards())
    f(shard, shard.widths.layers[static_cast<std::size_t>(layer)]);
}

bool ScoredUnits::is_scored(std::int64_t layer, UnitKind kind) const {
  return espalier::is_scored(scored_, layer, kind);
}

std::vector<std::int32_t> ScoredUnits::numbers(std::int64_t layer, UnitKind kind) const {
  std::vector<std::int32_t> all;
  for_each_shard(layer, [&](const ShardWidths&, const LayerWidths& widths) {
    const std::vector<std::int32_t>& units = unit_numbers(widths, unit_, kind);
    all.insert(all.end(), units.begin(), units.end());
  });
  return all;
}

std::vector<std::int64_t> ScoredUnits::heads_per_unit(std::int64_t layer) const {
  std::vector<std::int64_t> heads;
  for (const ShardWidths& shard : model_.shards()) {
    const LayerWidths& widths = shard.widths.layers[static_cast<std::size_t>(layer)];
    if (unit_ != AttentionUnit::kv_group) {
      heads.insert(heads.end(), widths.query_heads.size(), 1);
    } else {
      const std::vector<std::int64_t> groups = widths.groups(model_.config());
      heads.insert(heads.end(), groups.begin(), groups.end());
    }
  }
  return heads;
}

std::string ScoredUnits::description() const {
  std::string text = unit_ == AttentionUnit::kv_group ? "KV groups" : "query heads";
  for (std::int64_t l = 0; l < model_.layers(); ++l)
    for (const UnitKind kind : {UnitKind::attention, UnitKind::mlp}) {
      text += is_scored(l, kind) ? "|+" : "|-";
      for (const std::int32_t unit : numbers(l, kind)) text += fmt::format(" {}", unit);
    }
  return text;
}

std::vector<LayerValues> ScoredUnits::gathered(const std::vector<UnitSums>& rows, UnitKind kind,
                                               const NumbersOf& numbers,
                                               Communicator& tensor) const {
  std::vector<double> mine;
  for (const UnitSums& sums : rows)
    for (const auto& layer : sums) {
      const std::vector<double>& values = layer[static_cast<std::size_t>(kind)];
      mine.insert(mine.end(), values.begin(), values.end());
    }
  const std::vector<double> all = tensor.gather(std::span<const double>(mine));
  std::vector<LayerValues> result(rows.size(),
                                  LayerValues(static_cast<std::size_t>(model_.layers())));
  auto next = all.begin();
  for (const ShardWidths& shard : model_.shards())
    for (LayerValues& row : result)
      for (std::int64_t l = 0; l < model_.layers(); ++l) {
        if (!is_scored(l, kind)) continue;
        const auto count = static_cast<std::ptrdiff_t>(
            numbers(shard.widths.layers[static_cast<std::size_t>(l)], kind));
        std::vector<double>& values = row[static_cast<std::size_t>(l)];
        values.insert(values.end(), next, next + count);
        next += count;
      }
  ESPALIER_CHECK(next == all.end(), "gathered scores do not match the shards' units");
  return result;
}

std::vector<std::vector<double>> ScoredUnits::flattened(const std::vector<UnitSums>& rows,
                                                        UnitKind kind, const NumbersOf& numbers,
                                                        Communicator& tensor) const {
  std::vector<std::vector<double>> flat;
  for (const LayerValues& layers : gathered(rows, kind, numbers, tensor)) {
    flat.emplace_back();
    for (const std::vector<double>& values : layers)
      flat.back().insert(flat.back().end(), values.begin(), values.end());
  }
  return flat;
}

UnitSums ScoredUnits::own_part(const std::vector<double>& attention, const std::vector<double>& mlp,
                               const NumbersOf& numbers) const {
  UnitSums mine(static_cast<std::size_t>(model_.layers()));
  for (const UnitKind kind : {UnitKind::attention, UnitKind::mlp}) {
    const std::vector<double>& all = kind == UnitKind::attention ? attention : mlp;
    std::int64_t needed = 0;
    for (std::int64_t l = 0; l < model_.layers(); ++l)
      if (is_scored(l, kind))
        for_each_shard(l, [&](const ShardWidths&, const LayerWidths& widths) {
          needed += numbers(widths, kind);
        });
    if (needed != static_cast<std::int64_t>(all.size()))
      throw Error(
          ExitCode::bad_content,
          fmt::format("{} sums of {} units, {} are needed", all.size(), name_of(kind), needed),
          "the paused pass is of another plan", "Remove its directory in ckpt/.");
    auto next = all.begin();
    for (std::int64_t l = 0; l < model_.layers(); ++l) {
      if (!is_scored(l, kind)) continue;
      for_each_shard(l, [&](const ShardWidths& shard, const LayerWidths& widths) {
        const auto end = next + static_cast<std::ptrdiff_t>(numbers(widths, kind));
        if (&shard == &model_.shard())
          mine[static_cast<std::size_t>(l)][static_cast<std::size_t>(kind)].assign(next, end);
        next = end;
      });
    }
  }
  return mine;
}

}  // namespace espalier
