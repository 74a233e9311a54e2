#include "espalier/pipeline/exporting.h"

#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/core/json.h"
#include "espalier/core/log.h"
#include "espalier/core/paths.h"
#include "espalier/core/text.h"
#include "espalier/pipeline/run_directory.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;

std::string percent(double ratio) { return fmt::format("{:.1f}%", 100 * ratio); }

std::string perplexities(const nlohmann::ordered_json& row) {
  std::string text;
  for (const auto& [name, value] : row.at("perplexity").items())
    text += fmt::format("{}{} {:.3f}", text.empty() ? "" : ", ", name, value.get<double>());
  return text;
}

ModelCard card_of(const Source& source, const PruneRules& rules, const ExportFacts& facts) {
  const Sparsity sparsity = sparsity_of(source.config, rules, facts.plan);
  const ParameterCount dense = count_parameters(source.config, dense_widths(source.config));
  const ParameterCount kept = count_parameters(source.config, widths_of(source.config, facts.plan));
  ModelCard card;
  card.facts = {{"Structures removed", percent(sparsity.structures) + " of heads and channels"},
                {"Decoder parameters", fmt::format("{} of {} ({} removed)", kept.decoder,
                                                   dense.decoder, percent(sparsity.parameters))},
                {"All parameters", fmt::format("{} of {} ({} removed)", kept.total, dense.total,
                                               percent(sparsity.total_parameters))},
                {"Plan digest", facts.plan.digest()}};
  // The first and the last evaluated state that are not beyond the plan.
  const nlohmann::ordered_json *first = nullptr, *last = nullptr;
  for (const auto& row : facts.metrics) {
    if (row.at("perplexity").empty() ||
        row.at("iteration").get<std::int64_t>() > facts.plan.iteration)
      continue;
    if (first == nullptr) first = &row;
    last = &row;
  }
  if (first != nullptr) {
    card.facts.emplace_back(
        fmt::format("Perplexity, iteration {}", json_text(first->at("iteration"))),
        perplexities(*first));
    card.facts.emplace_back(
        fmt::format("Perplexity, iteration {}", json_text(last->at("iteration"))),
        perplexities(*last));
  }
  return card;
}

}  // namespace

ExportReport export_plan(const Source& source, const PruneRules& rules, ExportFormat format,
                         const fs::path& out, const ExportFacts& facts) {
  ExportOptions options;
  options.out = out;
  options.plan_image = plan_image_of(facts.plan);
  options.plan_digest = facts.plan.digest();
  options.provenance = json_text(facts.provenance, 2);
  options.card = card_of(source, rules, facts);
  options.between_tensors = facts.between_tensors;
  const ModelWidths kept = widths_of(source.config, facts.plan);
  return export_model(format, source.reader, source.config, source.widths, kept, options);
}

namespace {

/// What is exported, and under which rules smaller plans of it are made.
struct Origin {
  Source source;
  PruneRules rules;
  ExportFacts facts;
};

Origin origin_of_run(const fs::path& run, const fs::path& model) {
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
  Origin origin{open_source(model_of_run(config, model)), {}, {}};
  log::info("model as the run began: {}",
            require_same_model(origin.source, *commit, Thoroughness::facts));
  origin.rules = prune_rules(origin.source.config, config.prune);
  origin.facts.plan = read_plan(Hdf5Reader::from_image(commit->state, (run / "ckpt").string()), "",
                                origin.source.config);
  const fs::path provenance = run / "provenance.json";
  if (path_exists(provenance))
    origin.facts.provenance = parse_json(read_file(provenance), provenance.string());
  origin.facts.metrics = read_metrics(run);
  return origin;
}

Origin origin_of_plan(const fs::path& plan, const fs::path& model) {
  if (model.empty())
    throw Error(ExitCode::usage, "a plan file without --model", "a plan names units, not weights",
                "Name the checkpoint it belongs to with --model DIR.");
  Origin origin{open_source(model), {}, {}};
  origin.rules = prune_rules(origin.source.config, PruneConfig{});
  origin.facts.plan = read_plan(Hdf5Reader::open(plan), "", origin.source.config);
  origin.facts.provenance = {{"schema", 1},
                             {"model", utf8_text(absolute_path(model).string())},
                             {"plan", utf8_text(absolute_path(plan).string())}};
  return origin;
}

}  // namespace

ExportOutcome export_run(const ExportRequest& request) {
  Origin origin = file_exists(request.from) ? origin_of_plan(request.from, request.model)
                                            : origin_of_run(request.from, request.model);
  if (request.measure) origin.rules.measure = *request.measure;
  if (request.sparsity)
    origin.facts.plan =
        truncate_plan(origin.source.config, origin.facts.plan, *request.sparsity, origin.rules);
  return {export_plan(origin.source, origin.rules, request.format, request.out, origin.facts),
          sparsity_of(origin.source.config, origin.rules, origin.facts.plan)};
}

}  // namespace espalier
