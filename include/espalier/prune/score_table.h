#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "espalier/store/hdf5_file.h"

namespace espalier {

enum class UnitKind { attention, mlp };
const char* name_of(UnitKind kind);

/// One number per surviving unit of one kind, ordered by (layer, unit).
struct ScoreList {
  std::vector<std::int32_t> layer;
  std::vector<std::int32_t> unit;  ///< number in the dense model
  std::vector<double> score;       ///< normalised and combined: what is ranked; small falls first
  std::vector<std::vector<double>>
      raw;  ///< per row of raw_rows: the criterion's value before normalisation
};

/// Scores of one pass; the same on every rank.
struct ScoreTable {
  ScoreList attention;
  ScoreList mlp;
  std::string criterion;
  std::string normalization;
  std::vector<std::string> raw_rows;  ///< the domains, or {"pooled"}
  std::vector<std::string> domains;
  std::vector<double> loss;  ///< per domain; NaN-free
  std::int64_t tokens = 0;   ///< counted loss tokens of the pass
};

/// Writes the groups /attention and /mlp and the attributes of `group` ("" = the root) as
/// scores.h5.
void write_scores(Hdf5Writer& file, const std::string& group, const ScoreTable& scores);
ScoreTable read_scores(const Hdf5Reader& file, const std::string& group);

}  // namespace espalier
