#include "espalier/score/unit_sums.h"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/model/tensor_ops.h"
#include "espalier/prune/unit_tensors.h"

namespace espalier {
namespace {

/// A sum in float64 first takes a copy of all its numbers in float64, so large tensors are summed
/// some lines at a time: as many as stay in a cache. Half the time of all at once.
constexpr std::int64_t kLineNumbers = std::int64_t{1} << 18;  // 2 MiB

/// Per line of a weight of this shape, the sum of its values in float64.
at::Tensor line_sums(at::IntArrayRef shape, std::int64_t axis,
                     const std::function<at::Tensor(const Lines&)>& values_of) {
  const std::int64_t lines = shape[axis];
  const std::int64_t at_once =
      std::max<std::int64_t>(1, kLineNumbers / std::max<std::int64_t>(shape[1 - axis], 1));
  std::vector<at::Tensor> sums;
  for (std::int64_t first = 0; first < lines || sums.empty(); first += at_once) {
    const Lines some{axis, {first, std::min(lines, first + at_once)}};
    sums.push_back(values_of(some).sum(1 - axis, /*keepdim=*/false, at::kDouble));
  }
  return sums.size() == 1 ? sums.front() : at::cat(sums);
}

Problem non_finite(const TensorSpec& spec) {
  return {ExitCode::bad_content,
          fmt::format("a score is not finite: tensor '{}'", spec.name),
          fmt::format("layer {}: sums over its weights and their gradients are NaN or infinite",
                      spec.layer),
          "Use a wider model.dtype or importance.accumulate, or check the calibration data.",
          {}};
}

}  // namespace

bool is_scored(const ScoredHalves& scored, std::int64_t layer, UnitKind half) {
  return scored[static_cast<std::size_t>(layer)][static_cast<std::size_t>(half)];
}

const std::vector<std::int32_t>& unit_numbers(const LayerWidths& widths, AttentionUnit unit,
                                              UnitKind half) {
  if (half == UnitKind::mlp) return widths.channels;
  return unit == AttentionUnit::kv_group ? widths.kv_heads : widths.query_heads;
}

std::int64_t unit_count(const CausalLM& model, AttentionUnit unit, std::int64_t layer,
                        UnitKind half) {
  return static_cast<std::int64_t>(unit_numbers(model.widths(layer), unit, half).size());
}

at::Tensor heads_to_units(const CausalLM& model, AttentionUnit unit, std::int64_t layer,
                          const at::Tensor& heads) {
  if (unit != AttentionUnit::kv_group) return heads;
  const LayerWidths& widths = model.widths(layer);
  // Heads are in order of their groups. A sum per group has one order; index_add_ on a device has
  // none.
  const std::vector<std::int64_t> groups = widths.groups(model.config());
  std::vector<at::Tensor> sums;
  for (const at::Tensor& group : heads.split_with_sizes(groups, -1)) sums.push_back(group.sum(-1));
  return at::stack(sums, -1);
}

at::Tensor Lines::of(const at::Tensor& weight) const {
  return weight.narrow(axis, range.begin, range.size());
}

std::int64_t input_sums_rows(std::int64_t entries) {
  constexpr std::int64_t kNumbers = std::int64_t{1} << 22;  // 32 MiB
  return std::max<std::int64_t>(1, kNumbers / std::max<std::int64_t>(entries, 1));
}

std::int64_t input_sums_bytes(std::int64_t rows, std::int64_t entries) {
  // The rows and their squares.
  return 2 * std::min(rows, input_sums_rows(entries)) * entries *
         static_cast<std::int64_t>(sizeof(double));
}

std::vector<double> column_sums(const CausalLM& model, std::int64_t layer, UnitKind half,
                                ColumnNorm norm) {
  const LayerWeights& weights = model.layer(layer);
  const at::Tensor& reader = half == UnitKind::mlp ? weights.down_DF : weights.o_DHE;
  const at::ScalarType wide = model.options().dtype == at::kDouble ? at::kDouble : at::kFloat;
  return to_doubles(line_sums(reader.sizes(), 1, [&](const Lines& columns) {
    const at::Tensor values = columns.of(reader).to(wide);
    return norm == ColumnNorm::absolute ? values.abs() : values.square();
  }));
}

std::vector<double> entries_to_units(const CausalLM& model, AttentionUnit unit, std::int64_t layer,
                                     UnitKind half, const std::vector<double>& entries) {
  if (half == UnitKind::mlp) return entries;
  const at::Tensor heads =
      at::tensor(entries, at::kDouble).view({-1, model.config().head_dim}).sum(1);
  return to_doubles(heads_to_units(model, unit, layer, heads));
}

std::vector<double> sum_over_unit_tensors(const CausalLM& model, AttentionUnit unit,
                                          std::int64_t layer, UnitKind half,
                                          const ValuesOfWeight& values_of, Problems& problems) {
  std::vector<double> total(static_cast<std::size_t>(unit_count(model, unit, layer, half)), 0.0);
  for (const TensorSpec& spec :
       unit_matrices(model.config(), unit, half, static_cast<int>(layer))) {
    const std::size_t axis = unit_axis(spec);
    at::Tensor slices =
        line_sums(model.layer(layer).by_role(spec.role).sizes(), static_cast<std::int64_t>(axis),
                  [&](const Lines& lines) { return values_of(spec.role, lines); });
    const std::int64_t width = unit_width(spec.axes[axis], model.config());
    if (width > 1) slices = slices.view({-1, width}).sum(1);  // [heads]
    if (spec.axes[axis] == AxisKind::query) slices = heads_to_units(model, unit, layer, slices);
    const std::vector<double> values = to_doubles(slices);
    ESPALIER_CHECK(values.size() == total.size(), "a tensor has not one slice per unit");
    for (std::size_t u = 0; u < values.size(); ++u) total[u] += values[u];
    if (!std::all_of(values.begin(), values.end(), [](double v) { return std::isfinite(v); }))
      problems.add(non_finite(spec));
  }
  return total;
}

void reduce_unit_sums(std::span<UnitSums> rows, Communicator& data) {
  if (data.size() == 1) return;
  std::vector<double> flat;
  for (const UnitSums& sums : rows)
    for (const auto& layer : sums)
      for (const auto& values : layer) flat.insert(flat.end(), values.begin(), values.end());
  data.all_reduce_sum(std::span<double>(flat));
  auto next = flat.begin();
  for (UnitSums& sums : rows)
    for (auto& layer : sums)
      for (auto& values : layer) {
        std::copy_n(next, values.size(), values.begin());
        next += static_cast<std::ptrdiff_t>(values.size());
      }
}

void require_finite_sums(const CausalLM& model, AttentionUnit unit, const UnitSums& sums,
                         const std::string& where) {
  for (std::size_t l = 0; l < sums.size(); ++l)
    for (const UnitKind half : {UnitKind::attention, UnitKind::mlp}) {
      const std::vector<double>& values = sums[l][static_cast<std::size_t>(half)];
      const auto bad =
          std::find_if_not(values.begin(), values.end(), [](double v) { return std::isfinite(v); });
      if (bad == values.end()) continue;
      const auto layer = static_cast<std::int64_t>(l);
      const auto place = static_cast<std::size_t>(bad - values.begin());
      const std::vector<std::int32_t>& units = unit_numbers(model.widths(layer), unit, half);
      const std::string whose = values.size() == units.size() ? fmt::format("unit {}", units[place])
                                                              : fmt::format("entry {}", place);
      throw Error(ExitCode::bad_content,
                  fmt::format("a score is not finite: {} of {} of the {} of layer {}", *bad, whose,
                              half == UnitKind::attention ? "attention" : "MLP", l),
                  fmt::format("its values enter tensor '{}'",
                              unit_reader(model.config(), half, static_cast<int>(l)).name),
                  "Use a wider model.dtype, or check the weights of that layer and the calibration "
                  "data.",
                  where);
    }
}

}  // namespace espalier
