#include "espalier/pipeline/verify.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/core/json.h"
#include "espalier/core/text.h"
#include "espalier/model/tensor_ops.h"
#include "espalier/pipeline/commit.h"
#include "espalier/pipeline/refitting.h"
#include "espalier/pipeline/run_directory.h"
#include "espalier/pipeline/source.h"
#include "espalier/prune/plan_scores.h"
#include "espalier/score/boundary_files.h"
#include "espalier/score/paused_pass.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;

constexpr const char* kDamaged =
    "Restore the commit from a copy, or remove it: a run then continues after the one before.";

std::string check_pass(const Commit& commit, const fs::path& path) {
  const PausedPass pass =
      read_sums(Hdf5Reader::from_image(commit.state, (path / "sums.h5").string()));
  if (pass.iteration != commit.iteration)
    throw Error(ExitCode::bad_content,
                fmt::format("the sums are of iteration {}, the manifest of {}", pass.iteration,
                            commit.iteration),
                "both are written together", kDamaged, path.string());
  std::string text = fmt::format("{}: sums after {}, {}", path.filename().string(),
                                 what_is_done(pass), counted(pass.tokens, "token"));
  if (!pass.finished || pass.micro_batches == 0) return text;
  const BoundaryFiles boundaries(path, pass.micro_batches);
  return text + fmt::format(", {:.1f} MiB between layers",
                            static_cast<double>(boundaries.bytes()) / (1 << 20));
}

RunConfig config_of_run(const fs::path& run) {
  const fs::path resolved = run / "config.resolved.yaml";
  if (!path_exists(resolved))
    throw Error(ExitCode::missing_input, "the run's config.resolved.yaml is missing",
                "it names the model",
                "Verify a commit inside its run directory, or put the file back.", run.string());
  return read_run_config(resolved, {}, ConfigUse::print);
}

std::string check_commit(const fs::path& path, const ModelConfig& config) {
  const Commit commit = read_commit(path);
  if (commit.kind == CommitKind::pass) return check_pass(commit, path);
  const Hdf5Reader file = Hdf5Reader::from_image(commit.state, (path / "state.h5").string());
  const PruningPlan plan = read_plan(file, "", config);
  if (plan.iteration != commit.iteration)
    throw Error(ExitCode::bad_content,
                fmt::format("the plan is of iteration {}, the manifest of {}", plan.iteration,
                            commit.iteration),
                "both are written together", kDamaged, path.string());
  if (commit.manifest.at("plan_digest").get<std::string>() != plan.digest())
    throw Error(ExitCode::bad_content, "the manifest names another plan digest",
                "both are written together", kDamaged, path.string());
  const ScoreTable scores = read_scores(file, "");
  const bool means = read_feature_means(file, "", config).has_value();
  require_scores_of(plan, scores);
  return fmt::format("{}: {} removed, {}, {}digest {}", path.filename().string(),
                     counted(plan.removed(), "unit"),
                     counted(scores.attention.score.size() + scores.mlp.score.size(), "score"),
                     means ? "means of what fell, " : "", plan.digest().substr(0, 16));
}

/// The refits that are there: every layer's hashes, and, of the finished one, that it is whole and
/// of the newest plan.
void check_refits(const fs::path& run, const ModelConfig& config, const std::string& newest,
                  Verification& result) {
  if (!path_exists(refits_in(run))) return;
  for (const fs::path& entry : list_directory(refits_in(run))) {
    if (entry.filename().string().starts_with(".")) continue;
    result.checked.push_back(
        fmt::format("refit {}: {}", entry.filename().string(),
                    counted(check_refit_layers(entry), "layer matches its hashes",
                            "layers match their hashes")));
  }
  if (!path_exists(refit_record_in(run))) return;
  const nlohmann::ordered_json record = finished_refit(run, newest);
  if (record.is_null()) {
    result.warnings.emplace_back(
        "refit.json is not of the newest plan (a run that refits makes it anew)");
    return;
  }
  const RefitParts parts = open_refit(refits_in(run) / record.at("directory").get<std::string>(),
                                      record.at("key").get<std::string>(), config.layers);
  result.checked.push_back(
      fmt::format("refit.json: {} refitted", counted(parts.matrices.size(), "matrix", "matrices")));
}

void collect(Problems& problems, const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    for (const Problem& problem : error.problems()) problems.add(problem);
  } catch (const nlohmann::json::exception& error) {
    problems.add(ExitCode::bad_content, "a manifest or metrics.jsonl is incomplete", error.what(),
                 kDamaged);
  }
}

/// Whether the run's model is still the one that it began with.
std::string check_model(const fs::path& run, const Commit& commit, Thoroughness thoroughness) {
  const Source source = open_source(model_of_run(config_of_run(run)));
  const std::string how = require_same_model(source, commit, thoroughness);
  return fmt::format("the model is the one that the run began with: {}", how);
}

