#include "espalier/pipeline/exporting.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>

#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/core/hash.h"
#include "espalier/core/json.h"
#include "espalier/core/log.h"
#include "espalier/core/paths.h"
#include "espalier/core/text.h"
#include "espalier/pipeline/family.h"
#include "espalier/pipeline/refit_summary.h"
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

/// Which matrices were refitted, and on what.
void add_refit(ModelCard& card, const nlohmann::ordered_json& record) {
  if (record.contains("perplexity") && !record.at("perplexity").empty())
    card.facts.emplace_back("Perplexity, refitted", perplexities(record));
  card.text +=
      "## Refitted matrices\n\n"
      "These were solved anew in closed form after the pruning, so that the residual stream "
      "follows "
      "the unpruned model's. A held-out error is the share of the target's variance that is left, "
      "measured on the half of the sequences that the matrix was not fitted on.\n\n";
  std::string domains;
  for (const auto& domain : record.at("domains"))
    domains += fmt::format("{}{} ({})", domains.empty() ? "" : ", ",
                           line_text(domain.at("name").get<std::string>()),
                           counted(domain.at("rows").get<std::int64_t>(), "row"));
  card.text += fmt::format("Data: {} of {}.\n\n",
                           counted(record.at("tokens").get<std::int64_t>(), "token"), domains);
  card.text +=
      "| layer | matrix | kept inputs | ridge | held-out error before | after |\n"
      "|---|---|---|---|---|---|\n";
  for (const MatrixFacts& facts : matrices_of(record)) {
    if (facts.outcome == RefitOutcome::dense || facts.outcome == RefitOutcome::empty) continue;
    card.text +=
        fmt::format("| {} | {} | {} | {:g} | {:.4f} | {:.4f} |\n", facts.layer,
                    matrix_name(facts.role), facts.width, facts.ridge, facts.error_before,
                    facts.outcome == RefitOutcome::obs ? facts.error_before : facts.error_after);
  }
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
  const std::string without = std::string(facts.means ? ", without output biases" : "") +
                              (facts.refit ? ", before the refit" : "");
  for (const auto* row : {first, first == last ? nullptr : last})
    if (row != nullptr)
      card.facts.emplace_back(
          fmt::format("Perplexity, iteration {}{}", json_text(row->at("iteration")),
                      row == last ? without : ""),
          perplexities(*row));
  if (facts.refit) add_refit(card, facts.refit->record);
  return card;
}

}  // namespace

ExportReport export_plan(const Source& source, const PruneRules& rules, ExportFormat format,
                         const fs::path& out, const ExportFacts& facts) {
  ExportOptions options;
  options.out = out;
  options.means = facts.means;
  options.plan_image = plan_image_of(facts.plan, facts.means);
  options.plan_digest = facts.plan.digest();
  nlohmann::ordered_json provenance = facts.provenance;
  if (facts.refit) {
    options.replaced = facts.refit->parts.matrices;
    provenance["refit"] = facts.refit->record;
  }
  options.provenance = json_text(provenance, 2);
  options.card = card_of(source, rules, facts);
  options.between_tensors = facts.between_tensors;
  options.replace = facts.replace;
  const ModelWidths kept = widths_of(source.config, facts.plan);
  return export_model(format, source.reader, source.config, source.widths, kept, options);
}

namespace {

ExportOrigin origin_of_run(const fs::path& run, const fs::path& model) {
  ExportOrigin origin{family_of_run(run, model), {}};
  const fs::path provenance = run / "provenance.json";
  if (path_exists(provenance))
    origin.facts.provenance = parse_json(read_file(provenance), provenance.string());
  origin.facts.metrics = read_metrics(run);
  return origin;
}

ExportOrigin origin_of_plan(const fs::path& plan, const fs::path& model) {
  if (model.empty())
    throw Error(ExitCode::usage, "a plan file without --model", "a plan names units, not weights",
                "Name the checkpoint it belongs to with --model DIR.");
  ExportOrigin origin{{open_source(model), {}, {}, {}}, {}};
  PlanFamily& family = origin.family;
  // A plan file knows no rules: its smaller plans are the beginnings of its order.
  PruneConfig prune;
  prune.protect.first_layers = 0;
  prune.protect.last_layers = 0;
  family.rules = prune_rules(family.source.config, prune);
  const Hdf5Reader file = Hdf5Reader::open(plan);
  family.plan = read_plan(file, "", family.source.config);
  family.means = read_feature_means(file, "", family.source.config);
  origin.facts.provenance = {{"schema", 1},
                             {"model", utf8_text(absolute_path(model).string())},
                             {"plan", utf8_text(absolute_path(plan).string())}};
  return origin;
}

}  // namespace

