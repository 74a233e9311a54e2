#include "espalier/pipeline/refitting.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "espalier/core/error.h"
#include "espalier/core/hash.h"
#include "espalier/core/json.h"
#include "espalier/core/log.h"
#include "espalier/core/paths.h"
#include "espalier/core/text.h"
#include "espalier/export/export_model.h"
#include "espalier/model/memory.h"
#include "espalier/model/tensor_ops.h"
#include "espalier/pipeline/memory_forecast.h"
#include "espalier/pipeline/metrics_row.h"
#include "espalier/pipeline/refit_summary.h"
#include "espalier/pipeline/run_directory.h"
#include "espalier/store/files.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr UnitKind kHalves[] = {UnitKind::attention, UnitKind::mlp};

Json settings_json(const RefitConfig& config) {
  return {{"matrices", name_of(config.matrices)},
          {"ridge", config.ridge ? Json(*config.ridge) : Json("auto")},
          {"shrink_to", name_of(config.shrink_to)}};
}

/// The rows that the scores were taken on.
Calibration::RowsOfFiles scored_rows(const RefitSubject& subject) {
  Calibration::RowsOfFiles taken;
  const CalibrationConfig& calibration = subject.config.calibration;
  const std::int64_t last = calibration.resample ? subject.last_iteration : subject.first_iteration;
  if (subject.last_iteration < subject.first_iteration) return taken;
  for (std::int64_t i = subject.first_iteration; i <= last; ++i)
    for (const auto& [file, rows] :
         Calibration::draw(calibration, i, subject.source.config.vocabulary).rows_of_files())
      taken[file].insert(rows.begin(), rows.end());
  return taken;
}

std::string identity(const Fingerprint& print) {
  return print.content_sha256.empty() ? fmt::format("{}-{}", print.head_sha256, print.bytes)
                                      : print.content_sha256;
}

std::string identity_of(const RefitSubject& subject, const std::string& part,
                        const fs::path& file) {
  const auto known = subject.inputs.find(part);
  return identity(known == subject.inputs.end() ? quick_fingerprint(file) : known->second);
}

std::string rows_sha256(const DomainDraw& domain) {
  return sha256_hex(std::as_bytes(std::span(domain.rows)));
}

Json key_facts(const RefitSubject& subject, const RefitConfig& settings, const Calibration& data,
               at::ScalarType dtype) {
  Json facts{{"plan_digest", subject.plan.digest()},
             {"means", subject.means ? Json(subject.means->digest()) : Json()},
             {"settings", settings_json(settings)},
             {"dtype", std::string(torch_name(to_dtype(dtype)))},
             {"domains", Json::array()},
             {"model", Json::array()}};
  const char* prefix = subject.config.refit.domains ? "refit/" : "calibration/";
  for (std::size_t d = 0; d < data.domains().size(); ++d) {
    const DomainDraw& domain = data.domains()[d];
    facts["domains"].push_back(
        {{"name", utf8_text(domain.name)},
         {"weight", domain.weight},
         {"objective", name_of(domain.objective)},
         {"file", identity_of(subject, prefix + domain.name, data.files()[d].path())},
         {"rows", rows_sha256(domain)}});
  }
  for (const auto& [part, file] : model_files(subject.source))
    facts["model"].push_back(identity_of(subject, part, file));
  return facts;
}

TensorRole bias_role(UnitKind kind) {
  return kind == UnitKind::attention ? TensorRole::o_bias : TensorRole::down_bias;
}

/// The layer's biases that stand for what fell, as the export has them.
void install_biases(CausalLM& model, const RefitSubject& subject, const ModelWidths& kept,
                    std::int64_t layer) {
  const Source& source = subject.source;
  for (const UnitKind kind : kHalves) {
    const std::vector<double> bias = exported_bias(source.reader, source.config, source.widths,
                                                   kept, layer, kind, *subject.means);
    model.layer(layer).by_role(bias_role(kind)) =
        at::tensor(bias, at::kDouble).to(model.options().device, model.options().dtype);
  }
}

