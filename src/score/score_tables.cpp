#include "score_tables.h"

#include <utility>

#include "espalier/core/error.h"
#include "espalier/model/gate.h"

namespace espalier {
namespace {

constexpr UnitKind kHalves[] = {UnitKind::attention, UnitKind::mlp};

}  // namespace

ScoreTables::ScoreTables(const CausalLM& model, const Calibration& data,
                         const ScoreRequest& request, const ScoredUnits& units,
                         const Statistics& statistics, Communicator& tensor)
    : model_(model),
      data_(data),
      request_(request),
      units_(units),
      statistics_(statistics),
      tensor_(tensor) {}

ScoreTable ScoreTables::combined(const std::vector<UnitSums>& rows, bool row_per_domain,
                                 const std::vector<double>& loss, std::int64_t tokens) const {
  ScoreTable table = described(loss, tokens);
  Scoring scoring{request_.importance.normalization, request_.unit, Combine::pooled, {}};
  if (row_per_domain) {
    table.raw_rows = table.domains;
    scoring.combine = request_.combine;
  } else {
    table.raw_rows.emplace_back("pooled");
  }
  for (const DomainDraw& domain : data_.domains()) scoring.weights.push_back(domain.weight);
  fill(table, rows, scoring);
  return table;
}

std::vector<ScoreTable> ScoreTables::of_domains(const std::vector<UnitSums>& rows,
                                                const std::vector<double>& loss,
                                                std::int64_t tokens) const {
  std::vector<ScoreTable> tables;
  for (const UnitSums& values : rows) {
    ScoreTable& table = tables.emplace_back(described(loss, tokens));
    table.raw_rows = {table.domains[tables.size() - 1]};
    fill(table, {values}, {request_.importance.normalization, request_.unit, Combine::pooled, {}});
  }
  return tables;
}

ScoreTable ScoreTables::described(const std::vector<double>& loss, std::int64_t tokens) const {
  ScoreTable table;
  table.criterion = name_of(request_.importance.criterion);
  table.normalization = name_of(request_.importance.normalization);
  for (const DomainDraw& domain : data_.domains()) table.domains.push_back(domain.name);
  table.loss = loss;
  table.tokens = tokens;
  return table;
}

void ScoreTables::fill(ScoreTable& table, const std::vector<UnitSums>& rows,
                       const Scoring& scoring) const {
  ScoreLists lists = make_lists(model_.config(), raw_blocks(rows), scoring);
  table.attention = std::move(lists.attention);
  table.mlp = std::move(lists.mlp);
}

std::vector<RawBlock> ScoreTables::raw_blocks(const std::vector<UnitSums>& rows) const {
  const NumbersOf numbers = [this](const LayerWidths& widths, UnitKind half) {
    return statistics_.values_of(widths, half);
  };
  std::vector<RawBlock> blocks;
  for (const UnitKind kind : kHalves) {
    const std::vector<LayerValues> values = units_.gathered(rows, kind, numbers, tensor_);
    for (std::int64_t l = 0; l < model_.layers(); ++l) {
      if (!units_.is_scored(l, kind)) continue;
      RawBlock& block = blocks.emplace_back(
          RawBlock{static_cast<std::int32_t>(l), kind, units_.numbers(l, kind), {}, {}});
      if (kind == UnitKind::attention) block.heads = units_.heads_per_unit(l);
      for (const LayerValues& row : values)
        block.values.push_back(
            statistics_.of_units(kind, row[static_cast<std::size_t>(l)], block.heads));
    }
  }
  return blocks;
}

FeatureMeans ScoreTables::means(const UnitSums& at_gates) const {
  const ModelConfig& config = model_.config();
  const NumbersOf features = [&](const LayerWidths& widths, UnitKind half) {
    return gate_entries(widths, half, config);
  };
  FeatureMeans means = no_feature_means(config);
  for (const UnitKind kind : kHalves) {
    const std::vector<LayerValues> rows = units_.gathered({at_gates}, kind, features, tensor_);
    const std::int64_t width = kind == UnitKind::mlp ? 1 : config.head_dim;
    for (std::int64_t l = 0; l < model_.layers(); ++l) {
      const std::vector<double>& values = rows.front()[static_cast<std::size_t>(l)];
      auto next = values.begin();
      if (units_.is_scored(l, kind))
        for (const ShardWidths& shard : model_.shards()) {
          const LayerWidths& held = shard.widths.layers[static_cast<std::size_t>(l)];
          for (const std::int32_t unit : kind == UnitKind::mlp ? held.channels : held.query_heads)
            for (std::int64_t e = 0; e < width; ++e)
              means.of(kind).at(l, unit * width + e) = *next++;
        }
      ESPALIER_CHECK(next == values.end(), "gathered means do not match the shards' features");
    }
  }
  return means;
}

}  // namespace espalier
