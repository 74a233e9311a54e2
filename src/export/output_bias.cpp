#include <algorithm>
#include <cmath>
#include <numeric>

#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/prune/unit_tensors.h"
#include "export_parts.h"

namespace espalier::export_detail {
namespace {

/// A vector that the source holds.
std::vector<double> stored_rows(const CheckpointReader& source, const std::string& name,
                                const IndexRuns& rows) {
  const DType dtype = source.find(name)->dtype;
  std::vector<std::byte> bytes(static_cast<std::size_t>(rows.size()) * size_of(dtype));
  source.read(name, rows, IndexRuns::all(1), bytes);
  std::vector<double> values(static_cast<std::size_t>(rows.size()));
  decode(dtype, bytes, values);
  return values;
}

}  // namespace

TensorJob output_bias_job(const CheckpointReader& source, const ModelConfig& dense,
                          const ModelWidths& held, const ModelWidths& kept, TensorSpec bias,
                          const TensorJob& weight, const FeatureMeans* means) {
  TensorJob job;
  MadeBias made;
  if (means != nullptr) {
    const auto l = static_cast<std::size_t>(bias.layer);
    const bool mlp = bias.role == TensorRole::down_bias;
    const LayerWidths &before = held.layers[l], &after = kept.layers[l];
    const UnitKind kind = mlp ? UnitKind::mlp : UnitKind::attention;
    const std::vector<std::int32_t>& units = mlp ? before.channels : before.query_heads;
    const std::vector<std::int32_t> gone = units_lost(before, after, kind);
    const std::int64_t width = mlp ? 1 : dense.head_dim;
    made.weight = weight.spec.name;
    made.columns = IndexRuns::of_units(positions(gone, units), width);
    for (const std::int32_t unit : gone)
      for (std::int64_t e = 0; e < width; ++e)
        made.means.push_back(means->of(kind).at(bias.layer, unit * width + e));
  }
  if (source.find(bias.name) != nullptr) made.stored = bias.name;
  job.shape = bias.shape;
  job.dtype = weight.dtype;
  job.slice = {IndexRuns::all(job.shape.front()), IndexRuns::all(1)};
  job.bytes = static_cast<std::uint64_t>(job.shape.front()) * size_of(job.dtype);
  job.spec = std::move(bias);
  job.made = std::move(made);
  return job;
}

TensorJob zero_bias_job(const TensorJob& weight) {
  TensorJob job;
  job.spec = weight.spec;
  job.spec.name.replace(job.spec.name.size() - std::string_view("weight").size(), std::string::npos,
                        "bias");
  job.shape = {weight.shape.front()};
  job.dtype = weight.dtype;
  job.slice = {IndexRuns::all(job.shape.front()), IndexRuns::all(1)};
  job.bytes = static_cast<std::uint64_t>(job.shape.front()) * size_of(job.dtype);
  job.made.emplace();
  return job;
}

void make_bias(const CheckpointReader& source, const TensorJob& job, const IndexRuns& rows,
               std::span<std::byte> out) {
  const MadeBias& made = *job.made;
  std::vector<double> sums(static_cast<std::size_t>(rows.size()), 0.0);
  if (!made.stored.empty()) sums = stored_rows(source, made.stored, rows);
  if (const std::size_t terms = made.means.size(); terms > 0) {
    const DType dtype = source.find(made.weight)->dtype;
    const std::size_t row_bytes = terms * size_of(dtype);
    std::vector<std::byte> bytes(sums.size() * row_bytes);
    source.read(made.weight, rows, made.columns, bytes);
    std::vector<double> row(terms);
    for (std::size_t r = 0; r < sums.size(); ++r) {
      decode(dtype, std::span(bytes).subspan(r * row_bytes, row_bytes), row);
      sums[r] += std::inner_product(row.begin(), row.end(), made.means.begin(), 0.0);
    }
  }
  encode(job.dtype, sums, out);
  decode(job.dtype, out, sums);
  if (!std::all_of(sums.begin(), sums.end(), [](double value) { return std::isfinite(value); }))
    throw Error(ExitCode::bad_content,
                fmt::format("{} would hold values that are not finite", job.spec.name),
                fmt::format("the compensation is too large for {}, or a weight is not finite",
                            safetensors_name(job.dtype)),
                "Leave the compensation out (--no-compensation), or look at the weights with "
                "'espalier verify MODEL --deep'.",
                source.directory().string());
}

}  // namespace espalier::export_detail

namespace espalier {

std::vector<double> exported_bias(const CheckpointReader& source, const ModelConfig& dense,
                                  const ModelWidths& held, const ModelWidths& kept,
                                  std::int64_t layer, UnitKind kind, const FeatureMeans& means) {
  ModelConfig written = dense;
  written.output_bias = true;
  export_detail::TensorJob weight;
  weight.spec = unit_reader(dense, kind, static_cast<int>(layer));
  // A layer that had lost everything before is not in the source, and has nothing to stand for.
  const TensorInfo* info = source.find(weight.spec.name);
  weight.dtype = info == nullptr ? dense.dtype : info->dtype;
  const TensorRole role = kind == UnitKind::mlp ? TensorRole::down_bias : TensorRole::o_bias;
  std::vector<double> values(static_cast<std::size_t>(dense.hidden));
  for (TensorSpec& spec : layer_tensors(written, static_cast<int>(layer))) {
    if (spec.role != role) continue;
    const export_detail::TensorJob job =
        export_detail::output_bias_job(source, dense, held, kept, std::move(spec), weight, &means);
    std::vector<std::byte> bytes(values.size() * size_of(job.dtype));
    export_detail::make_bias(source, job, IndexRuns::all(dense.hidden), bytes);
    decode(job.dtype, bytes, values);
  }
  return values;
}

}  // namespace espalier
