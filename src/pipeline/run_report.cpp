#include "espalier/pipeline/run_report.h"

#include <algorithm>
#include <cstdio>
#include <map>

#include <fmt/format.h>

#include "espalier/calib/token_file.h"
#include "espalier/core/fault.h"
#include "espalier/core/log.h"
#include "espalier/core/version.h"

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

const char* name_of(Measure measure) {
  switch (measure) {
    case Measure::structures:
      return "structures (heads and channels)";
    case Measure::parameters:
      return "decoder parameters";
    case Measure::total_parameters:
      return "all parameters";
  }
  return "?";
}

std::string seconds_text(double seconds) {
  if (seconds < 120) return fmt::format("{:.1f} s", seconds);
  if (seconds < 7200) return fmt::format("{:.0f} min", seconds / 60);
  return fmt::format("{:.1f} h", seconds / 3600);
}

}  // namespace

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

void print_start(const Source& source, const RunConfig& config, const PruneRules& rules,
                 const PruningPlan& plan, std::int64_t base_iteration, const ProcessGrid& grid,
                 const ComputeOptions& options, const RunDirectory& directory) {
  const ModelConfig& m = source.config;
  log::info("espalier {} ({})", version(), git_hash());
  if (fault::armed()) log::warning("fault injection is armed: {}", fault::specification());
  log::info(
      "model    {}: {}, {} layers, hidden {}, {} query / {} KV heads of {}, {} channels, "
      "vocabulary {}, {} parameters",
      source.reader.directory().string(), name_of(m.family), m.layers, m.hidden, m.heads,
      m.kv_heads, m.head_dim, m.channels, m.vocabulary,
      count_text(count_parameters(m, source.widths).total));
  for (const std::string& note : source.notes) log::info("note     {}", note);
  for (const std::string& warning : source.warnings) log::warning("model    {}", warning);
  const auto kept = std::count(rules.protected_layer.begin(), rules.protected_layer.end(), true);
  log::info("target   {:.1f}% of {} in {} iterations; {} layers protected",
            100 * *config.prune.target, name_of(config.prune.measure), config.prune.iterations,
            kept);
  log::info("layout   {} ranks = tensor {} x data {}, {}, {}", grid.world().size(),
            grid.tensor_size(), grid.data_size(), device_name(options),
            at::toString(options.dtype));
  for (const DomainConfig& domain : config.calibration.domains) {
    const TokenFile file = TokenFile::open(domain.tokens, m.vocabulary);
    log::info("domain   {}: {} sequences of up to {} tokens, weight {}, {}", domain.name,
              domain.sequences.value_or(file.rows()), file.sequence_tokens(), domain.weight,
              domain.objective == Objective::sft ? "sft" : "causal_lm");
  }
  if (directory.start())
    log::info("resume   {} (verified), continuing with iteration {}",
              CommitStore::directory_name(plan.iteration), plan.iteration + 1);
  if (directory.paused_pass())
    log::info("resume   iteration {} in the middle of its pass", plan.iteration + 1);
  if (!directory.start() && !directory.paused_pass())
    log::info("start    at iteration {}, in {}", base_iteration + 1, directory.path().string());
}

double print_iteration(const nlohmann::ordered_json& row, std::int64_t last, std::int64_t base) {
  const auto i = row.at("iteration").get<std::int64_t>();
  std::string line = fmt::format("iter {}/{} structures -{:.1f}% parameters -{:.1f}%", i - base,
                                 last - base, 100 * row.at("sparsity_structures").get<double>(),
                                 100 * row.at("sparsity_total_parameters").get<double>());
  for (const auto& [name, loss] : row.at("loss").items())
    line += fmt::format(" loss[{}] {:.4f}", name, loss.get<double>());
  for (const auto& [name, value] : row.at("perplexity").items())
    line += fmt::format(" ppl[{}] {:.3f}", name, value.get<double>());
  line += fmt::format(" heads {} ch {}", row.at("heads_kept").dump(),
                      count_text(row.at("channels_kept").get<std::int64_t>()));
  double eta = -1;
  if (row.contains("seconds_iteration")) {
    const auto seconds = row.at("seconds_iteration").get<double>();
    const double scoring = std::max(row.at("seconds").value("calibrate", 0.0), 1e-9);
    eta = seconds * static_cast<double>(last - i);
    line +=
        fmt::format(" {:.2f} s ({:.0f} tok/s) mem {:.2f} GiB eta {}", seconds,
                    (row.at("tokens").get<double>() - row.value("continued_tokens", 0.0)) / scoring,
                    row.at("peak_bytes").get<double>() / 1073741824.0, seconds_text(eta));
  }
  log::info("{}", line);
  return eta;
}

void print_end(const Source& source, const RunConfig& config, const PruneRules& rules,
               const PruningPlan& plan, const RunDirectory& directory, double seconds) {
  const ParameterCount before = count_parameters(source.config, dense_widths(source.config));
  const ParameterCount after = count_parameters(source.config, widths_of(source.config, plan));
  const Sparsity sparsity = sparsity_of(source.config, rules, plan);
  std::string text = fmt::format("\nDone in {}. Run directory: {}\n", seconds_text(seconds),
                                 directory.path().string());
  text += fmt::format(
      "  removed       {:.1f}% of structures, {:.1f}% of decoder parameters, {:.1f}% of all "
      "parameters\n",
      100 * sparsity.structures, 100 * sparsity.parameters, 100 * sparsity.total_parameters);
  text +=
      fmt::format("  parameters    {} -> {} (decoder layers {} -> {})\n", count_text(before.total),
                  count_text(after.total), count_text(before.decoder), count_text(after.decoder));
  const std::vector<nlohmann::ordered_json> rows = directory.metrics();
  std::map<std::string, double> phases;
  const nlohmann::ordered_json *first = nullptr, *last = nullptr;
  for (const auto& row : rows) {
    for (const auto& [phase, value] : row.at("seconds").items())
      phases[phase] += value.get<double>();
    if (row.at("perplexity").empty()) continue;
    if (first == nullptr) first = &row;
    last = &row;
  }
  if (first != nullptr)
    for (const NamedTokens& data : config.evaluation.perplexity) {
      if (!first->at("perplexity").contains(data.name) ||
          !last->at("perplexity").contains(data.name))
        continue;
      text += fmt::format("  perplexity    {:<12} {:.3f} -> {:.3f}   (windows of {} tokens)\n",
                          data.name, first->at("perplexity").at(data.name).get<double>(),
                          last->at("perplexity").at(data.name).get<double>(),
                          TokenFile::open(data.tokens, source.config.vocabulary).sequence_tokens());
    }
  text += "  seconds      ";
  for (const auto& [phase, value] : phases) text += fmt::format(" {} {:.1f}", phase, value);
  text += "\n";
  for (const ExportConfig& target : config.exports) {
    const fs::path out = target.path.is_absolute() ? target.path : directory.path() / target.path;
    text += fmt::format("  export        {}\n", out.string());
    text += fmt::format("  load it with  AutoModelForCausalLM.from_pretrained(\"{}\"{})\n",
                        out.string(),
                        target.format == ExportFormat::exact ? ", trust_remote_code=True" : "");
  }
  text += fmt::format(
      "  smaller plans espalier export {} --sparsity X --out DIR   (any X up to {:.2f})\n",
      directory.path().string(), sparsity.of(config.prune.measure));
  std::fputs(text.c_str(), stdout);
  std::fflush(stdout);
}

}  // namespace espalier
