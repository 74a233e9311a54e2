#include <numeric>

#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/core/text.h"
#include "espalier/store/files.h"
#include "espalier/store/hdf5_file.h"
#include "export_parts.h"

namespace espalier {
namespace {

using export_detail::kPlanFile;
using export_detail::list_text;

std::vector<std::int32_t> first_units(std::int64_t count) {
  std::vector<std::int32_t> units(static_cast<std::size_t>(count));
  std::iota(units.begin(), units.end(), 0);
  return units;
}

/// Any units that give these groups compute the same: the first of each kept KV head.
LayerWidths widths_by_place(const ModelConfig& config, const ExportedLayer& layer) {
  LayerWidths widths;
  for (std::size_t k = 0; k < layer.groups.size(); ++k) {
    const auto kv_head = static_cast<std::int64_t>(k);
    widths.kv_heads.push_back(static_cast<std::int32_t>(kv_head));
    for (std::int64_t q = 0; q < layer.groups[k]; ++q)
      widths.query_heads.push_back(static_cast<std::int32_t>(kv_head * config.group_size() + q));
  }
  widths.channels = first_units(layer.channels);
  return widths;
}

void require_agreement(const std::filesystem::path& directory, const ModelConfig& config,
                       const ModelWidths& widths) {
  for (std::size_t i = 0; i < widths.layers.size(); ++i) {
    const ExportedLayer& stated = (*config.exported)[i];
    const std::vector<std::int64_t> groups = widths.layers[i].groups(config);
    const auto channels = static_cast<std::int64_t>(widths.layers[i].channels.size());
    if (stated.groups == groups && stated.channels == channels) continue;
    throw Error(ExitCode::bad_content,
                fmt::format("layer {}: config.json says groups {} and {}, {} says groups {} and {}",
                            i, list_text(stated.groups), counted(stated.channels, "channel"),
                            kPlanFile, list_text(groups), counted(channels, "channel")),
                "an exact export states its widths twice and they must agree",
                "Export again from the run.", directory.string());
  }
}

}  // namespace

ExportedWidths read_exported_widths(const std::filesystem::path& directory,
                                    const ModelConfig& config) {
  ESPALIER_CHECK(config.exported.has_value(),
                 "widths asked of a directory that is no exact export");
  const std::filesystem::path file = directory / kPlanFile;
  ExportedWidths result;
  if (!path_exists(file)) {
    result.notes.push_back(fmt::format(
        "there is no {} beside config.json (another tool saved the export): units are numbered by "
        "their places in it, not as in the unpruned model; copy the file from the export to keep "
        "the numbers",
        kPlanFile));
    for (const ExportedLayer& layer : *config.exported)
      result.widths.layers.push_back(widths_by_place(config, layer));
    return result;
  }
  const Hdf5Reader content = Hdf5Reader::open(file);
  result.plan = read_plan(content, "", config);
  result.means = read_feature_means(content, "", config);
  result.widths = widths_of(config, *result.plan);
  require_agreement(directory, config, result.widths);
  return result;
}

ModelWidths widths_of_source(const std::filesystem::path& directory, const ModelConfig& config) {
  return config.exported ? read_exported_widths(directory, config).widths : dense_widths(config);
}

std::vector<std::byte> plan_image_of(const PruningPlan& plan,
                                     const std::optional<FeatureMeans>& means) {
  Hdf5Writer file;
  write_plan(file, "", plan);
  if (means) write_feature_means(file, "", *means);
  return file.finish();
}

}  // namespace espalier