/// The parts of a layer that are not the source's after the refit.
std::vector<TensorRole> changed_roles(const ModelConfig& config, const RefittedLayer& layer,
                                      bool biases) {
  std::vector<TensorRole> roles;
  for (const TensorSpec& spec : layer_tensors(config, static_cast<int>(layer.layer)))
    if (layer.matrices.contains(spec.name)) roles.push_back(spec.role);
  if (biases)
    for (const UnitKind kind : kHalves) roles.push_back(bias_role(kind));
  return roles;
}

/// Of a data rank's micro-batches, padding included.
std::int64_t stream_tokens(const Calibration& data, std::int64_t data_ranks) {
  std::int64_t tokens = 0;
  for (const MicroBatch& batch : data.micro_batches())
    tokens += static_cast<std::int64_t>(batch.places.size()) *
              data.files()[batch.domain].sequence_tokens();
  return (tokens + data_ranks - 1) / data_ranks;
}

/// Of all domains, no padding.
std::int64_t real_tokens(const Calibration& data) {
  std::int64_t tokens = 0;
  for (std::size_t d = 0; d < data.domains().size(); ++d) tokens += data.real_tokens(d);
  return tokens;
}

void require_refit_memory(const RefitNeed& need, const ComputeOptions& options,
                          const CommRuntime& runtime) {
  const std::int64_t available =
      available_memory(options.device) / ranks_on_device(options.device, runtime);
  if (available <= 0 || need.beside() <= available) return;
  const char* order =
      need.pruned_layer > 0
          ? ""
          : "execution.order: layer_major, which holds one layer of the pruned model, ";
  throw Error(ExitCode::unsuitable, fmt::format("the refit needs {}", refit_text(need)),
              fmt::format("{:.1f} GiB are available", static_cast<double>(available) / (1 << 30)),
              fmt::format("Use {}fewer ranks per node, fewer refit.sequences where the streams are "
                          "large, or leave the refit out (refit.enabled: false).",
                          order));
}

/// Evaluations whose perplexity rose by more than what draws of the data differ by.
std::vector<std::string> made_worse(const Json& before, const Json& after) {
  constexpr double kSpread = 1.02;
  std::vector<std::string> worse;
  for (const auto& [name, value] : after.items())
    if (before.contains(name) && value.get<double>() > kSpread * before[name].get<double>())
      worse.push_back(name);
  return worse;
}

}  // namespace

Refitting::Refitting(const RefitSubject& subject, at::ScalarType dtype)
    : subject_(subject), settings_(subject.config.refit), dtype_(dtype) {
  const Calibration::RowsOfFiles taken = scored_rows(subject_);
  data_ = Calibration::draw_apart(refit_data(subject_.config), taken,
                                  subject_.source.config.vocabulary);
  for (std::size_t d = 0; d < data_.domains().size(); ++d) {
    const auto others = taken.find(data_.files()[d].path());
    const std::vector<std::int64_t>& rows = data_.domains()[d].rows;
    reused_.push_back(
        others == taken.end() ? 0 : std::count_if(rows.begin(), rows.end(), [&](std::int64_t row) {
          return others->second.contains(row);
        }));
  }
  kept_ = widths_of(subject_.source.config, subject_.plan);
  settings_.matrices =
      chosen_matrices(settings_.matrices, real_tokens(data_), subject_.source.config.hidden);
  key_ = sha256_hex(std::string_view(json_text(key_facts(subject_, settings_, data_, dtype_))));
}

std::string Refitting::directory_name() const {
  return fmt::format("{}-{}", subject_.plan.digest().substr(0, 16), key_.substr(0, 16));
}

void Refitting::tell() const {
  for (std::size_t d = 0; d < reused_.size(); ++d)
    if (reused_[d] > 0)
      log::warning(
          "refit    {} of the {} of domain '{}' were among those of the scores: {} has no others",
          reused_[d], counted(data_.domains()[d].rows.size(), "row"), data_.domains()[d].name,
          data_.files()[d].path().string());
}

