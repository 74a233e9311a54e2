#include "espalier/pipeline/family.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/core/paths.h"
#include "espalier/export/export_model.h"
#include "espalier/store/files.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

/// Least and most of one number over the layers.
struct Spread {
  std::int64_t least = std::numeric_limits<std::int64_t>::max();
  std::int64_t most = 0;
  std::int64_t divisor = 0;

  void add(std::size_t number) {
    const auto n = static_cast<std::int64_t>(number);
    least = std::min(least, n);
    most = std::max(most, n);
    divisor = std::gcd(divisor, n);
  }
  Json json() const { return {least, most}; }
};

/// 0 when there is nothing to divide.
std::int64_t power_of_two_in(std::int64_t divisor) {
  if (divisor == 0) return 0;
  std::int64_t power = 1;
  while (power < 256 && divisor % (2 * power) == 0) power *= 2;
  return power;
}

bool is_uniform(const ModelConfig& config, const ModelWidths& widths) {
  try {
    require_uniform(config, widths);
    return true;
  } catch (const Error&) {
    return false;
  }
}

/// `channels` of the dense model's that are kept of `dense` at this ratio, rounded up to a multiple
/// that servers like; the ratio that keeps them.
double with_round_channels(std::int64_t dense, double ratio) {
  const auto kept =
      static_cast<double>(dense) - std::floor(static_cast<double>(dense) * ratio + 1e-9);
  for (const std::int64_t multiple : {256, 128, 64}) {
    const auto step = static_cast<double>(multiple);
    const double rounded = std::ceil(kept / step) * step;
    // Half a multiple less is another size; a model of few channels has none.
    if (rounded < static_cast<double>(dense) && rounded - kept <= static_cast<double>(dense) / 20)
      return (static_cast<double>(dense) - rounded) / static_cast<double>(dense);
  }
  return ratio;
}

bool has_exact_sizes(const PruneRules& rules) {
  return rules.ranking == Ranking::local && rules.measure == Measure::structures && rules.mlp;
}

std::set<double> sparsities_between(const ModelConfig& config, const PruneRules& rules, double low,
                                    double high) {
  std::set<double> found{low, high};
  for (int tenth = 1; tenth < 10; ++tenth) {
    double ratio = tenth / 10.0;
    if (has_exact_sizes(rules)) ratio = with_round_channels(config.channels, ratio);
    if (ratio > low && ratio < high) found.insert(ratio);
  }
  return found;
}

}  // namespace

PruningPlan PlanFamily::part(double sparsity) const {
  return truncate_plan(source.config, plan, base(), sparsity, rules);
}

PlanFamily family_of_run(const fs::path& run, const fs::path& model) {
  const fs::path resolved = run / "config.resolved.yaml";
  if (!path_exists(resolved))
    throw Error(ExitCode::missing_input, "this is neither a run directory nor a plan file",
                "it has no config.resolved.yaml",
                "Name the directory that was given to --run-dir, or a plan.h5 with --model.",
                run.string());
  const RunConfig config = read_run_config(resolved, {}, ConfigUse::print);
  std::vector<std::string> rejected;
  const std::optional<Commit> commit = CommitStore(run / "ckpt").newest_valid(rejected);
  for (const std::string& line : rejected) log::warning("{}", line);
  if (!commit)
    throw Error(ExitCode::missing_input, "the run has no valid commit to export",
                rejected.empty() ? "there is none yet" : "none of them verifies",
                "Let it finish an iteration first.", run.string());
  PlanFamily family{open_source(model_of_run(config, model)), {}, {}, {}};
  log::info("model as the run began: {}",
            require_same_model(family.source, *commit, Thoroughness::facts));
  family.rules = prune_rules(family.source.config, config.prune);
  const Hdf5Reader state = Hdf5Reader::from_image(commit->state, (run / "ckpt").string());
  family.plan = read_plan(state, "", family.source.config);
  family.means = read_feature_means(state, "", family.source.config);
  return family;
}

Json size_of(const ModelConfig& config, const PruneRules& rules, const PruningPlan& plan) {
  const Sparsity sparsity = sparsity_of(config, rules, plan);
  return {{"sparsity_structures", sparsity.structures},
          {"sparsity_parameters", sparsity.parameters},
          {"sparsity_total_parameters", sparsity.total_parameters},
          {"parameters", count_parameters(config, widths_of(config, plan)).total}};
}

Json serving_facts(const ModelConfig& config, const ModelWidths& widths) {
  Spread heads, kv_heads, channels;
  bool whole_groups = true;
  for (const LayerWidths& layer : widths.layers) {
    heads.add(layer.query_heads.size());
    kv_heads.add(layer.kv_heads.size());
    channels.add(layer.channels.size());
    whole_groups = whole_groups && layer.even_groups(config);
  }
  Json degrees = Json::array();
  for (const std::int64_t degree : {2, 4, 8})
    if (whole_groups && kv_heads.divisor % degree == 0 && channels.divisor % degree == 0)
      degrees.push_back(degree);
  return {{"heads", heads.json()},        {"kv_heads", kv_heads.json()},
          {"channels", channels.json()},  {"uniform", is_uniform(config, widths)},
          {"whole_groups", whole_groups}, {"channel_multiple", power_of_two_in(channels.divisor)},
          {"tensor_parallel", degrees}};
}

Json sizes_of(const ModelConfig& config, const PruneRules& rules, const PruningPlan& plan,
              const PruningPlan& base) {
  const double low = reached_target(config, rules, base);
  const double high = reached_target(config, rules, plan);
  Json rows = Json::array();
  std::set<std::string> seen;
  for (const double sparsity : sparsities_between(config, rules, low, high)) {
    const PruningPlan part = truncate_plan(config, plan, base, sparsity, rules);
    if (!seen.insert(part.digest()).second) continue;
    Json row{{"sparsity", sparsity}};
    row.update(size_of(config, rules, part));
    row.update(serving_facts(config, widths_of(config, part)));
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace espalier
