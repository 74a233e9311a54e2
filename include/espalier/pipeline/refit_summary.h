#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "espalier/refit/refit.h"

namespace espalier {

/// What refit.json of a run says, as far as people are told.
struct RefitSummary {
  /// Matrices that were solved anew, and those that the guard kept; one without inputs is neither.
  std::int64_t refitted = 0;
  std::int64_t kept = 0;
  /// The least and the most that a matrix had for each of its inputs.
  double least_tokens_per_width = 0;
  double most_tokens_per_width = 0;
  /// By the name of the evaluation: of the pruned model, and of the refitted one.
  std::map<std::string, double> perplexity_before, perplexity;
  /// Of the process that finished it, by phase.
  std::map<std::string, double> seconds;
  /// The file's own object, with the evaluations of the refitted model as in a line of
  /// metrics.jsonl.
  nlohmann::ordered_json record;

  std::int64_t matrices() const { return refitted + kept; }
};

/// What refit.json says of each matrix, in the order in which they were solved. Throws
/// nlohmann::json::exception for another record.
std::vector<MatrixFacts> matrices_of(const nlohmann::ordered_json& record);

/// Of a record as RefitRecords::finish writes it. Throws nlohmann::json::exception for another.
RefitSummary refit_summary(nlohmann::ordered_json record);

/// Of the run's finished refit of this plan; nothing where there is none, or its record cannot be
/// read: whoever asks has a run to tell of that is finished without it. Not collective.
std::optional<RefitSummary> summary_of_refit(const std::filesystem::path& run,
                                             const std::string& plan_digest);

/// exp of the mean of the logarithms of values that are all above 0. At least one.
double geometric_mean(const std::map<std::string, double>& values);

/// "7 of 8 matrices refitted, 1 kept by the guard; 67.2 to 219.0 tokens for each input left".
std::string matrices_text(const RefitSummary& refit);

}  // namespace espalier
