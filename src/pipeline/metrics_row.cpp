#include "espalier/pipeline/metrics_row.h"

#include "espalier/prune/tensor_catalog.h"

namespace espalier {

nlohmann::ordered_json iteration_row(std::int64_t iteration, int attempt, const ModelConfig& config,
                                     const PruneRules& rules, const PruningPlan& plan) {
  const Sparsity sparsity = sparsity_of(config, rules, plan);
  const ModelWidths widths = widths_of(config, plan);
  const ParameterCount parameters = count_parameters(config, widths);
  std::size_t heads = 0, kv_heads = 0, channels = 0;
  for (const LayerWidths& layer : widths.layers) {
    heads += layer.query_heads.size();
    kv_heads += layer.kv_heads.size();
    channels += layer.channels.size();
  }
  return {{"schema", 1},
          {"iteration", iteration},
          {"attempt", attempt},
          {"sparsity_structures", sparsity.structures},
          {"sparsity_parameters", sparsity.parameters},
          {"sparsity_total_parameters", sparsity.total_parameters},
          {"parameters", parameters.total},
          {"decoder_parameters", parameters.decoder},
          {"heads_kept", heads},
          {"kv_heads_kept", kv_heads},
          {"channels_kept", channels},
          {"plan_digest", plan.digest()},
          {"loss", nlohmann::ordered_json::object()},
          {"perplexity", nlohmann::ordered_json::object()},
          {"margin_at_cut", 0.0},
          {"tokens", 0},
          {"seconds", nlohmann::ordered_json::object()},
          {"peak_bytes", 0}};
}

void add_step(nlohmann::ordered_json& row, const Advance& step) {
  row["margin_at_cut"] = step.margin_at_cut;
  if (step.rounding)
    row["rounding"] = {{"importance", step.rounding->importance},
                       {"free_importance", step.rounding->free_importance}};
  row["removed_heads"] = step.removed_heads;
  row["removed_channels"] = step.removed_channels;
}

void add_pass(nlohmann::ordered_json& row, const ScorePass& pass, const PassFacts& facts,
              const std::map<std::string, CommCounters>& communication) {
  for (std::size_t d = 0; d < pass.table.domains.size(); ++d)
    row["loss"][pass.table.domains[d]] = pass.table.loss[d];
  row["tokens"] = pass.table.tokens;
  if (pass.continued_tokens > 0) row["continued_tokens"] = pass.continued_tokens;
  if (pass.continued_layers > 0) row["continued_layers"] = pass.continued_layers;
  for (const SkippedBatch& batch : pass.skipped)
    row["skipped"].push_back({{"domain", batch.domain}, {"rows", batch.rows}});
  row["imbalance"] = facts.imbalance;
  row["peak_bytes"] = facts.peak_bytes;
  row["weight_bytes"] = facts.weight_bytes;
  row["statistics_bytes"] = facts.statistics_bytes;
  if (facts.boundary_bytes) row["boundary_bytes"] = *facts.boundary_bytes;
  row["read_bytes"] = facts.read_bytes;
  row["repeated_halves"] = facts.repeated_halves;
  for (const char* group : {"tensor", "data", "world"}) {
    const CommCounters& counters = communication.at(group);
    row["communication"][group] = {{"collectives", counters.collectives},
                                   {"bytes", counters.bytes},
                                   {"seconds", counters.seconds}};
  }
}

void add_evaluations(nlohmann::ordered_json& row, const std::vector<TaskOutcome>& outcomes) {
  row["perplexity"] = nlohmann::ordered_json::object();
  for (const TaskOutcome& outcome : outcomes)
    row[outcome.kind][outcome.task] =
        outcome.kind == "perplexity" ? outcome.facts.at("perplexity") : outcome.facts;
}

}  // namespace espalier