Json Refitting::record(const RefitReport& report) const {
  Json record{{"schema", 1},
              {"plan_digest", subject_.plan.digest()},
              {"key", key_},
              {"directory", directory_name()},
              {"settings", settings_json(settings_)},
              {"tokens", report.tokens},
              {"domains", Json::array()},
              {"matrices", Json::object()},
              {"recalled_layers", report.recalled}};
  for (std::size_t d = 0; d < data_.domains().size(); ++d)
    record["domains"].push_back({{"name", utf8_text(data_.domains()[d].name)},
                                 {"rows", data_.domains()[d].rows.size()},
                                 {"rows_of_the_scores", reused_[d]}});
  const std::vector<MatrixFacts> matrices = each_matrix(report.facts);
  for (const RefitOutcome outcome :
       {RefitOutcome::refitted, RefitOutcome::obs, RefitOutcome::dense, RefitOutcome::empty})
    record["matrices"][espalier::name_of(outcome)] =
        std::count_if(matrices.begin(), matrices.end(),
                      [&](const MatrixFacts& facts) { return facts.outcome == outcome; });
  record["halves"] = Json::array();
  for (const RefitFacts& facts : report.facts) record["halves"].push_back(to_json(facts));
  return record;
}

RefitSteps Refitting::steps(const RefitTarget& target) const {
  CausalLM& model = target.model;
  StreamedLayers* const layers = target.layers;
  RefitSteps steps;
  steps.enter = [this, &model, layers](std::int64_t layer) {
    if (layers != nullptr) layers->hold(layer);
    if (subject_.means) install_biases(model, subject_, kept_, layer);
  };
  if (layers == nullptr) return steps;
  const bool is_read_again = !target.overlay.empty();
  steps.leave = [this, &model, layers, is_read_again](const RefittedLayer& layer) {
    if (is_read_again)
      layers->lay_over(layer.layer,
                       changed_roles(model.config(), layer, subject_.means.has_value()));
    layers->let_go();
  };
  return steps;
}

Json Refitting::apply(const RefitTarget& target, RefitStore* store, bool everywhere,
                      const ProcessGrid& grid, const CommRuntime& runtime,
                      const RoundHooks& hooks) {
  const ComputeOptions& options = target.model.options();
  together(grid.world(), "refit", [&] {
    if (target.layers != nullptr) target.layers->let_go();
    const RefitShape shape{.source = subject_.source.widths,
                           .kept = kept_,
                           .tensor = grid.tensor_size(),
                           .dtype = options.dtype,
                           .moments = settings_.shrink_to == ShrinkTo::obs,
                           .matrices = settings_.matrices,
                           .stream_tokens = stream_tokens(data_, grid.data_size()),
                           .layer_by_layer = target.layers != nullptr};
    require_refit_memory(refit_need(subject_.source.config, shape), options, runtime);
    if (!target.overlay.empty()) target.layers->begin_overlay(target.overlay);
    if (grid.is_root()) {
      tell();
      if (store != nullptr) store->prepare();
    }
  });
  RefitRequest request{settings_, subject_.source.weights(), kept_, {}, {}};
  request.steps = steps(target);
  request.keeper.everywhere = everywhere;
  if (store != nullptr) {
    request.keeper.recall = [store](std::int64_t layer) { return store->recall(layer); };
    request.keeper.keep = [store](const RefittedLayer& layer) { store->keep(layer); };
  }
  return record(refit(target.model, data_, request, grid, hooks));
}

Json finished_refit(const fs::path& run, const std::string& plan_digest) {
  const fs::path file = refit_record_in(run);
  if (!path_exists(file)) return nullptr;
  Json record = parse_json(read_file(file), file.string());
  const bool fits = record.is_object() && record.value("plan_digest", "") == plan_digest &&
                    record.contains("key") && record.contains("directory");
  return fits ? record : Json();
}

