#include "espalier/pipeline/overlap_file.h"

#include <nlohmann/json.hpp>

#include "espalier/core/json.h"
#include "espalier/store/files.h"

namespace espalier {
namespace {

using Json = nlohmann::ordered_json;

Json to_json(const Jaccard& matrix) {
  Json rows = Json::array();
  for (const auto& row : matrix) {
    Json& values = rows.emplace_back(Json::array());
    for (const std::optional<double>& value : row) values.push_back(value ? Json(*value) : Json());
  }
  return rows;
}

Json to_json(const KindOverlap& kind) {
  Json layers = Json::array();
  for (std::size_t l = 0; l < kind.layers.size(); ++l)
    layers.push_back({{"layer", l}, {"jaccard", to_json(kind.layers[l])}});
  return {{"all", to_json(kind.all)}, {"layers", std::move(layers)}};
}

/// The iterations that the file has; none of what is damaged or of other domains.
std::vector<Json> recorded(const std::filesystem::path& file, const Json& domains) {
  if (!path_exists(file)) return {};
  const Json found = Json::parse(read_file(file), nullptr, /*allow_exceptions=*/false);
  if (!found.is_object() || found.value("domains", Json()) != domains) return {};
  const auto iterations = found.find("iterations");
  if (iterations == found.end() || !iterations->is_array()) return {};
  return {iterations->begin(), iterations->end()};
}

}  // namespace

void write_overlap(const std::filesystem::path& file, const std::vector<std::string>& domains,
                   std::int64_t iteration, double target, const Overlap& overlap) {
  Json all{{"schema", 1}, {"domains", domains}, {"iterations", Json::array()}};
  for (const Json& earlier : recorded(file, all["domains"]))
    if (earlier.is_object() && earlier.contains("iteration") &&
        earlier["iteration"].is_number_integer() && earlier["iteration"] < iteration)
      all["iterations"].push_back(earlier);
  all["iterations"].push_back({{"iteration", iteration},
                               {"target", target},
                               {"attention", to_json(overlap.attention)},
                               {"mlp", to_json(overlap.mlp)}});
  replace_file(file, json_text(all, 1) + "\n");
}

}  // namespace espalier
