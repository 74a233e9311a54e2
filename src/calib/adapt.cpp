#include "espalier/calib/adapt.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "espalier/core/error.h"

namespace espalier {
namespace {

std::vector<double> configured_weights(const CalibrationConfig& config) {
  std::vector<double> weights;
  for (const DomainConfig& domain : config.domains) weights.push_back(domain.weight);
  return weights;
}

}  // namespace

std::vector<double> adapted_weights(const CalibrationConfig& config, const DomainLosses& losses) {
  const std::vector<double> configured = configured_weights(config);
  std::vector<double> weights = configured;
  if (config.adapt == Adapt::none || losses.first.empty()) return weights;
  ESPALIER_CHECK(losses.first.size() == weights.size() && losses.last.size() == weights.size(),
                 "losses of another number of domains than there are");
  // Differences to the largest rise, so that no power is too large for a double.
  std::vector<double> rise(weights.size());
  for (std::size_t d = 0; d < rise.size(); ++d)
    rise[d] = std::max(0.0, losses.last[d] - losses.first[d]);
  const double most = *std::max_element(rise.begin(), rise.end());
  const double before = std::accumulate(weights.begin(), weights.end(), 0.0);
  for (std::size_t d = 0; d < rise.size(); ++d) weights[d] *= std::exp(rise[d] - most);
  const double after = std::accumulate(weights.begin(), weights.end(), 0.0);
  // Domains without a weight rose by so much more that a double cannot tell the others from 0.
  if (!(after > 0)) return configured;
  for (double& weight : weights) weight *= before / after;
  return weights;
}

nlohmann::ordered_json to_json(const DomainLosses& losses, const CalibrationConfig& config) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  for (std::size_t d = 0; d < losses.last.size(); ++d)
    json[config.domains[d].name] = {{"first", losses.first[d]}, {"last", losses.last[d]}};
  return json;
}

DomainLosses losses_from(const nlohmann::ordered_json& json, const CalibrationConfig& config) {
  DomainLosses losses;
  for (const DomainConfig& domain : config.domains) {
    if (!json.contains(domain.name)) return {};
    losses.first.push_back(json.at(domain.name).at("first").get<double>());
    losses.last.push_back(json.at(domain.name).at("last").get<double>());
  }
  return losses;
}

CalibrationConfig with_weights(CalibrationConfig config, const std::vector<double>& weights) {
  for (std::size_t d = 0; d < weights.size(); ++d) config.domains[d].weight = weights[d];
  return config;
}

}  // namespace espalier
