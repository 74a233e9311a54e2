#pragma once

#include <vector>

#include <nlohmann/json.hpp>

#include "espalier/config/run_config.h"

namespace espalier {

/// Mean calibration losses of the domains in nats per token, in the configuration's order; empty
/// where no pass has measured any.
struct DomainLosses {
  /// Of the first iteration's pass: the model that the run starts from.
  std::vector<double> first;
  /// Of the newest finished pass.
  std::vector<double> last;
};

/// The domains' weights for the next pass. Under `loss_gap` a domain's weight is multiplied by
/// max(1, exp(last - first)), the factor by which its perplexity has risen, and all are scaled so
/// that their sum stays as configured. Unchanged under `none` and before there are losses. Pure.
/// Throws Error(internal) for losses of another number of domains.
std::vector<double> adapted_weights(const CalibrationConfig& config, const DomainLosses& losses);

/// {domain: {first, last}}, of the configuration's domains.
nlohmann::ordered_json to_json(const DomainLosses& losses, const CalibrationConfig& config);
/// As to_json writes them; empty where domains have come or gone meanwhile, or none were saved.
DomainLosses losses_from(const nlohmann::ordered_json& json, const CalibrationConfig& config);

/// The configuration with these weights.
CalibrationConfig with_weights(CalibrationConfig config, const std::vector<double>& weights);

}  // namespace espalier