ExportOrigin export_origin(const ExportRequest& request) {
  ExportOrigin origin = file_exists(request.from) ? origin_of_plan(request.from, request.model)
                                                  : origin_of_run(request.from, request.model);
  PlanFamily& family = origin.family;
  if (request.measure) family.rules.measure = *request.measure;
  require_continuation(family.source, family.plan, "the plan of " + request.from.string());
  origin.facts.plan = request.sparsity ? family.part(*request.sparsity) : family.plan;
  if (request.compensate) origin.facts.means = family.means;
  return origin;
}

ExportOutcome export_run(const ExportRequest& request) {
  const ExportOrigin origin = export_origin(request);
  const PlanFamily& family = origin.family;
  for (const std::string& note : family.source.notes) log::info("note: {}", note);
  return {export_plan(family.source, family.rules, request.format, request.out, origin.facts),
          sparsity_of(family.source.config, family.rules, origin.facts.plan)};
}

namespace {

constexpr const char* kProvenance = "provenance.json";

/// What stands where an export of a run goes.
struct Standing {
  enum class Kind {
    absent,
    /// Whole, of this plan and in this form.
    current,
    /// This run wrote all of it, and it is another plan, another form or not whole.
    replaceable,
    /// Anything else: not ours to remove.
    kept
  };
  Kind kind = Kind::absent;
  /// Of the last two.
  std::string why;
};

bool is_link(const fs::path& path) {
  std::error_code failure;
  return fs::is_symlink(fs::symlink_status(path, failure));
}

/// Its provenance.json, or null: without one nobody can tell what wrote the directory.
nlohmann::ordered_json provenance_of_export(const fs::path& out) {
  const fs::path file = out / kProvenance;
  if (is_link(out) || !directory_exists(out) || !file_exists(file)) return nullptr;
  nlohmann::ordered_json facts = nlohmann::ordered_json::parse(read_file(file), nullptr, false);
  const bool usable = facts.is_object() && facts.contains("files") && facts["files"].is_object();
  return usable ? facts : nlohmann::ordered_json(nullptr);
}

/// Compares an export's files with the hashes that were written with it.
struct FilesOfExport {
  std::string missing, changed, added;  // the first of each

  FilesOfExport(const fs::path& out, const nlohmann::ordered_json& hashes) {
    for (const auto& [name, hash] : hashes.items()) {
      if (!file_exists(out / name)) {
        if (missing.empty()) missing = name;
      } else if (changed.empty() && sha256_of_file(out / name) != hash) {
        changed = name;
      }
    }
    look_for_others(out, "", hashes);
  }

