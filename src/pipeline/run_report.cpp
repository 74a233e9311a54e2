#include "espalier/pipeline/run_report.h"

#include <algorithm>
#include <cmath>
#include <ctime>
#include <limits>
#include <map>
#include <string_view>

#include <fmt/chrono.h>
#include <fmt/format.h>

#include "espalier/calib/calibration.h"
#include "espalier/core/error.h"
#include "espalier/core/fault.h"
#include "espalier/core/json.h"
#include "espalier/core/log.h"
#include "espalier/core/text.h"
#include "espalier/core/version.h"
#include "espalier/pipeline/refit_summary.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;

std::string count_text(std::int64_t n) {
  const auto value = static_cast<double>(n);
  if (n >= 1'000'000'000) return fmt::format("{:.2f} B", value / 1e9);
  if (n >= 1'000'000) return fmt::format("{:.2f} M", value / 1e6);
  if (n >= 10'000) return fmt::format("{:.1f} k", value / 1e3);
  return fmt::format("{}", n);
}

/// A share of items that were right, as a line of metrics.jsonl has it.
struct Accuracy {
  std::string name;
  std::string metric;
  double value = 0;
};

std::vector<Accuracy> accuracies(const nlohmann::ordered_json& row) {
  std::vector<Accuracy> all;
  for (const char* kind : {"multiple_choice", "exact_match"})
    if (row.contains(kind))
      for (const auto& [name, facts] : row.at(kind).items())
        for (const char* metric : {"acc", "acc_norm", "strict", "flexible"})
          if (facts.contains(metric)) all.push_back({name, metric, facts.at(metric).get<double>()});
  return all;
}

/// What was removed has a minus, nothing has none.
std::string removed(const nlohmann::ordered_json& row, const char* field) {
  const std::string text = percent(row.at(field).get<double>());
  return text == "0.0%" ? text : "-" + text;
}

}  // namespace

const char* measure_text(Measure measure) {
  switch (measure) {
    case Measure::structures:
      return "structures";
    case Measure::parameters:
      return "decoder parameters";
    case Measure::total_parameters:
      return "all parameters";
  }
  return "?";
}

const char* measure_key(Measure measure) {
  switch (measure) {
    case Measure::structures:
      return "structures";
    case Measure::parameters:
      return "parameters";
    case Measure::total_parameters:
      return "total_parameters";
  }
  return "";
}

std::string model_text(const ModelConfig& m, const ModelWidths& widths) {
  return fmt::format("{}, {}, hidden {}, {} query / {} of {}, {}, vocabulary {}, {} parameters",
                     name_of(m.family), counted(m.layers, "layer"), m.hidden, m.heads,
                     counted(m.kv_heads, "KV head"), m.head_dim, counted(m.channels, "channel"),
                     m.vocabulary, count_text(count_parameters(m, widths).total));
}

std::string target_text(const PruneConfig& prune, const PruneRules& rules) {
  const auto kept = std::count(rules.protected_layer.begin(), rules.protected_layer.end(), true);
  const char* kinds = rules.attention ? (rules.mlp ? "heads and channels" : "heads") : "channels";
  std::string text = fmt::format(
      "{} of {}{} in {}; {} protected", percent(prune.target.value()), measure_text(prune.measure),
      prune.measure == Measure::structures ? fmt::format(" ({})", kinds) : "",
      counted(prune.iterations, "iteration"), counted(kept, "layer"));
  if (rules.width_multiple > 1)
    text += fmt::format("; channels in multiples of {}", rules.width_multiple);
  return text;
}

void print_start(const Source& source, const RunConfig& config, const PruneRules& rules,
                 const PruningPlan& plan, std::int64_t base_iteration, const ProcessGrid& grid,
                 const ComputeOptions& options, const std::string& sums,
                 const RunDirectory& directory) {
  const ModelConfig& m = source.config;
  log::info("espalier {} ({})", version(), git_hash());
  if (fault::armed()) log::warning("fault injection is armed: {}", fault::specification());
  log::info("model    {}: {}", source.reader.directory().string(), model_text(m, source.widths));
  for (const std::string& note : source.notes) log::info("note     {}", note);
  for (const std::string& warning : source.warnings) log::warning("model    {}", warning);
  log::info("target   {}", target_text(config.prune, rules));
  log::info("layout   {} = tensor {} x data {}, {}, {}", counted(grid.world().size(), "rank"),
            grid.tensor_size(), grid.data_size(), device_name(options),
            at::toString(options.dtype));
  if (grid.world().size() > 1) log::info("sums     of tensors over {}", sums);
  for (const DomainConfig& domain : config.calibration.domains) {
    const TokenFile file =
        TokenFile::open(domain.tokens, m.vocabulary, counting_of(domain.objective));
    const bool items = domain.objective == Objective::margin;
    const std::int64_t all = items ? file.options().items() : file.rows();
    log::info("domain   {}: {} of up to {}, weight {}, {}", domain.name,
              counted(domain.sequences.value_or(all), items ? "item" : "sequence"),
              counted(file.sequence_tokens(), "token"), domain.weight, name_of(domain.objective));
  }
  if (directory.start())
    log::info("resume   {} (verified), continuing with iteration {}",
              CommitStore::directory_name(plan.iteration), plan.iteration + 1);
  if (directory.paused_pass())
    log::info("resume   iteration {} in the middle of its pass", plan.iteration + 1);
  if (!directory.start() && !directory.paused_pass())
    log::info("start    at iteration {}, in {}", base_iteration + 1, directory.path().string());
}

namespace {

constexpr int kRowsPerHeader = 20;
constexpr const char* kColumns =
    "{:>7} {:>7} {:>7} {:>6} {:>6} {:<12} {:>5} {:>6} {:>7} {:>6} {:>5} {:>7} {:>7}";

/// "14:05" of today, "14:05+2" of the day after tomorrow.
std::string clock_in(double seconds) {
  const std::time_t now = std::time(nullptr);
  const std::tm end = fmt::localtime(now + static_cast<std::time_t>(seconds));
  const std::tm today = fmt::localtime(now);
  const auto day = [](std::tm time) {
    time.tm_hour = 12;  // whatever the clocks do at night
    time.tm_min = time.tm_sec = 0;
    return std::mktime(&time) / 86400;
  };
  const auto days = day(end) - day(today);
  return fmt::format("{:%H:%M}", end) + (days > 0 ? fmt::format("+{}", days) : "");
}

/// Mean and highest loss, the latter with its domain.
std::pair<std::string, std::string> losses_of(const nlohmann::ordered_json& row) {
  double sum = 0, worst = -std::numeric_limits<double>::infinity();
  std::string name;
  for (const auto& [domain, loss] : row.at("loss").items()) {
    sum += loss.get<double>();
    if (loss.get<double>() <= worst) continue;
    worst = loss.get<double>();
    name = domain;
  }
  if (name.empty()) return {};
  return {fmt::format("{:.4g}", sum / static_cast<double>(row.at("loss").size())),
          fmt::format("{:.4g} {}", worst, one_line(name).substr(0, 5))};
}

}  // namespace

std::string table_row(const nlohmann::ordered_json& row, std::int64_t last, std::int64_t base,
                      std::optional<double> eta) {
  const auto i = row.at("iteration").get<std::int64_t>();
  const auto [mean, worst] = losses_of(row);
  std::string time, speed, memory, left, end;
  if (row.contains("seconds_iteration")) {
    const double scoring = std::max(row.at("seconds").value("calibrate", 0.0), 1e-9);
    time = duration(row.at("seconds_iteration").get<double>());
    speed = fmt::format(
        "{:.0f}", (row.at("tokens").get<double>() - row.value("continued_tokens", 0.0)) / scoring);
    memory = fmt::format("{:.1f}", row.at("peak_bytes").get<double>() / 1073741824.0);
  }
  if (eta) {
    left = duration(*eta);
    end = clock_in(*eta);
  }
  std::string text = fmt::format(
      fmt::runtime(kColumns), fmt::format("{}/{}", i - base, last - base),
      removed(row, "sparsity_structures"), removed(row, "sparsity_parameters"),
      removed(row, "sparsity_total_parameters"), mean, worst, json_text(row.at("heads_kept")),
      count_text(row.at("channels_kept").get<std::int64_t>()), time, speed, memory, left, end);
  if (!row.at("perplexity").empty()) text += "\n        perplexity";
  for (const auto& [name, value] : row.at("perplexity").items())
    text += fmt::format("  {} {:.3f}", one_line(name), value.get<double>());
  const std::vector<Accuracy> shares = accuracies(row);
  if (!shares.empty()) text += "\n        right     ";
  for (const Accuracy& share : shares)
    text += fmt::format("  {} {} {:.3f}", one_line(share.name), share.metric, share.value);
  return text;
}

std::string table_header() {
  return fmt::format(fmt::runtime(kColumns), "iter", "structs", "decoder", "all", "loss", "worst",
                     "heads", "chans", "time", "tok/s", "GiB", "eta", "end");
}

namespace {

std::string table_rows(const nlohmann::ordered_json& row, std::int64_t last, std::int64_t base,
                       std::optional<double> eta) {
  static int rows = 0;
  const std::string text = table_row(row, last, base, eta);
  return rows++ % kRowsPerHeader == 0 ? table_header() + "\n" + text : text;
}

}  // namespace

std::optional<double> print_iteration(const nlohmann::ordered_json& row, std::int64_t last,
                                      std::int64_t base) {
  const auto i = row.at("iteration").get<std::int64_t>();
  std::string line =
      fmt::format("iter {}/{} structures {} decoder {} all {}", i - base, last - base,
                  removed(row, "sparsity_structures"), removed(row, "sparsity_parameters"),
                  removed(row, "sparsity_total_parameters"));
  for (const auto& [name, loss] : row.at("loss").items())
    line += fmt::format(" loss[{}] {:.4f}", name, loss.get<double>());
  for (const auto& [name, value] : row.at("perplexity").items())
    line += fmt::format(" ppl[{}] {:.3f}", name, value.get<double>());
  for (const Accuracy& share : accuracies(row))
    line += fmt::format(" {}[{}] {:.3f}", share.metric, share.name, share.value);
  line += fmt::format(" heads {} ch {}", json_text(row.at("heads_kept")),
                      count_text(row.at("channels_kept").get<std::int64_t>()));
  std::optional<double> eta;
  if (row.contains("seconds_iteration")) {
    const auto seconds = row.at("seconds_iteration").get<double>();
    const double scoring = std::max(row.at("seconds").value("calibrate", 0.0), 1e-9);
    eta = seconds * static_cast<double>(last - i);
    line +=
        fmt::format(" {:.2f} s ({:.0f} tok/s) mem {:.2f} GiB eta {}", seconds,
                    (row.at("tokens").get<double>() - row.value("continued_tokens", 0.0)) / scoring,
                    row.at("peak_bytes").get<double>() / 1073741824.0, duration(*eta));
  }
  log::write(log::Level::info, line, log::has_terminal() ? table_rows(row, last, base, eta) : "");
  return eta;
}

namespace {

/// Tokens of the file's windows. The run is done: a file that is gone by now must not fail it, and
/// counts as 0.
std::int64_t window_of(const NamedTokens& data, std::int64_t vocabulary) {
  try {
    return TokenFile::open(data.tokens, vocabulary, Counting::loss_mask_if_present)
        .sequence_tokens();
  } catch (const Error&) {
    return 0;
  }
}

/// Perplexity of one evaluation at the first and the last state that was evaluated, and of the
/// refitted model where there is one.
struct Perplexity {
  std::string name;
  double before, after;
  std::optional<double> refitted;
  std::int64_t window;  // tokens
};

std::vector<Perplexity> perplexities(const std::vector<nlohmann::ordered_json>& rows,
                                     const std::optional<RefitSummary>& refit,
                                     const RunConfig& config, std::int64_t vocabulary) {
  const nlohmann::ordered_json *first = nullptr, *last = nullptr;
  for (const auto& row : rows) {
    if (row.at("perplexity").empty()) continue;
    if (first == nullptr) first = &row;
    last = &row;
  }
  std::vector<Perplexity> result;
  if (first == nullptr) return result;
  for (const NamedTokens& data : config.evaluation.perplexity) {
    const auto &before = first->at("perplexity"), &after = last->at("perplexity");
    if (!before.contains(data.name) || !after.contains(data.name)) continue;
    Perplexity p{data.name, before.at(data.name).get<double>(), after.at(data.name).get<double>(),
                 std::nullopt, window_of(data, vocabulary)};
    if (refit && refit->perplexity.contains(data.name))
      p.refitted = refit->perplexity.at(data.name);
    result.push_back(std::move(p));
  }
  return result;
}

/// "10.000 -> 13.000", and " -> 11.000 refitted" behind it where there is a refit.
std::string steps_text(double before, double after, const std::optional<double>& refitted) {
  return fmt::format("{:.3f} -> {:.3f}", before, after) +
         (refitted ? fmt::format(" -> {:.3f} refitted", *refitted) : "");
}

nlohmann::ordered_json steps_json(double before, double after,
                                  const std::optional<double>& refitted) {
  nlohmann::ordered_json steps{{"before", before}, {"after", after}};
  if (refitted) steps["refitted"] = *refitted;
  return steps;
}

constexpr const char* kMean = "geometric mean";

/// The geometric mean over several evaluations.
void add_mean_perplexity(log::Block& block, const std::vector<Perplexity>& all, int width) {
  if (all.size() < 2) return;
  std::map<std::string, double> before, after, refitted;
  for (const Perplexity& p : all) {
    before[p.name] = p.before;
    after[p.name] = p.after;
    if (p.refitted) refitted[p.name] = *p.refitted;
  }
  std::optional<double> last;
  if (refitted.size() == all.size()) last = geometric_mean(refitted);
  const double first = geometric_mean(before), pruned = geometric_mean(after);
  block.text +=
      fmt::format("  perplexity    {:<{}} {}\n", kMean, width, steps_text(first, pruned, last));
  block.facts["perplexity_geometric_mean"] = steps_json(first, pruned, last);
}

void add_perplexities(log::Block& block, const std::vector<Perplexity>& all) {
  // Where several lines follow, one of them is of their mean.
  std::size_t width = all.size() > 1 ? std::string_view(kMean).size() : 12;
  for (const Perplexity& p : all) width = std::max(width, p.name.size());
  for (const Perplexity& p : all) {
    const std::string windows =
        p.window > 0 ? fmt::format("   (windows of {})", counted(p.window, "token")) : "";
    block.text += fmt::format("  perplexity    {:<{}} {}{}\n", p.name, width,
                              steps_text(p.before, p.after, p.refitted), windows);
    nlohmann::ordered_json& facts = block.facts["perplexity"][p.name];
    facts = steps_json(p.before, p.after, p.refitted);
    facts["window_tokens"] = p.window;
  }
  add_mean_perplexity(block, all, static_cast<int>(width));
}

void add_refit(log::Block& block, const RefitSummary& refit) {
  block.text += fmt::format("  refit         {}\n", matrices_text(refit));
  block.facts["refit"] = {{"refitted", refit.refitted},
                          {"kept", refit.kept},
                          {"least_tokens_per_width", refit.least_tokens_per_width},
                          {"most_tokens_per_width", refit.most_tokens_per_width}};
}

/// The shares at the first and the last state that was evaluated, and of the refitted model.
void add_accuracies(log::Block& block, const std::vector<nlohmann::ordered_json>& rows,
                    const std::optional<RefitSummary>& refit) {
  std::vector<std::vector<Accuracy>> evaluated;
  for (const auto& row : rows)
    if (std::vector<Accuracy> shares = accuracies(row); !shares.empty())
      evaluated.push_back(std::move(shares));
  if (evaluated.empty()) return;
  std::vector<Accuracy> refitted;
  if (refit) refitted = accuracies(refit->record);
  const auto value_in = [](const std::vector<Accuracy>& shares,
                           const Accuracy& wanted) -> std::optional<double> {
    for (const Accuracy& share : shares)
      if (share.name == wanted.name && share.metric == wanted.metric) return share.value;
    return std::nullopt;
  };
  for (const Accuracy& after : evaluated.back()) {
    const std::optional<double> before = value_in(evaluated.front(), after);
    if (!before) continue;
    const std::optional<double> last = value_in(refitted, after);
    block.text += fmt::format("  right         {:<12} {}   ({})\n", after.name,
                              steps_text(*before, after.value, last), after.metric);
    block.facts["right"][after.name][after.metric] = steps_json(*before, after.value, last);
  }
}

std::map<std::string, double> seconds_of_phases(const std::vector<nlohmann::ordered_json>& rows,
                                                const std::optional<RefitSummary>& refit) {
  std::map<std::string, double> phases;
  if (refit) phases = refit->seconds;
  for (const auto& row : rows)
    for (const auto& [phase, value] : row.at("seconds").items())
      phases[phase] += value.get<double>();
  return phases;
}

/// What became of the forecast.
void add_memory(log::Block& block, const std::vector<nlohmann::ordered_json>& rows, int attempt,
                std::int64_t forecast_bytes) {
  std::int64_t peak = 0;
  for (const auto& row : rows)
    if (row.at("attempt").get<int>() == attempt)
      peak = std::max(peak, row.at("peak_bytes").get<std::int64_t>());
  if (forecast_bytes == 0 || peak == 0) return;
  constexpr double kGiB = 1073741824.0;
  block.text +=
      fmt::format("  memory        {:.2f} GiB a rank forecast, peak {:.2f} GiB\n",
                  static_cast<double>(forecast_bytes) / kGiB, static_cast<double>(peak) / kGiB);
  block.facts["memory"] = {{"forecast_bytes", forecast_bytes}, {"peak_bytes", peak}};
}

/// What multiples of channels cost, over all iterations.
void add_rounding(log::Block& block, const std::vector<nlohmann::ordered_json>& rows,
                  std::int64_t multiple) {
  double importance = 0, free = 0;
  for (const auto& row : rows) {
    if (!row.contains("rounding")) continue;
    importance += row.at("rounding").at("importance").get<double>();
    free += row.at("rounding").at("free_importance").get<double>();
  }
  if (free == 0) return;
  block.text += fmt::format(
      "  widths        channels in multiples of {}: {:+.2f}% importance removed, against single "
      "channels\n",
      multiple, 100 * (importance - free) / std::abs(free));
  block.facts["rounding"] = {
      {"multiple", multiple}, {"importance", importance}, {"free_importance", free}};
}

std::string export_lines(const ExportConfig& target, const fs::path& out) {
  return fmt::format(
      "  export        {0}\n"
      "  load it with  AutoModelForCausalLM.from_pretrained(\"{0}\"{1})\n",
      one_line(out.string()),
      target.format == ExportFormat::exact ? ", trust_remote_code=True" : "");
}

}  // namespace

void print_end(const Source& source, const RunConfig& config, const PruneRules& rules,
               const PruningPlan& plan, const RunDirectory& directory, double seconds,
               std::int64_t forecast_bytes) {
  const ParameterCount before = count_parameters(source.config, dense_widths(source.config));
  const ParameterCount after = count_parameters(source.config, widths_of(source.config, plan));
  const Sparsity sparsity = sparsity_of(source.config, rules, plan);
  const std::string path = directory.path().string();
  log::Block block{
      "done",
      fmt::format("\nDone in {}. Run directory: {}\n", duration(seconds), one_line(path)),
      {{"run_dir", utf8_text(path)},
       {"seconds", seconds},
       {"sparsity_structures", sparsity.structures},
       {"sparsity_parameters", sparsity.parameters},
       {"sparsity_total_parameters", sparsity.total_parameters},
       {"parameters", {{"before", before.total}, {"after", after.total}}},
       {"decoder_parameters", {{"before", before.decoder}, {"after", after.decoder}}}}};
  block.text += fmt::format(
      "  removed       {} of structures, {} of decoder parameters, {} of all parameters\n",
      percent(sparsity.structures), percent(sparsity.parameters),
      percent(sparsity.total_parameters));
  block.text +=
      fmt::format("  parameters    {} -> {} (decoder layers {} -> {})\n", count_text(before.total),
                  count_text(after.total), count_text(before.decoder), count_text(after.decoder));
  const std::vector<nlohmann::ordered_json> rows = directory.metrics();
  const std::optional<RefitSummary> refit = summary_of_refit(directory.path(), plan.digest());
  add_perplexities(block, perplexities(rows, refit, config, source.config.vocabulary));
  add_accuracies(block, rows, refit);
  if (refit) add_refit(block, *refit);
  add_rounding(block, rows, rules.width_multiple);
  block.text += "  seconds      ";
  for (const auto& [phase, value] : seconds_of_phases(rows, refit)) {
    block.text += fmt::format(" {} {:.1f}", phase, value);
    block.facts["seconds_in"][phase] = value;
  }
  block.text += "\n";
  add_memory(block, rows, directory.attempt(), forecast_bytes);
  for (const ExportConfig& target : config.exports) {
    const fs::path out = directory.place_of(target);
    block.text += export_lines(target, out);
    block.facts["exports"].push_back(utf8_text(out.string()));
  }
  // Rounded to what can be had.
  const double low = reached_target(source.config, rules, start_plan(source, plan.attention_unit));
  const double high = reached_target(source.config, rules, plan);
  block.text += fmt::format(
      "  smaller plans espalier export {} --sparsity X --out DIR   (any X {}up to {:.4f})\n",
      shell_word(path), low > 0 ? fmt::format("from {:.4f} ", std::ceil(low * 1e4) / 1e4) : "",
      std::floor(high * 1e4) / 1e4);
  log::write(log::Level::info, block, log::Stream::standard_output);
}

}  // namespace espalier
