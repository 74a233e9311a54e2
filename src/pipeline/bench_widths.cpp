#include "bench_widths.h"

#include <algorithm>
#include <numeric>

#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/core/json.h"
#include "espalier/core/text.h"
#include "espalier/prune/plan.h"
#include "espalier/store/files.h"

namespace espalier {
namespace {

constexpr std::size_t kMostListBytes = std::size_t{1} << 20;
constexpr std::size_t kMostPlanBytes = std::size_t{1} << 30;

void keep_first(LayerWidths& layer, std::int64_t channels) {
  layer.channels.resize(static_cast<std::size_t>(channels));
  std::iota(layer.channels.begin(), layer.channels.end(), 0);
}

ModelWidths widths_of_list(const std::filesystem::path& path, const ModelConfig& model) {
  const nlohmann::ordered_json list = parse_json(read_file(path, kMostListBytes), path.string());
  const auto refuse = [&](const std::string& why) {
    throw Error(ExitCode::bad_content, "this is no list of widths", why,
                fmt::format("Write the channels of each of the {} as JSON: [2001, 1987, ...], or "
                            "name a plan.h5.",
                            counted(model.layers, "layer")),
                path.string());
  };
  if (!list.is_array() || static_cast<std::int64_t>(list.size()) != model.layers)
    refuse(list.is_array() ? fmt::format("it has {}", counted(list.size(), "number"))
                           : "it is no JSON list");
  ModelWidths widths = dense_widths(model);
  for (std::size_t layer = 0; layer < list.size(); ++layer) {
    const nlohmann::ordered_json& channels = list[layer];
    if (!channels.is_number_unsigned() ||
        channels.get<std::uint64_t>() > static_cast<std::uint64_t>(model.channels))
      refuse(fmt::format("{} for layer {} is no whole number from 0 to {}",
                         line_text(json_text(channels)), layer, model.channels));
    keep_first(widths.layers[layer], channels.get<std::int64_t>());
  }
  return widths;
}

}  // namespace

ModelWidths read_widths(const std::filesystem::path& path, const ModelConfig& model) {
  if (!read_file(path, kMostPlanBytes).starts_with("\x89HDF")) return widths_of_list(path, model);
  return widths_of(model, read_plan(Hdf5Reader::open(path), "", model));
}

ModelWidths with_rounded_channels(ModelWidths widths, const ModelConfig& model,
                                  std::int64_t multiple) {
  const std::int64_t most = model.channels / multiple;
  ESPALIER_CHECK(most > 0, fmt::format("multiples of {} of {} channels", multiple, model.channels));
  for (LayerWidths& layer : widths.layers) {
    const auto channels = static_cast<std::int64_t>(layer.channels.size());
    if (channels == 0) continue;
    const std::int64_t blocks = (2 * channels + multiple) / (2 * multiple);
    keep_first(layer, multiple * std::clamp<std::int64_t>(blocks, 1, most));
  }
  return widths;
}

}  // namespace espalier
