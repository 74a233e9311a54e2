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
  /// Number in the dense model.
  std::vector<std::int32_t> unit;
  /// Normalised and combined: what is ranked; small falls first. Infinite: never, while another of
  /// the half can.
  std::vector<double> score;
  /// Per row of raw_rows: the criterion's value before normalisation.
  std::vector<std::vector<double>> raw;
};

/// Scores of one pass; the same on every rank.
struct ScoreTable {
  ScoreList attention;
  ScoreList mlp;
  std::string criterion;
  std::string normalization;
  /// The domains, or {"pooled"}.
  std::vector<std::string> raw_rows;
  std::vector<std::string> domains;
  /// Per domain; NaN-free.
  std::vector<double> loss;
  /// Counted loss tokens of the pass.
  std::int64_t tokens = 0;
};

/// Writes the groups /attention and /mlp and the attributes of `group` ("" = the root) as
/// scores.h5.
void write_scores(Hdf5Writer& file, const std::string& group, const ScoreTable& scores);
ScoreTable read_scores(const Hdf5Reader& file, const std::string& group);

}  // namespace espalier
