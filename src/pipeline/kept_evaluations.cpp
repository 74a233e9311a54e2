#include "espalier/pipeline/kept_evaluations.h"

#include <algorithm>
#include <utility>

#include "espalier/comm/agreement.h"
#include "espalier/core/error.h"
#include "espalier/core/fault.h"
#include "espalier/core/json.h"
#include "espalier/core/log.h"
#include "espalier/core/text.h"
#include "espalier/store/files.h"

namespace espalier {
namespace {

using Json = nlohmann::ordered_json;

std::string part_of(const Evaluation& evaluation) { return "evaluation/" + evaluation.name(); }

/// Those of the inputs whose part begins so.
Inputs some_of(const Inputs& inputs, const std::string& begin) {
  Inputs some;
  for (const auto& [part, print] : inputs)
    if (part.starts_with(begin)) some.emplace(part, print);
  return some;
}

bool is_same(const Inputs& before, const Inputs& now) {
  if (before.empty() || before.size() != now.size()) return false;
  return std::all_of(now.begin(), now.end(), [&](const auto& entry) {
    const auto it = before.find(entry.first);
    if (it == before.end()) return false;
    const Likeness likeness = compare(it->second, entry.second);
    return likeness == Likeness::same_content || likeness == Likeness::same_facts;
  });
}

Json to_json(const TaskOutcome& outcome) {
  return {{"results", results_of({outcome})}, {"facts", outcome.facts}};
}

TaskOutcome outcome_from(const Json& json, const Evaluation& evaluation) {
  TaskOutcome outcome{evaluation.kind(), evaluation.name(), {}, json.at("facts"), {}};
  for (const Json& result : json.at("results")) {
    std::optional<double> error;
    if (!result.at("stderr").is_null()) error = result.at("stderr").get<double>();
    outcome.results.push_back(
        {result.at("task"), result.at("metric"), result.at("value"), error, result.at("n")});
  }
  return outcome;
}

KeptEvaluation kept_from(const Json& entry, const Evaluation& evaluation) {
  KeptEvaluation kept;
  if (!entry.at("outcome").is_null()) kept.outcome = outcome_from(entry.at("outcome"), evaluation);
  kept.rows = {entry.at("done"), entry.at("values").get<std::vector<double>>()};
  return kept;
}

}  // namespace

KeptEvaluations::KeptEvaluations(Communicator& world,
                                 std::optional<std::filesystem::path> directory,
                                 const EvaluatedState& state, const Inputs& inputs)
    : world_(&world),
      state_{{"iteration", state.iteration},
             {"plan_digest", state.plan_digest},
             {"dtype", state.dtype}},
      inputs_(&inputs) {
  if (directory) file_ = file_in(*directory);
  together(world, "evaluate", [&] { read(); });
}

void KeptEvaluations::read() {
  if (!file_ || !path_exists(*file_)) return;
  try {
    const Json found = parse_json(read_file(*file_), file_->string());
    const Inputs model = inputs_from_json(found.at("model"), file_->string());
    if (found.at("schema") == 1 && found.at("state") == state_ &&
        is_same(model, some_of(*inputs_, "model/")) && found.at("evaluations").is_object()) {
      entries_ = found.at("evaluations");
      return;
    }
  } catch (const Error& error) {
    log::warning("{} is not used: {}", file_->string(), error.what());
  } catch (const Json::exception&) {
    log::warning("{} is not used: members are missing", file_->string());
  }
  remove_file(*file_);
}

Inputs KeptEvaluations::file_of(const Evaluation& evaluation) const {
  Inputs file;
  if (const auto it = inputs_->find(part_of(evaluation)); it != inputs_->end()) file.insert(*it);
  return file;
}

bool KeptEvaluations::has(const Evaluation& evaluation) const {
  if (!file_ || !entries_.contains(evaluation.name())) return false;
  const Json& entry = entries_.at(evaluation.name());
  try {
    static_cast<void>(kept_from(entry, evaluation));
    return entry.at("kind") == evaluation.kind() && entry.at("settings") == evaluation.settings() &&
           is_same(inputs_from_json(entry.at("inputs"), file_->string()), file_of(evaluation));
  } catch (const Error&) {
  } catch (const Json::exception&) {
    // Spoilt by hand: it is measured again.
  }
  return false;
}

KeptEvaluation KeptEvaluations::recall(const Evaluation& evaluation) const {
  std::string text;
  together(*world_, "evaluate", [&] {
    if (has(evaluation)) text = json_text(entries_.at(evaluation.name()));
  });
  text = world_->broadcast_text(text, 0);
  KeptEvaluation kept;
  if (text.empty()) return kept;
  together(*world_, "evaluate", [&] { kept = kept_from(Json::parse(text), evaluation); });
  if (file_)
    log::info(
        "resume   evaluation {}: {}", line_text(evaluation.name()),
        kept.outcome ? "was finished before" : counted(kept.rows.done, "row") + " done before");
  return kept;
}

void KeptEvaluations::keep(const Evaluation& evaluation, const KeptEvaluation& kept) {
  together(*world_, "evaluate", [&] {
    if (!file_) return;
    Json entry{{"kind", evaluation.kind()},
               {"settings", evaluation.settings()},
               {"inputs", espalier::to_json(file_of(evaluation))},
               {"outcome", nullptr}};
    if (kept.outcome) entry["outcome"] = to_json(*kept.outcome);
    entry["done"] = kept.rows.done;
    entry["values"] = kept.rows.values;
    entries_[evaluation.name()] = std::move(entry);
    const Json all{{"schema", 1},
                   {"state", state_},
                   {"model", espalier::to_json(some_of(*inputs_, "model/"))},
                   {"evaluations", entries_}};
    replace_file(*file_, json_text(all) + "\n");
  });
  fault::hit("evaluate.kept");
}

EvaluationKeeper KeptEvaluations::keeper() {
  return {
      [this](const Evaluation& evaluation) { return recall(evaluation); },
      [this](const Evaluation& evaluation, const KeptEvaluation& kept) { keep(evaluation, kept); }};
}

}  // namespace espalier
