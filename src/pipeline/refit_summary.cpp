#include "espalier/pipeline/refit_summary.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/core/text.h"
#include "espalier/pipeline/refitting.h"

namespace espalier {
namespace {

using Json = nlohmann::ordered_json;

std::map<std::string, double> numbers(const Json& record, const char* key) {
  std::map<std::string, double> found;
  if (!record.contains(key)) return found;
  for (const auto& [name, value] : record.at(key).items()) found[name] = value.get<double>();
  return found;
}

}  // namespace

std::vector<MatrixFacts> matrices_of(const Json& record) {
  std::vector<RefitFacts> halves;
  for (const Json& half : record.at("halves")) halves.push_back(facts_from(half));
  return each_matrix(halves);
}

RefitSummary refit_summary(Json record) {
  RefitSummary summary;
  for (const MatrixFacts& facts : matrices_of(record)) {
    if (facts.outcome == RefitOutcome::empty) continue;
    const double tokens = facts.tokens_per_width;
    const bool first = summary.matrices() == 0;
    summary.least_tokens_per_width =
        first ? tokens : std::min(summary.least_tokens_per_width, tokens);
    summary.most_tokens_per_width = std::max(summary.most_tokens_per_width, tokens);
    ++(facts.outcome == RefitOutcome::refitted ? summary.refitted : summary.kept);
  }
  summary.perplexity_before = numbers(record, "perplexity_before");
  summary.perplexity = numbers(record, "perplexity");
  summary.seconds = numbers(record, "seconds");
  summary.record = std::move(record);
  return summary;
}

std::optional<RefitSummary> summary_of_refit(const std::filesystem::path& run,
                                             const std::string& plan_digest) {
  try {
    Json record = finished_refit(run, plan_digest);
    if (record.is_null()) return std::nullopt;
    return refit_summary(std::move(record));
  } catch (const Error&) {
  } catch (const Json::exception&) {
  }
  return std::nullopt;
}

double geometric_mean(const std::map<std::string, double>& values) {
  ESPALIER_CHECK(!values.empty(), "a mean of nothing");
  double sum = 0;
  for (const auto& [name, value] : values) sum += std::log(value);
  return std::exp(sum / static_cast<double>(values.size()));
}

std::string matrices_text(const RefitSummary& refit) {
  std::string text = fmt::format("{} of {} refitted", refit.refitted,
                                 counted(refit.matrices(), "matrix", "matrices"));
  if (refit.kept > 0) text += fmt::format(", {} kept by the guard", refit.kept);
  if (refit.matrices() > 0)
    text += fmt::format("; {:.1f} to {:.1f} tokens for each input left",
                        refit.least_tokens_per_width, refit.most_tokens_per_width);
  return text;
}

}  // namespace espalier
