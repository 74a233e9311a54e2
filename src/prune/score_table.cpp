#include "espalier/prune/score_table.h"

#include <cmath>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/core/text.h"

namespace espalier {
namespace {

std::string object(const std::string& group) { return group.empty() ? "/" : group; }

void check_lengths(const ScoreTable& scores, UnitKind kind, const ScoreList& list) {
  const std::size_t n = list.score.size();
  bool equal = list.layer.size() == n && list.unit.size() == n;
  equal = equal && list.raw.size() == scores.raw_rows.size();
  for (const std::vector<double>& row : list.raw) equal = equal && row.size() == n;
  ESPALIER_CHECK(equal, fmt::format("scores of {}: {} scores, {} layers, {} units, {} raw rows of "
                                    "{} names",
                                    name_of(kind), n, list.layer.size(), list.unit.size(),
                                    list.raw.size(), scores.raw_rows.size()));
}

void write_list(Hdf5Writer& file, const std::string& group, const ScoreList& list) {
  const auto n = static_cast<std::int64_t>(list.score.size());
  std::vector<double> raw;
  raw.reserve(list.raw.size() * list.score.size());
  for (const std::vector<double>& row : list.raw) raw.insert(raw.end(), row.begin(), row.end());
  file.write(group + "/layer", std::span<const std::int32_t>(list.layer), {n});
  file.write(group + "/unit", std::span<const std::int32_t>(list.unit), {n});
  file.write(group + "/score", std::span<const double>(list.score), {n});
  file.write(group + "/raw", std::span<const double>(raw),
             {static_cast<std::int64_t>(list.raw.size()), n});
}

[[noreturn]] void refuse(const std::string& where, std::string what, std::string why) {
  throw Error(ExitCode::bad_content, std::move(what), std::move(why),
              "write the scores again with `espalier score`", where);
}

void require_shape(const std::string& where, const std::vector<std::int64_t>& shape,
                   const std::vector<std::int64_t>& wanted) {
  if (shape != wanted)
    refuse(where, fmt::format("the shape is [{}]", fmt::join(shape, ", ")),
           fmt::format("[{}] is needed", fmt::join(wanted, ", ")));
}

std::vector<std::int32_t> read_numbers(const Hdf5Reader& file, const std::string& path,
                                       std::int64_t n) {
  require_shape(path, file.shape(path), {n});
  Array<std::int32_t> numbers = file.read_i32(path);
  for (const std::int32_t number : numbers.values)
    if (number < 0) refuse(path, fmt::format("the number {} is negative", number), "");
  return std::move(numbers.values);
}

/// Scores may be infinite: of a unit that never falls while another can.
void require_scores(const std::string& where, const std::vector<double>& values) {
  for (std::size_t i = 0; i < values.size(); ++i)
    if (std::isnan(values[i]) || values[i] == -std::numeric_limits<double>::infinity())
      refuse(where, fmt::format("entry {} is {}", i, values[i]),
             "a score is a number, or infinite where the unit never falls");
}

void require_finite(const std::string& where, const std::vector<double>& values) {
  for (std::size_t i = 0; i < values.size(); ++i)
    if (!std::isfinite(values[i]))
      refuse(where, fmt::format("entry {} is {}", i, values[i]), "losses are finite");
}

void require_ascending(const std::string& group, const ScoreList& list) {
  for (std::size_t i = 1; i < list.score.size(); ++i)
    if (std::pair(list.layer[i - 1], list.unit[i - 1]) >= std::pair(list.layer[i], list.unit[i]))
      refuse(group,
             fmt::format("entry {} is unit {} of layer {}, the one before unit {} of layer {}", i,
                         list.unit[i], list.layer[i], list.unit[i - 1], list.layer[i - 1]),
             "entries go by layer, then by unit, each unit once");
}

ScoreList read_list(const Hdf5Reader& file, const std::string& group, std::size_t raw_rows) {
  ScoreList list;
  Array<double> scores = file.read_f64(group + "/score");
  if (scores.shape.size() != 1)
    refuse(group + "/score", fmt::format("it has {}", counted(scores.shape.size(), "dimension")),
           "one is needed");
  const std::int64_t n = scores.shape[0];
  require_scores(group + "/score", scores.values);
  list.score = std::move(scores.values);
  list.layer = read_numbers(file, group + "/layer", n);
  list.unit = read_numbers(file, group + "/unit", n);
  require_ascending(group, list);
  const auto rows = static_cast<std::int64_t>(raw_rows);
  require_shape(group + "/raw", file.shape(group + "/raw"), {rows, n});
  const Array<double> raw = file.read_f64(group + "/raw");
  require_scores(group + "/raw", raw.values);
  for (std::int64_t row = 0; row < rows; ++row)
    list.raw.emplace_back(raw.values.begin() + row * n, raw.values.begin() + (row + 1) * n);
  return list;
}

}  // namespace

const char* name_of(UnitKind kind) { return kind == UnitKind::attention ? "attention" : "mlp"; }

void write_scores(Hdf5Writer& file, const std::string& group, const ScoreTable& scores) {
  check_lengths(scores, UnitKind::attention, scores.attention);
  check_lengths(scores, UnitKind::mlp, scores.mlp);
  write_list(file, group + "/attention", scores.attention);
  write_list(file, group + "/mlp", scores.mlp);
  const std::string top = object(group);
  file.attribute(top, "criterion", scores.criterion);
  file.attribute(top, "normalization", scores.normalization);
  file.attribute(top, "raw_rows", scores.raw_rows);
  file.attribute(top, "domains", scores.domains);
  file.attribute(top, "loss", scores.loss);
  file.attribute(top, "tokens", scores.tokens);
}

ScoreTable read_scores(const Hdf5Reader& file, const std::string& group) {
  const std::string top = object(group);
  ScoreTable scores;
  scores.criterion = file.attribute_string(top, "criterion");
  scores.normalization = file.attribute_string(top, "normalization");
  scores.raw_rows = file.attribute_strings(top, "raw_rows");
  scores.domains = file.attribute_strings(top, "domains");
  scores.loss = file.attribute_f64s(top, "loss");
  require_finite(top, scores.loss);
  if (scores.loss.size() != scores.domains.size())
    refuse(top, fmt::format("{} losses of {} domains", scores.loss.size(), scores.domains.size()),
           "each domain has one");
  scores.tokens = file.attribute_i64(top, "tokens");
  if (scores.tokens < 0)
    refuse(top, fmt::format("tokens is {}", scores.tokens), "it counts from 0");
  scores.attention = read_list(file, group + "/attention", scores.raw_rows.size());
  scores.mlp = read_list(file, group + "/mlp", scores.raw_rows.size());
  return scores;
}

}  // namespace espalier
