#include "espalier/prune/feature_means.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <span>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "espalier/core/error.h"
#include "espalier/core/hash.h"

namespace espalier {
namespace {

constexpr UnitKind kKinds[] = {UnitKind::attention, UnitKind::mlp};

UnitMatrix<double> none(std::int64_t layers, std::int64_t features) {
  return {layers, features,
          std::vector<double>(static_cast<std::size_t>(layers * features),
                              std::numeric_limits<double>::quiet_NaN())};
}

[[noreturn]] void refuse(const std::string& where, std::string what, std::string why) {
  throw Error(ExitCode::bad_content, std::move(what), std::move(why),
              "Take the file from another commit or export of the run.", where);
}

std::string object(const std::string& group) { return group.empty() ? "/" : group; }

std::string path_of(const std::string& group, UnitKind kind) {
  return fmt::format("{}/means/{}", group, name_of(kind));
}

}  // namespace

std::string FeatureMeans::digest() const {
  Sha256 hash;
  for (const UnitKind kind : kKinds) {
    hash.update_i64(of(kind).layers);
    hash.update_i64(of(kind).units);
    hash.update(std::as_bytes(std::span(of(kind).values)));
  }
  return hash.hex();
}

FeatureMeans no_feature_means(const ModelConfig& config) {
  return {none(config.layers, config.heads * config.head_dim),
          none(config.layers, config.channels)};
}

void keep_means_of_fallen(FeatureMeans& kept, const FeatureMeans& pass, const ModelConfig& config,
                          const PruningPlan& plan) {
  for (const UnitKind kind : kKinds) {
    const UnitMatrix<std::int32_t>& removed_at =
        kind == UnitKind::attention ? plan.attention_removed_at : plan.mlp_removed_at;
    const UnitMatrix<double>& from = pass.of(kind);
    UnitMatrix<double>& to = kept.of(kind);
    // A KV group owns the features of all its query heads, which are neighbours.
    const std::int64_t per_unit = to.units / removed_at.units;
    for (std::int64_t layer = 0; layer < config.layers; ++layer)
      for (std::int64_t unit = 0; unit < removed_at.units; ++unit) {
        if (removed_at.at(layer, unit) != plan.iteration) continue;
        for (std::int64_t f = unit * per_unit; f < (unit + 1) * per_unit; ++f) {
          ESPALIER_CHECK(
              !std::isnan(from.at(layer, f)),
              fmt::format("layer {}: {} unit {} fell without a mean", layer, name_of(kind), unit));
          to.at(layer, f) = from.at(layer, f);
        }
      }
  }
}

std::vector<std::int32_t> units_lost(const LayerWidths& have, const LayerWidths& want,
                                     UnitKind kind) {
  const auto& before = kind == UnitKind::mlp ? have.channels : have.query_heads;
  const auto& after = kind == UnitKind::mlp ? want.channels : want.query_heads;
  std::vector<std::int32_t> units;
  std::set_difference(before.begin(), before.end(), after.begin(), after.end(),
                      std::back_inserter(units));
  return units;
}

void require_means(const FeatureMeans& means, const ModelConfig& config, const ModelWidths& have,
                   const ModelWidths& want, const std::string& origin) {
  for (std::size_t l = 0; l < have.layers.size(); ++l)
    for (const UnitKind kind : kKinds)
      for (const std::int32_t unit : units_lost(have.layers[l], want.layers[l], kind)) {
        const std::int64_t width = kind == UnitKind::mlp ? 1 : config.head_dim;
        for (std::int64_t f = unit * width; f < (unit + 1) * width; ++f)
          if (std::isnan(means.of(kind).at(static_cast<std::int64_t>(l), f)))
            throw Error(ExitCode::bad_content,
                        fmt::format("no mean is known of {} {} of layer {}, which falls",
                                    kind == UnitKind::mlp ? "channel" : "query head", unit, l),
                        "it fell in a run that did not compensate",
                        "Leave the compensation out (--no-compensation), or name the model that "
                        "the last run pruned.",
                        origin);
      }
}

void write_feature_means(Hdf5Writer& file, const std::string& group, const FeatureMeans& means) {
  for (const UnitKind kind : kKinds) {
    const UnitMatrix<double>& matrix = means.of(kind);
    file.write(path_of(group, kind), std::span<const double>(matrix.values),
               {matrix.layers, matrix.units});
  }
  file.attribute(object(group), "means_digest", means.digest());
}

std::optional<FeatureMeans> read_feature_means(const Hdf5Reader& file, const std::string& group,
                                               const ModelConfig& config) {
  if (!file.has(group + "/means")) return std::nullopt;
  FeatureMeans means = no_feature_means(config);
  for (const UnitKind kind : kKinds) {
    const std::string path = path_of(group, kind);
    UnitMatrix<double>& matrix = means.of(kind);
    const std::vector<std::int64_t> shape = file.shape(path);
    if (shape != std::vector<std::int64_t>{matrix.layers, matrix.units})
      refuse(path, fmt::format("the shape is [{}]", fmt::join(shape, ", ")),
             fmt::format("the model has [{}, {}]", matrix.layers, matrix.units));
    matrix.values = file.read_f64(path).values;
    for (double& value : matrix.values) {
      if (std::isinf(value)) refuse(path, "a mean is infinite", "it is a number, or NaN for none");
      if (std::isnan(value)) value = std::numeric_limits<double>::quiet_NaN();
    }
  }
  const std::string top = object(group);
  const std::string digest = file.attribute_string(top, "means_digest");
  if (digest != means.digest())
    refuse(top, fmt::format("the digest of the means is {}", digest),
           fmt::format("the content's digest is {}", means.digest()));
  return means;
}

}  // namespace espalier
