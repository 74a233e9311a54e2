#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "espalier/config/model_config.h"
#include "espalier/prune/plan.h"
#include "espalier/prune/widths.h"
#include "espalier/store/hdf5_file.h"

namespace espalier {

/// The mean over calibration tokens of every feature that o_proj and down_proj read, in the dense
/// model's numbers; NaN where none was taken. What a feature that falls gave on average stays, as a
/// bias of the projection, in exports that compensate for it (arXiv 2312.11983).
struct FeatureMeans {
  /// [layers, query heads x head_dim].
  UnitMatrix<double> attention;
  /// [layers, channels].
  UnitMatrix<double> mlp;

  const UnitMatrix<double>& of(UnitKind kind) const {
    return kind == UnitKind::attention ? attention : mlp;
  }
  UnitMatrix<double>& of(UnitKind kind) { return kind == UnitKind::attention ? attention : mlp; }
  /// SHA-256 over both, each as its two dimensions (int64) and its bytes, little-endian; 64 hex
  /// digits.
  std::string digest() const;
};

/// None taken.
FeatureMeans no_feature_means(const ModelConfig& config);

/// Keeps in `kept` what `pass` measured of the features whose units fell in plan.iteration. Throws
/// Error(internal) naming the unit where it measured none. Pure.
void keep_means_of_fallen(FeatureMeans& kept, const FeatureMeans& pass, const ModelConfig& config,
                          const PruningPlan& plan);

/// Units that `have` holds and `want` does not, ascending: query heads or channels, in the dense
/// model's numbers. Pure.
std::vector<std::int32_t> units_lost(const LayerWidths& have, const LayerWidths& want,
                                     UnitKind kind);

/// Throws Error(bad_content) naming a unit unless `means` has those of every feature that `have`
/// holds and `want` does not.
void require_means(const FeatureMeans& means, const ModelConfig& config, const ModelWidths& have,
                   const ModelWidths& want, const std::string& origin);

/// Beside a plan: the group `means` in the plan's group, and its attribute `means_digest`.
void write_feature_means(Hdf5Writer& file, const std::string& group, const FeatureMeans& means);
/// Nothing where there are none. Validates shapes, numbers (finite, or NaN) and the digest.
std::optional<FeatureMeans> read_feature_means(const Hdf5Reader& file, const std::string& group,
                                               const ModelConfig& config);

}  // namespace espalier
