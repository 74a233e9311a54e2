#include "espalier/pipeline/exporting.h"

#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/core/json.h"
#include "espalier/core/log.h"
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

/// What the exporter does not know by itself: it counts heads, channels and parameters.
ModelCard card_of(const Source& source, const PruneRules& rules, const ExportFacts& facts) {
  const Sparsity sparsity = sparsity_of(source.config, rules, facts.plan);
  ModelCard card;
  card.facts = {{"Structures removed", percent(sparsity.structures) + " of heads and channels"},
                {"Plan digest", facts.plan.digest()}};
  if (source.config.exported && !source.plan)
    card.facts.emplace_back("Unit numbers", "places in the checkpoint that was pruned further");
  // The first and the last evaluated state that are not beyond the plan.
  const nlohmann::ordered_json *first = nullptr, *last = nullptr;
  for (const auto& row : facts.metrics) {
    if (row.at("perplexity").empty() ||
        row.at("iteration").get<std::int64_t>() > facts.plan.iteration)
      continue;
    if (first == nullptr) first = &row;
    last = &row;
  }
  for (const auto* row : {first, first == last ? nullptr : last})
    if (row != nullptr)
      card.facts.emplace_back(fmt::format("Perplexity, iteration {}", row->at("iteration").dump()),
                              perplexities(*row));
  return card;
}

}  // namespace

ExportReport export_plan(const Source& source, const PruneRules& rules, ExportFormat format,
                         const fs::path& out, const ExportFacts& facts) {
  ExportOptions options;
  options.out = out;
  options.plan_image = plan_image_of(facts.plan);
  options.plan_digest = facts.plan.digest();
  options.provenance = facts.provenance.dump(2);
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

Origin origin_of_run(const fs::path& run) {
  const fs::path resolved = run / "config.resolved.yaml";
  if (!fs::exists(resolved))
    throw Error(ExitCode::missing_input, "this is neither a run directory nor a plan file",
                "it has no config.resolved.yaml", {}, run.string());
  const RunConfig config = read_run_config(resolved, {}, ConfigUse::print);
  std::vector<std::string> rejected;
  const std::optional<Commit> commit = CommitStore(run / "ckpt").newest_valid(rejected);
  for (const std::string& line : rejected) log::warning("{}", line);
  if (!commit)
    throw Error(ExitCode::missing_input, "the run has no valid commit to export", {},
                "Let it finish an iteration first.", run.string());
  Origin origin{open_source(config.model_path), {}, {}};
  origin.rules = prune_rules(origin.source.config, config.prune);
  origin.facts.plan = read_plan(Hdf5Reader::from_image(commit->state, (run / "ckpt").string()), "",
                                origin.source.config);
  const fs::path provenance = run / "provenance.json";
  if (fs::exists(provenance))
    origin.facts.provenance = parse_json(read_file(provenance), provenance.string());
  origin.facts.metrics = read_metrics(run);
  return origin;
}

Origin origin_of_plan(const fs::path& plan, const fs::path& model) {
  if (model.empty())
    throw Error(ExitCode::usage, "a plan file without --model", {},
                "Name the checkpoint it belongs to with --model DIR.");
  Origin origin{open_source(model), {}, {}};
  origin.rules = prune_rules(origin.source.config, PruneConfig{});
  origin.facts.plan = read_plan(Hdf5Reader::open(plan), "", origin.source.config);
  origin.facts.provenance = {{"schema", 1},
                             {"model", fs::absolute(model).string()},
                             {"plan", fs::absolute(plan).string()}};
  return origin;
}

}  // namespace

ExportOutcome export_run(const ExportRequest& request) {
  Origin origin = fs::is_regular_file(request.from) ? origin_of_plan(request.from, request.model)
                                                    : origin_of_run(request.from);
  if (request.measure) origin.rules.measure = *request.measure;
  if (request.sparsity)
    origin.facts.plan =
        truncate_plan(origin.source.config, origin.facts.plan, *request.sparsity, origin.rules);
  require_continuation(origin.source, origin.facts.plan,
                       request.sparsity ? fmt::format("a plan of sparsity {}", *request.sparsity)
                                        : "the plan of " + request.from.string());
  for (const std::string& note : origin.source.notes) log::info("note: {}", note);
  return {export_plan(origin.source, origin.rules, request.format, request.out, origin.facts),
          sparsity_of(origin.source.config, origin.rules, origin.facts.plan)};
}

}  // namespace espalier
