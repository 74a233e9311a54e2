#include "espalier/pipeline/run_outline.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "espalier/calib/calibration.h"
#include "espalier/core/text.h"
#include "espalier/pipeline/run_report.h"
#include "espalier/prune/plan.h"
#include "espalier/prune/unit_tensors.h"
#include "espalier/store/files.h"

namespace espalier {
namespace {

DomainOutline outline_domain(const DomainConfig& domain, const CalibrationConfig& calibration,
                             const ModelConfig& model) {
  DomainOutline outline;
  outline.name = domain.name;
  outline.objective = domain.objective;
  outline.known = path_exists(domain.tokens);
  if (!outline.known) return outline;
  CalibrationConfig alone = calibration;
  alone.domains = {domain};
  const Calibration drawn = Calibration::draw(alone, 1, model.vocabulary);
  const DomainDraw& draw = drawn.domains().front();
  const TokenFile& file = drawn.files().front();
  const std::vector<std::int32_t> lengths = file.lengths();
  outline.sequence_tokens = file.sequence_tokens();
  outline.sequences = static_cast<std::int64_t>(draw.rows.size());
  if (domain.objective == Objective::margin)
    outline.items = static_cast<std::int64_t>(draw.begins.size());
  for (const std::int64_t row : draw.rows)
    outline.tokens += lengths.at(static_cast<std::size_t>(row));
  for (const MicroBatch& batch : drawn.micro_batches()) {
    const std::vector<std::int64_t> rows = drawn.rows_of(batch);
    std::int64_t longest = 0;
    for (const std::int64_t row : rows)
      longest = std::max<std::int64_t>(longest, lengths.at(static_cast<std::size_t>(row)));
    outline.computed_tokens += longest * static_cast<std::int64_t>(rows.size());
    ++outline.micro_batches;
  }
  return outline;
}

std::int64_t units_per_layer(const PruneRules& rules, const PruningPlan& plan) {
  return (rules.attention ? plan.attention_removed_at.units : 0) +
         (rules.mlp ? plan.mlp_removed_at.units : 0);
}

std::string domain_text(const DomainOutline& domain) {
  const std::string name =
      fmt::format("domain   {}: {}", one_line(domain.name), name_of(domain.objective));
  if (!domain.known) return name + ", its token file is not there\n";
  const std::string items =
      domain.items > 0 ? fmt::format("{} in ", counted(domain.items, "item")) : "";
  return fmt::format("{}, {}{} of up to {}, {} in each iteration\n", name, items,
                     counted(domain.sequences, "sequence"),
                     counted(domain.sequence_tokens, "token"), counted(domain.tokens, "token"));
}

/// The share of its units that each layer keeps that may lose any, when the run has come to
/// `target`.
double kept_share(const ModelConfig& model, const PruneRules& rules, const RunOutline& outline,
                  double target) {
  const auto left = [](double gone, double all) {
    return all > 0 ? std::clamp(1 - gone / all, 0.0, 1.0) : 1.0;
  };
  if (rules.ranking == Ranking::local) return 1 - target;
  if (rules.measure == Measure::structures || rules.ranking == Ranking::global_by_kind)
    return left(target * static_cast<double>(outline.structures),
                static_cast<double>(outline.unprotected_structures));
  const UnitSizes sizes = unit_parameters(model);
  const double of_layer =
      (rules.attention
           ? static_cast<double>(model.heads * sizes.query_head + model.kv_heads * sizes.kv_head)
           : 0.0) +
      (rules.mlp ? static_cast<double>(model.channels * sizes.channel) : 0.0);
  const auto open = std::count(rules.protected_layer.begin(), rules.protected_layer.end(), false);
  const auto all = static_cast<double>(
      rules.measure == Measure::parameters ? outline.decoder_parameters : outline.parameters);
  return left(target * all, of_layer * static_cast<double>(open));
}

/// `count` of `all` units, spread evenly.
std::vector<std::int32_t> spread(std::int64_t all, double share) {
  const auto count =
      std::clamp<std::int64_t>(std::llround(share * static_cast<double>(all)), 0, all);
  std::vector<std::int32_t> units;
  units.reserve(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i)
    units.push_back(static_cast<std::int32_t>(i * all / count));
  return units;
}

ModelWidths shrunk(const ModelConfig& model, const PruneRules& rules, double share) {
  ModelWidths widths = dense_widths(model);
  for (std::size_t l = 0; l < widths.layers.size(); ++l) {
    if (rules.protected_layer[l]) continue;
    LayerWidths& layer = widths.layers[l];
    if (rules.attention) {
      layer.query_heads = spread(model.heads, share);
      layer.kv_heads = kept_kv_heads(model, layer.query_heads);
    }
    if (rules.mlp) layer.channels = spread(model.channels, share);
  }
  return widths;
}

}  // namespace

std::optional<std::int64_t> RunOutline::tokens() const {
  std::int64_t sum = 0;
  for (const DomainOutline& domain : domains) {
    if (!domain.known) return std::nullopt;
    sum += domain.tokens;
  }
  return sum;
}

RunOutline outline_run(const RunConfig& config, const ModelConfig& model) {
  RunOutline outline;
  const PruneRules rules = prune_rules(model, config.prune);
  const PruningPlan dense = dense_plan(model, config.prune.attention_unit);
  if (config.prune.target) require_reachable(model, rules, dense, *config.prune.target);
  const ParameterCount parameters = count_parameters(model, dense_widths(model));
  outline.parameters = parameters.total;
  outline.decoder_parameters = parameters.decoder;
  const std::int64_t per_layer = units_per_layer(rules, dense);
  outline.structures = per_layer * model.layers;
  for (std::int64_t layer = 0; layer < model.layers; ++layer) {
    if (rules.protected_layer[static_cast<std::size_t>(layer)])
      outline.protected_layers.push_back(layer);
    else
      outline.unprotected_structures += per_layer;
  }
  const bool single_units =
      config.prune.attention_unit != AttentionUnit::equal_per_group && rules.width_multiple == 1;
  if (config.prune.target && config.prune.measure == Measure::structures &&
      config.prune.ranking == Ranking::global && single_units)
    outline.removed_structures = static_cast<std::int64_t>(
        std::floor(static_cast<double>(outline.structures) * *config.prune.target + 1e-9));
  outline.domains = outline_domains(config.calibration, model);
  return outline;
}

std::vector<DomainOutline> outline_domains(const CalibrationConfig& data,
                                           const ModelConfig& model) {
  std::vector<DomainOutline> domains;
  for (const DomainConfig& domain : data.domains)
    domains.push_back(outline_domain(domain, data, model));
  return domains;
}

ModelWidths expected_widths(const ModelConfig& model, const PruneRules& rules,
                            const RunOutline& outline, double target) {
  return shrunk(model, rules, kept_share(model, rules, outline, target));
}

nlohmann::ordered_json to_json(const RunOutline& outline, const RunConfig& config,
                               const ModelConfig& model) {
  const auto known = [](bool is_known, std::int64_t value) {
    return is_known ? nlohmann::ordered_json(value) : nlohmann::ordered_json(nullptr);
  };
  nlohmann::ordered_json domains = nlohmann::ordered_json::array();
  for (const DomainOutline& domain : outline.domains)
    domains.push_back({{"name", utf8_text(domain.name)},
                       {"objective", name_of(domain.objective)},
                       {"sequence_tokens", known(domain.known, domain.sequence_tokens)},
                       {"sequences", known(domain.known, domain.sequences)},
                       {"items", known(domain.items > 0, domain.items)},
                       {"tokens", known(domain.known, domain.tokens)},
                       {"computed_tokens", known(domain.known, domain.computed_tokens)}});
  nlohmann::ordered_json target = nullptr;
  if (config.prune.target) target = *config.prune.target;
  return {
      {"family", name_of(model.family)},
      {"layers", model.layers},
      {"hidden", model.hidden},
      {"heads", model.heads},
      {"kv_heads", model.kv_heads},
      {"head_dim", model.head_dim},
      {"channels", model.channels},
      {"vocabulary", model.vocabulary},
      {"parameters", outline.parameters},
      {"decoder_parameters", outline.decoder_parameters},
      {"target", target},
      {"measure", measure_key(config.prune.measure)},
      {"iterations", config.prune.iterations},
      {"structures", outline.structures},
      {"protected_layers", outline.protected_layers},
      {"unprotected_structures", outline.unprotected_structures},
      {"removed_structures",
       known(outline.removed_structures.has_value(), outline.removed_structures.value_or(0))},
      {"domains", domains},
      {"tokens_per_iteration", known(outline.tokens().has_value(), outline.tokens().value_or(0))}};
}

std::string outline_text(const RunOutline& outline, const RunConfig& config,
                         const ModelConfig& model) {
  std::string text = fmt::format("model    {}\n", model_text(model, dense_widths(model)));
  const PruneRules rules = prune_rules(model, config.prune);
  if (config.prune.target) text += fmt::format("target   {}\n", target_text(config.prune, rules));
  text += fmt::format("         {}, {} of them in layers that may lose some",
                      counted(outline.structures, "structure"), outline.unprotected_structures);
  if (outline.removed_structures) text += fmt::format("; {} go", *outline.removed_structures);
  text += "\n";
  for (const DomainOutline& domain : outline.domains) text += domain_text(domain);
  return text;
}

}  // namespace espalier
