#include <fmt/format.h>

#include "espalier/comm/process_grid.h"
#include "espalier/core/error.h"
#include "espalier/core/fault.h"
#include "espalier/core/log.h"
#include "espalier/core/paths.h"
#include "espalier/model/load.h"
#include "espalier/pipeline/collectives.h"
#include "espalier/pipeline/exporting.h"
#include "espalier/pipeline/family.h"
#include "espalier/pipeline/monitor.h"
#include "espalier/store/files.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;

/// Where the layers of an export's own refit wait until it is whole.
fs::path layers_beside(const fs::path& out) {
  fs::path path = absolute_path(out);
  path += ".refit";
  return path;
}

/// One export whose matrices are refitted first, by all ranks.
class RefittedExport {
 public:
  RefittedExport(CommRuntime& runtime, const RunConfig& config, const ExportRequest& request)
      : runtime_(runtime),
        config_(config),
        request_(request),
        grid_(runtime.world(), static_cast<int>(config.tensor)),
        monitor_(0) {}

  ExportOutcome run() {
    open();
    if (!is_made()) make();
    ExportOutcome outcome;
    together(world(), "export", [&] {
      if (grid_.is_root()) outcome = write();
    });
    return outcome;
  }

 private:
  Communicator& world() const { return grid_.world(); }

  void open() {
    together(world(), "open", [&] {
      if (name_exists(request_.out))
        throw Error(ExitCode::cannot_create, "the output exists already", "nothing is overwritten",
                    "Name another directory, or remove it.", request_.out.string());
      origin_.emplace(export_origin(request_));
      options_ = compute_options(config_, origin_->family.source, runtime_);
    });
    const std::string sums = connect_collectives(config_, options_, grid_);
    if (!grid_.is_root()) return;
    if (world().size() > 1) log::info("sums     of tensors over {}", sums);
    for (const std::string& note : origin_->family.source.notes) log::info("note: {}", note);
  }

  /// The run itself has finished a refit of this plan.
  bool is_made() {
    std::int64_t made = 0;
    together(world(), "open", [&] {
      if (!grid_.is_root() || !request_.may_reuse) return;
      refit_ = refit_of_run(request_.from, origin_->facts.plan, origin_->family.source.config);
      made = refit_ ? 1 : 0;
    });
    world().broadcast({&made, 1, DType::i64}, 0);
    if (made != 0 && grid_.is_root()) log::info("refit    that of the run is of this plan");
    return made != 0;
  }

  void make() {
    const PlanFamily& family = origin_->family;
    std::optional<Refitting> refitting;
    std::optional<RefitStore> store;
    const fs::path root = layers_beside(request_.out);
    together(world(), "refit", [&] {
      refitting.emplace(RefitSubject{config_,
                                     family.source,
                                     origin_->facts.plan,
                                     origin_->facts.means,
                                     family.base().iteration + 1,
                                     family.plan.iteration,
                                     {}},
                        options_.dtype);
      store.emplace(root / refitting->directory_name(), refitting->key());
      if (!grid_.is_root()) return;
      sweep_refits(root, refitting->directory_name());
      make_directories(store->directory());
    });
    std::int64_t sees = 0;
    together(world(), "refit", [&] { sees = directory_exists(store->directory()) ? 1 : 0; });
    const bool everywhere = world().min(sees) != 0;
    CausalLM model = load_without_layers();
    StreamedLayers layers(model, family.source.weights());
    monitor_.enter("refit");
    nlohmann::ordered_json record =
        refitting->apply({model, &layers}, &*store, everywhere, grid_, runtime_, monitor_.hooks());
    monitor_.leave();
    together(world(), "export", [&] {
      if (!grid_.is_root()) return;
      RefitParts parts = open_refit(store->directory(), refitting->key(), refitting->layers());
      refit_.emplace(ExportedRefit{std::move(record), std::move(parts)});
    });
  }

  /// No pass follows for which the layers should stay.
  CausalLM load_without_layers() {
    const Source& source = origin_->family.source;
    monitor_.enter("load");
    fault::hit("load.enter");
    std::optional<CausalLM> model;
    together(world(), "load", [&] {
      ModelLoader loader(source.config, widths_of(source.config, origin_->facts.plan),
                         source.weights(), options_, grid_.tensor_size(), grid_.tensor_index());
      loader.load(loader.steps() - 1);
      model = loader.take();
    });
    fault::hit("load.exit");
    return std::move(*model);
  }

  ExportOutcome write() {
    const PlanFamily& family = origin_->family;
    origin_->facts.refit = std::move(refit_);
    ExportOutcome outcome{
        export_plan(family.source, family.rules, request_.format, request_.out, origin_->facts),
        sparsity_of(family.source.config, family.rules, origin_->facts.plan)};
    const fs::path root = layers_beside(request_.out);
    if (name_exists(root)) remove_tree(root, WriteScope::refit);
    return outcome;
  }

  CommRuntime& runtime_;
  const RunConfig& config_;
  const ExportRequest& request_;
  ProcessGrid grid_;
  Monitor monitor_;
  std::optional<ExportOrigin> origin_;
  ComputeOptions options_;
  std::optional<ExportedRefit> refit_;  // rank 0
};

}  // namespace

ExportOutcome export_refitted(CommRuntime& runtime, const RunConfig& config,
                              const ExportRequest& request) {
  return RefittedExport(runtime, config, request).run();
}

}  // namespace espalier