RefitRecords::RefitRecords(Communicator& world, RunDirectory* directory, const Refitting* refitting)
    : world_(world), directory_(directory) {
  together(world_, "refit", [&] {
    if (directory_ != nullptr) look(refitting);
  });
  std::int64_t done = finished_ ? 1 : 0;
  world_.broadcast({&done, 1, DType::i64}, 0);
  finished_ = done != 0;
  if (finished_ || refitting == nullptr) return;
  key_ = refitting->key();
  const std::string place = world_.broadcast_text(layers_.string(), 0);
  together(world_, "refit", [&] {
    layers_ = place;
    if (directory_ != nullptr) make_directories(layers_);
  });
  std::int64_t sees = 0;
  together(world_, "refit", [&] { sees = directory_exists(layers_) ? 1 : 0; });
  everywhere_ = world_.min(sees) != 0;
}

void RefitRecords::look(const Refitting* refitting) {
  directory_->require_lock();
  const fs::path& run = directory_->path();
  const std::string name = refitting == nullptr ? std::string() : refitting->directory_name();
  sweep_refits(refits_in(run), name);
  const fs::path file = refit_record_in(run);
  if (refitting == nullptr) return remove_file(file);
  layers_ = absolute_path(refits_in(run) / name);
  if (!path_exists(file)) return;
  const Json record = Json::parse(read_file(file), nullptr, false);
  if (!record.is_object() || record.value("key", "") != refitting->key()) return remove_file(file);
  try {
    open_refit(layers_, refitting->key(), refitting->layers());
    finished_ = true;
    log::info("refit    is there already, whole and of this plan");
  } catch (const Error& error) {
    if (!is_damage(error)) throw;
    log::warning("refit    is not whole, and made again where it is not: {}", error.what());
    remove_file(file);
  }
}

Json RefitRecords::apply(Refitting& refitting, const RefitTarget& target, const ProcessGrid& grid,
                         const CommRuntime& runtime, const RoundHooks& hooks) {
  RefitStore store(layers_, key_);
  return refitting.apply(target, &store, everywhere_, grid, runtime, hooks);
}

void RefitRecords::finish(Json record, const std::vector<TaskOutcome>& after,
                          const std::map<std::string, double>& seconds) const {
  directory_->require_lock();
  Json before = Json::object();
  for (const Json& row : directory_->metrics())
    if (!row.at("perplexity").empty()) before = row.at("perplexity");
  Json evaluated{{"perplexity", Json::object()}};
  add_evaluations(evaluated, after);
  record["perplexity_before"] = before;
  record.update(evaluated);
  record["seconds"] = seconds;
  replace_file(refit_record_in(directory_->path()), json_text(record, 2) + "\n");
  std::string text;
  for (const auto& [name, value] : record["perplexity"].items())
    text += fmt::format(
        ", {} {:.3f}{}", name, value.get<double>(),
        before.contains(name) ? fmt::format(" (before {:.3f})", before[name].get<double>()) : "");
  log::info("refit    {} of {} matrices refitted on {}{}",
            record["matrices"]["refitted"].get<std::int64_t>(), matrices_of(record).size(),
            counted(record["tokens"].get<std::int64_t>(), "token"),
            text.empty() ? "" : "; perplexity" + text.substr(1));
  if (const std::vector<std::string> worse = made_worse(before, record["perplexity"]);
      !worse.empty())
    log::warning(
        "refit    made the model worse on {}, as it may where it is fitted on other text, or on "
        "too little. "
        "Write the model without it ('espalier export RUN --no-refit'), or fit it on more rows of "
        "such text (refit.sequences, refit.domains)",
        fmt::join(worse, ", "));
}

std::optional<ExportedRefit> refit_of_run(const fs::path& run, const PruningPlan& plan,
                                          const ModelConfig& config) {
  Json record = finished_refit(run, plan.digest());
  if (record.is_null()) return std::nullopt;
  RefitParts parts = open_refit(refits_in(run) / record.at("directory").get<std::string>(),
                                record.at("key").get<std::string>(), config.layers);
  return ExportedRefit{std::move(record), std::move(parts)};
}

}  // namespace espalier