  void look_for_others(const fs::path& directory, const std::string& prefix,
                       const nlohmann::ordered_json& hashes) {
    for (const fs::path& entry : list_directory(directory)) {
      const std::string name = prefix + entry.filename().string();
      if (directory_exists(entry) && !is_link(entry))
        look_for_others(entry, name + "/", hashes);
      else if (name != kProvenance && !hashes.contains(name) && added.empty())
        added = name;
    }
  }
};

/// The key of the refit that a provenance.json tells of; empty where there is none.
std::string refit_key(const nlohmann::ordered_json& provenance) {
  if (!provenance.contains("refit") || !provenance["refit"].is_object()) return "";
  return provenance["refit"].value("key", "");
}

/// What an export is to hold.
struct Wanted {
  ExportFormat format;
  /// Of the plan; empty before the end, when nothing is current.
  std::string digest;
  std::string refit_key;
};

/// Empty when the whole export in `out` holds this plan in this form, else what it holds.
std::string other_content(const fs::path& out, const Wanted& wanted,
                          const std::string& their_refit) {
  const auto& [format, digest, key] = wanted;
  const fs::path file = out / "config.json";
  const nlohmann::ordered_json config = parse_json(read_file(file), file.string());
  const std::string theirs = config.value("espalier_plan_digest", "");
  if (theirs != digest)
    return fmt::format("it holds the plan {}, this run's is {}", theirs.substr(0, 16),
                       digest.substr(0, 16));
  if (their_refit != key)
    return their_refit.empty() ? "its matrices are not refitted"
           : key.empty()       ? "its matrices are refitted"
                               : "its matrices are of another refit";
  const bool exact = config.contains("espalier");
  if (exact == (format == ExportFormat::exact)) return "";
  return fmt::format("it is of the form {}", exact ? "exact" : "uniform");
}

/// Without a plan, which is not known before the end, nothing is current.
Standing look_at(const fs::path& out, const RunDirectory& run, const Wanted& wanted) {
  using Kind = Standing::Kind;
  const nlohmann::ordered_json facts = provenance_of_export(out);
  if (facts.is_null()) return {Kind::kept, "it is no export that espalier wrote"};
  const FilesOfExport files(out, facts["files"]);
  if (!files.changed.empty())
    return {Kind::kept, fmt::format("its {} is not what was written there", files.changed)};
  std::string why = fmt::format("its {} is missing", files.missing);
  if (files.missing.empty()) {
    why = wanted.digest.empty() ? "it is of an earlier plan"
                                : other_content(out, wanted, refit_key(facts));
    if (why.empty()) return {Kind::current, ""};
  }
  if (!run.holds(out)) return {Kind::kept, why + ", and it lies outside the run directory"};
  if (facts.value("run", "") != run.identity())
    return {Kind::kept, why + ", and another run wrote it"};
  if (!files.added.empty())
    return {Kind::kept, fmt::format("{}, and its {} was added by others", why, files.added)};
  return {Kind::replaceable, why};
}

Standing standing_at(const fs::path& out, const RunDirectory& run, const Wanted& wanted) {
  if (!name_exists(out)) return {};
  try {
    return look_at(out, run, wanted);
  } catch (const Error& error) {
    return {Standing::Kind::kept, fmt::format("it cannot be read ({})", error.what())};
  } catch (const nlohmann::json::exception&) {
    return {Standing::Kind::kept, "its config.json or provenance.json is not one of an export"};
  }
}

void add_refusal(Problems& problems, const fs::path& out, const std::string& why) {
  problems.add(ExitCode::cannot_create, "the place of an export is taken", why,
               "Remove it or move it away and give the same command again, or name another path "
               "under export.",
               out.string());
}

/// Whether `inner` is `outer` or lies below it.
bool is_within(const fs::path& inner, const fs::path& outer) {
  return (inner.string() + "/").starts_with(outer.string() + "/");
}

/// A directory must be possible there; the last part is made by the export itself.
void check_parents(Problems& problems, const fs::path& out) {
  fs::path parent = out.parent_path();
  while (!name_exists(parent) && parent.has_relative_path()) parent = parent.parent_path();
  if (!directory_exists(parent))
    problems.add(ExitCode::cannot_create, fmt::format("{} is no directory", parent.string()),
                 "an export is to lie below it", "Name another path for the export.", out.string());
  else if (::access(parent.c_str(), W_OK | X_OK) != 0)
    problems.add(ExitCode::permission, fmt::format("{} cannot be written", parent.string()),
                 std::strerror(errno), "Name another path for the export, or change its mode.",
                 out.string());
}

}  // namespace

void require_export_forms(const Source& source, const RunConfig& config) {
  if (config.prune.compensation == Compensation::none && !source.config.output_bias) return;
  for (const ExportConfig& target : config.exports)
    if (target.format == ExportFormat::uniform) require_output_biases(source.config.family);
}

void require_export_places(const RunDirectory& run, const RunConfig& config, Ahead ahead) {
  Problems problems;
  std::vector<fs::path> places;
  for (const ExportConfig& target : config.exports) {
    const fs::path out = run.place_of(target);
    for (const fs::path& other : places)
      if (is_within(out, other) || is_within(other, out))
        problems.add(ExitCode::config, fmt::format("two exports go to {}", out.string()),
                     fmt::format("{} is another's", other.string()),
                     "Give every export a directory of its own.");
    places.push_back(out);
    if (is_within(run.path(), out))
      problems.add(ExitCode::config, fmt::format("an export goes to {}", out.string()),
                   "the run directory lies there", "Give the export a directory of its own.");
    check_parents(problems, out);
    if (ahead == Ahead::exports) continue;  // it may be what this run wrote
    const Standing standing = standing_at(out, run, {target.format, "", ""});
    if (standing.kind == Standing::Kind::kept) add_refusal(problems, out, standing.why);
  }
  problems.throw_if_any();
}

void write_run_export(const Source& source, const PruneRules& rules, const RunDirectory& run,
                      const ExportConfig& target, ExportFacts facts) {
  const fs::path out = run.place_of(target);
  run.sweep_unfinished_export(out);
  const Standing standing =
      standing_at(out, run,
                  {target.format, facts.plan.digest(),
                   facts.refit ? facts.refit->record.at("key").get<std::string>() : std::string()});
  if (standing.kind == Standing::Kind::current) {
    log::info("export {} is there already, whole and of this plan", out.string());
    return;
  }
  if (standing.kind == Standing::Kind::kept) {
    Problems problems;
    add_refusal(problems, out, standing.why);
    problems.throw_if_any();
  }
  facts.replace = standing.kind == Standing::Kind::replaceable;
  if (facts.replace) log::info("export {} is written anew: {}", out.string(), standing.why);
  for (const std::string& note : export_plan(source, rules, target.format, out, facts).notes)
    log::info("{}", note);
}

}  // namespace espalier