Verification verify_run(const fs::path& path, Thoroughness how) {
  Verification result{"run directory", {}, {}};
  const ModelConfig config = read_model_config(model_of_run(config_of_run(path)));
  const CommitStore commits(path / "ckpt");
  Problems problems;
  std::optional<Commit> any;
  const std::vector<std::int64_t> iterations = commits.iterations();
  if (iterations.empty()) result.warnings.emplace_back("there is no commit yet");
  std::string newest;
  for (const std::int64_t iteration : iterations)
    collect(problems, [&] {
      const fs::path commit = path / "ckpt" / CommitStore::directory_name(iteration);
      result.checked.push_back(check_commit(commit, config));
      any = read_commit(commit);
      newest = any->manifest.at("plan_digest").get<std::string>();
    });
  for (const std::int64_t iteration : commits.iterations(CommitKind::pass))
    collect(problems, [&] {
      result.checked.push_back(check_commit(
          path / "ckpt" / CommitStore::directory_name(iteration, CommitKind::pass), config));
    });
  if (any) collect(problems, [&] { result.checked.push_back(check_model(path, *any, how)); });
  if (path_exists(path / "plan.h5"))
    collect(problems, [&] {
      const Hdf5Reader file = Hdf5Reader::open(path / "plan.h5");
      const PruningPlan plan = read_plan(file, "", config);
      read_feature_means(file, "", config);
      if (plan.digest() != newest)
        result.warnings.emplace_back(
            "plan.h5 is not that of the newest commit (a run rewrites it when it continues)");
      result.checked.push_back(fmt::format("plan.h5: iteration {}", plan.iteration));
    });
  collect(problems, [&] { check_refits(path, config, newest, result); });
  collect(problems, [&] {
    std::int64_t before = -1;
    for (const auto& row : read_metrics(path)) {
      const auto i = row.at("iteration").get<std::int64_t>();
      if (i <= before)
        throw Error(ExitCode::bad_content,
                    fmt::format("metrics.jsonl: iteration {} follows {}", i, before),
                    "each iteration has one line", "Remove the line that is there twice.");
      before = i;
    }
    result.checked.push_back(fmt::format("metrics.jsonl: up to iteration {}", before));
  });
  problems.throw_if_any();
  return result;
}

void check_export_hashes(const fs::path& path, Verification& result) {
  const fs::path file = path / "provenance.json";
  if (!path_exists(file)) return;
  const nlohmann::ordered_json provenance = parse_json(read_file(file), file.string());
  if (!provenance.contains("files")) return;
  Problems problems;
  for (const auto& [name, hash] : provenance.at("files").items()) {
    const fs::path named = path / bytes_of_text(name);
    if (!path_exists(named))
      problems.add(ExitCode::bad_content, "the file is missing", "provenance.json names it",
                   "Export the model again, or put the file back.", named.string());
    else if (sha256_of_file(named) != hash.get<std::string>())
      problems.add(ExitCode::bad_content, "the content does not match its hash in provenance.json",
                   "the file changed since the export", "Export the model again.", named.string());
  }
  problems.throw_if_any();
  result.kind = "exported model";
  result.checked.push_back(
      provenance.at("files").size() == 1
          ? "1 file matches its hash"
          : fmt::format("{} files match their hashes", provenance.at("files").size()));
}

void check_weights(const Source& source, Verification& result) {
  Problems problems;
  for (const TensorSpec& spec : tensor_catalog(source.config)) {
    const std::vector<std::int64_t> shape = shape_with(spec, source.config, source.widths);
    if (has_no_elements(shape)) continue;
    at::Tensor t = at::empty(
        shape, at::TensorOptions().dtype(to_scalar_type(source.reader.find(spec.name)->dtype)));
    source.reader.read(
        spec.name, IndexRuns::all(shape[0]), IndexRuns::all(shape.size() == 2 ? shape[1] : 1),
        {static_cast<std::byte*>(t.data_ptr()), static_cast<std::size_t>(t.nbytes())});
    if (!all_finite(t))
      problems.add(
          ExitCode::bad_content,
          fmt::format("NaN or infinity in tensor '{}' ({} of {})", spec.name,
                      counted(at::logical_not(at::isfinite(t)).sum().item<std::int64_t>(), "value"),
                      t.numel()),
          "a model of such weights computes nothing", "Take the checkpoint from its origin again.",
          source.reader.directory().string());
  }
  problems.throw_if_any();
  result.checked.emplace_back("every weight is finite");
}

Verification verify_model(const fs::path& path, Thoroughness how) {
  Verification result{"model", {}, {}};
  check_export_hashes(path, result);
  const Source source = open_source(path);
  result.warnings = source.notes;
  result.warnings.insert(result.warnings.end(), source.warnings.begin(), source.warnings.end());
  result.checked.push_back(
      fmt::format("names, shapes and dtypes of {} in {} are those that config.json promises",
                  counted(source.reader.tensors().size(), "tensor"),
                  counted(source.reader.files().size(), "file")));
  if (source.plan)
    result.checked.push_back("espalier_plan.h5 agrees with config.json, digest " +
                             source.plan->digest().substr(0, 16));
  if (how == Thoroughness::content) check_weights(source, result);
  return result;
}

}  // namespace

Verification verify_path(const fs::path& path, Thoroughness how) {
  if (!path_exists(path))
    throw Error(ExitCode::missing_input, "there is no such file or directory", {},
                "Name a run directory, a commit or a model directory.", path.string());
  if (is_run_directory(path)) return verify_run(path, how);
  if (is_commit(path)) {
    const fs::path run = run_of_commit(path);
    return {
        "commit", {check_commit(path, read_model_config(model_of_run(config_of_run(run))))}, {}};
  }
  if (path_exists(path / "config.json")) return verify_model(path, how);
  throw Error(
      ExitCode::missing_input, "there is nothing here that can be verified",
      "no config.resolved.yaml (run directory), MANIFEST.json (commit) or config.json (model)",
      "Name a run directory, a commit or a model directory.", path.string());
}

}  // namespace espalier
