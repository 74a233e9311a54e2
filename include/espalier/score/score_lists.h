#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "espalier/config/model_config.h"
#include "espalier/config/run_config.h"
#include "espalier/prune/score_table.h"

namespace espalier {

/// What a criterion says of the surviving units of one half layer, over all ranks.
struct RawBlock {
  std::int32_t layer = 0;
  UnitKind kind = UnitKind::attention;
  /// Numbers in the dense model, rising.
  std::vector<std::int32_t> units;
  /// Query heads behind each unit; empty for channels.
  std::vector<std::int64_t> heads;
  /// [row][unit]: a row per domain, or one for all data
  std::vector<std::vector<double>> values;
};

/// How values become scores.
struct Scoring {
  Normalization normalization = Normalization::gisp;
  AttentionUnit unit = AttentionUnit::query_head;
  Combine combine = Combine::pooled;
  /// Of the rows unless `pooled`; they need not add up to 1.
  std::vector<double> weights;
};

struct ScoreLists {
  ScoreList attention;
  ScoreList mlp;
};

/// The lists of a score table: `raw` are the values as they are, `score` what is ranked. Every row
/// of a block is normalised by itself (normalize.h), then the rows of all blocks are combined
/// (combine.h). Blocks of a kind come by rising layer. Pure. Throws Error(internal) when rows and
/// weights do not match.
ScoreLists make_lists(const ModelConfig& config, std::span<const RawBlock> blocks,
                      const Scoring& scoring);

}  // namespace espalier
