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

ModelCard card_of(const Source& source, const PruneRules& rules, const ExportFacts& facts) {
  const Sparsity sparsity = sparsity_of(source.config, rules, facts.plan);
  const ParameterCount dense = count_parameters(source.config, dense_widths(source.config));
  const ParameterCount kept = count_parameters(source.config, widths_of(source.config, facts.plan));
  ModelCard card;
  card.facts = {{"Structures removed", percent(sparsity.structures) + " of heads and channels"},
                {"Decoder parameters", fmt::format("{} of {} ({} removed)", kept.decoder, dense.decoder, percent(sparsity.parameters))},
                {"All parameters", fmt::format("{} of {} ({} removed)", kept.total, dense.total, percent(sparsity.total_parameters))},
                {"Plan digest", facts.plan.digest()}};
  // The first and the last evaluated state that are not beyond the plan.
  const nlohmann::ordered_json *first = nullptr, *last = nullptr;
  for (const auto& row : facts.metrics) {
    if (row.at("perplexity").empty() || row.at("iteration").get<std::int64_t>() > facts.plan.iteration) continue;
    if (first == nullptr) first = &row;
    last = &row;
  }
  if (first != nullptr) {
    card.facts.emplace_back(fmt::format("Perplexity, iteration {}", first->at("iteration").dump()), perplexities(*first));
    card.facts.emplace_back(fmt::format("Perplexity, iteration {}", last->at("iteration").dump()), perplexities(*last));
  }
  return card;
}

}  // namespace

ExportReport export_plan(const Source& source, const PruneRules& rules, ExportFormat format, const fs::path& out,
                         const ExportFacts& facts) {
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

ExportOutcome export_run(const ExportRequest& request) {
  const fs::path resolved = request.run_dir / "config.resolved.yaml";
  if (!fs::exists(resolved))
    throw Error(ExitCode::missing_input, "this is not a run directory", "it has no config.resolved.yaml", {},
                request.run_dir.string());
  const RunConfig config = read_run_config(resolved, {}, ConfigUse::print);
  std::vector<std::string> rejected;
  const std::optional<Commit> commit = CommitStore(request.run_dir / "ckpt").newest_valid(rejected);
  for (const std::string& line : rejected) log::warning("{}", line);
  if (!commit)
    throw Error(ExitCode::missing_input, "the run has no valid commit to export", {}, "Let it finish an iteration first.",
                request.run_dir.string());
  const Source source = open_source(config.model_path);
  PruneRules rules = prune_rules(source.config, config.prune);
  ExportFacts facts;
  facts.plan = read_plan(Hdf5Reader::from_image(commit->state, (request.run_dir / "state.h5").string()), "", source.config);
  if (request.measure) rules.measure = *request.measure;
  if (request.sparsity) facts.plan = truncate_plan(source.config, facts.plan, *request.sparsity, rules);
  const fs::path provenance = request.run_dir / "provenance.json";
  if (fs::exists(provenance)) facts.provenance = parse_json(read_file(provenance), provenance.string());
  facts.metrics = read_metrics(request.run_dir);
  ExportOutcome outcome{export_plan(source, rules, request.format, request.out, facts),
                        sparsity_of(source.config, rules, facts.plan)};
  return outcome;
}

}  // namespace espalier
