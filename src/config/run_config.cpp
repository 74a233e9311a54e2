#include "espalier/config/run_config.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>
#include <system_error>

#include <fmt/format.h>

#include "espalier/core/paths.h"
#include "espalier/core/text.h"
#include "overrides.h"
#include "run_schema.h"
#include "text_file.h"

namespace espalier {
namespace {

using config_detail::Row;
using config_detail::Walk;
using config_detail::YamlNode;

bool is_required(const Row<RunConfig>& row, ConfigUse use) {
  if (row.key == "prune.target") return use == ConfigUse::run;
  if (row.key == "calibration.domains") return use == ConfigUse::run || use == ConfigUse::score;
  return true;
}

/// Rules over several keys and over the outside world.
class Checker {
 public:
  Checker(Walk& walk, RunConfig& config, std::string file)
      : walk_(walk), config_(config), file_(std::move(file)) {}

  void check_rules() {
    check_domains();
    if (config_.refit.domains) check_refit_domains(*config_.refit.domains);
    check_evaluation_names();
    check_exports();
    if (config_.importance.criterion == Criterion::obs) check_obs();
    if (config_.importance.reduction == Reduction::scores &&
        config_.importance.criterion != Criterion::taylor)
      problem("importance.reduction", "importance.reduction = scores",
              "only criterion taylor has gradients to reduce",
              "Remove it, or use criterion taylor.");
    if (config_.prune.compensation == Compensation::mean &&
        config_.importance.criterion != Criterion::flap)
      problem("prune.compensation", "prune.compensation = mean",
              fmt::format("only criterion flap takes the means of what o_proj and down_proj read, "
                          "and importance.criterion = {}",
                          name_of(config_.importance.criterion)),
              "Remove it, or use criterion flap.");
    if (config_.calibration.combine == Combine::worst_domain &&
        config_.importance.normalization == Normalization::block_standardize)
      problem("calibration.combine", "calibration.combine = worst_domain",
              "it divides by a domain's mean score, which is 0 under normalization "
              "block_standardize",
              "Use another normalization, or combine max.");
    write_notes();
  }

  /// Everything that this use reads must exist.
  void check_files(ConfigUse use, const ModelCheck& check_contents) {
    if (use == ConfigUse::print) return;
    const std::size_t before = walk_.problems.list().size();
    const bool model_is_there = check_model();
    if (use != ConfigUse::eval)
      for (std::size_t i = 0; i < config_.calibration.domains.size(); ++i)
        check_tokens(fmt::format("calibration.domains[{}].tokens", i),
                     config_.calibration.domains[i].tokens);
    if (use == ConfigUse::run && config_.refit.enabled && config_.refit.domains)
      check_token_files("refit.domains", *config_.refit.domains);
    if (use != ConfigUse::score) {
      check_token_files("evaluation.perplexity", config_.evaluation.perplexity);
      check_token_files("evaluation.multiple_choice", config_.evaluation.multiple_choice);
      check_token_files("evaluation.exact_match", config_.evaluation.exact_match);
    }
    if (check_contents && model_is_there && walk_.problems.list().size() > before)
      walk_.problems.add(check_contents(config_.model_path));
  }

 private:
  std::string where(const std::string& key) const {
    const auto it = walk_.place.find(key);
    return it == walk_.place.end() ? file_ : it->second;
  }
  bool is_reported(const std::string& key) const {
    const auto& list = walk_.problems.list();
    return std::any_of(list.begin(), list.end(),
                       [&](const Problem& p) { return p.where == where(key); });
  }
  bool given(const std::string& key) const { return walk_.place.contains(key); }
  void problem(const std::string& key, std::string what, std::string why, std::string remedy = {},
               ExitCode code = ExitCode::config) {
    walk_.problems.add(code, std::move(what), std::move(why), std::move(remedy), where(key));
  }
  void note(const std::string& key, const std::string& text) {
    config_.notes.push_back(where(key) + ": " + text);
  }

  /// The element that has a name first, as "list[i]".
  using FirstNames = std::map<std::string, std::string>;

  template <class T>
  void check_unique_names(const std::string& list, const std::vector<T>& elements,
                          FirstNames& first) {
    for (std::size_t i = 0; i < elements.size(); ++i) {
      if (elements[i].name.empty()) continue;  // reported where it was read
      const std::string element = fmt::format("{}[{}]", list, i), key = element + ".name";
      const auto [it, is_new] = first.emplace(elements[i].name, element);
      if (!is_new)
        problem(key, fmt::format("{} = {}", key, config_detail::printable(elements[i].name)),
                it->second + " has this name already");
    }
  }

  /// Results are looked up by the name, whatever the kind.
  void check_evaluation_names() {
    FirstNames first;
    check_unique_names("evaluation.perplexity", config_.evaluation.perplexity, first);
    check_unique_names("evaluation.multiple_choice", config_.evaluation.multiple_choice, first);
    check_unique_names("evaluation.exact_match", config_.evaluation.exact_match, first);
  }

  template <class T>
  void check_token_files(const std::string& list, const std::vector<T>& elements) {
    for (std::size_t i = 0; i < elements.size(); ++i)
      check_tokens(fmt::format("{}[{}].tokens", list, i), elements[i].tokens);
  }

  void check_domains() {
    const auto& domains = config_.calibration.domains;
    FirstNames first;
    check_unique_names("calibration.domains", domains, first);
    if (given("calibration.domains") && domains.empty() && required_domains &&
        !is_reported("calibration.domains"))
      problem("calibration.domains", "calibration.domains is empty",
              "at least one domain is needed");
    double sum = 0;
    for (const DomainConfig& domain : domains) sum += domain.weight;
    if (!domains.empty() && !(sum > 0))
      problem("calibration.domains", "the weights of calibration.domains sum to 0",
              "at least one must be above 0");
  }

  /// One pass gives the order of every sparsity, in costs that keep their meaning only where units
  /// are divided by numbers that do not depend on them.
  void check_obs() {
    if (!given("prune.iterations")) config_.prune.iterations = 1;
    if (!given("importance.normalization")) config_.importance.normalization = Normalization::cost;
    if (config_.prune.iterations != 1)
      problem("prune.iterations", fmt::format("prune.iterations = {}", config_.prune.iterations),
              "one pass of criterion obs already gives the order of the greedy removal for every "
              "sparsity",
              "Use 1, or leave it out.");
    if (config_.prune.attention_unit == AttentionUnit::equal_per_group)
      problem("prune.attention_unit", "prune.attention_unit = equal_per_group",
              "criterion obs takes units out one by one, not a head of every group at once",
              "Use query_head or kv_group, or another criterion.");
    switch (config_.importance.normalization) {
      case Normalization::cost:
      case Normalization::gisp:
      case Normalization::param_mean:
      case Normalization::none:
        return;
      case Normalization::block_mean:
      case Normalization::block_l2:
      case Normalization::block_standardize:
        problem(
            "importance.normalization",
            fmt::format("importance.normalization = {}", name_of(config_.importance.normalization)),
            "the score of a layer's last unit is infinite under criterion obs, so a layer has "
            "no mean",
            "Use cost, gisp, param_mean or none.");
    }
  }

  void check_refit_domains(const std::vector<DomainConfig>& domains) {
    FirstNames first;
    check_unique_names("refit.domains", domains, first);
    double sum = 0;
    for (const DomainConfig& domain : domains) sum += domain.weight;
    if (!(sum > 0))
      problem("refit.domains", "the weights of refit.domains sum to 0",
              "at least one must be above 0");
  }

  void check_exports() {
    std::set<std::filesystem::path> seen;
    for (std::size_t i = 0; i < config_.exports.size(); ++i) {
      const std::string key = fmt::format("export[{}].path", i);
      const std::filesystem::path& path = config_.exports[i].path;
      if (!path.empty() && !seen.insert(path).second)
        problem(key, fmt::format("{} = {}", key, config_detail::printable(path.string())),
                "another export goes to the same path");
    }
  }

  bool reads_weights() const {
    return config_.calibration.domains.size() > 1 && config_.calibration.combine != Combine::max &&
           config_.calibration.combine != Combine::worst_domain &&
           config_.importance.criterion != Criterion::magnitude &&
           config_.importance.criterion != Criterion::random;
  }

  void write_notes() {
    if (config_.prune.rate != PruneConfig{}.rate &&
        config_.prune.shape != ScheduleShape::exponential)
      note("prune.rate", "prune.rate has no effect (only shape exponential reads it)");
    const auto& domains = config_.calibration.domains;
    if (config_.calibration.adapt == Adapt::loss_gap && !reads_weights())
      note("calibration.adapt",
           "calibration.adapt has no effect (this combination does not read the domains' weights)");
    for (std::size_t i = 0; i < domains.size(); ++i) {
      const std::string key = fmt::format("calibration.domains[{}]", i);
      if (config_.calibration.resample && !domains[i].sequences)
        note("calibration.resample", key + " uses all its rows, so resample changes nothing there");
      for (const NamedTokens& evaluation : config_.evaluation.perplexity)
        if (!domains[i].tokens.empty() && evaluation.tokens == domains[i].tokens)
          note(key + ".tokens",
               fmt::format("{} and evaluation '{}' read the same file: that perplexity is measured "
                           "on calibration data",
                           key, config_detail::printable(evaluation.name)));
    }
  }

  /// "'math.h5' does not exist (looked in: the config's directory)".
  void absent(const std::string& key, const std::filesystem::path& path, const std::string& kind,
              const std::string& remedy, ExitCode code = ExitCode::missing_input) {
    const std::filesystem::path relative = path.lexically_relative(walk_.base);
    const bool inside = !relative.empty() && *relative.begin() != "..";
    problem(key,
            fmt::format("{}: '{}' {}", key,
                        config_detail::printable(inside ? relative.string() : path.string(), 400),
                        kind),
            inside ? "looked in: the config's directory" : "", remedy, code);
  }

  /// Reports a path that cannot be looked at, whatever the reason.
  bool is_there(const std::string& key, const std::filesystem::path& path,
                const std::filesystem::file_status& status, const std::error_code& failure,
                const std::string& remedy) {
    if (std::filesystem::exists(status)) return true;
    if (failure.value() == 0 || failure.value() == ENOENT)
      absent(key, path, "does not exist", remedy);
    else
      absent(key, path, fmt::format("cannot be read: {}", failure.message()), remedy,
             config_detail::code_of_unreadable(failure.value()));
    return false;
  }

  bool check_model() {
    const std::filesystem::path& path = config_.model_path;
    std::error_code failure;
    const auto status = std::filesystem::status(path, failure);
    constexpr const char* kRemedy = "Point it at a Hugging Face model directory.";
    if (path.empty() || !is_there("model.path", path, status, failure, kRemedy)) return false;
    if (std::filesystem::is_directory(status)) return true;
    absent("model.path", path, "is not a directory", kRemedy);
    return false;
  }

  void check_tokens(const std::string& key, const std::filesystem::path& path) {
    std::error_code failure;
    const auto status = std::filesystem::status(path, failure);
    constexpr const char* kRemedy = "Write it with launch/tokenize.py or check the path.";
    if (path.empty()) return;
    if (!is_there(key, path, status, failure, kRemedy)) return;
    if (std::filesystem::is_directory(status))
      absent(key, path, "is a directory, not a token file", kRemedy);
    else if (const int error = config_detail::error_of_opening(path))
      absent(key, path, fmt::format("cannot be read: {}", std::strerror(error)), kRemedy,
             config_detail::code_of_unreadable(error));
  }

  Walk& walk_;
  RunConfig& config_;
  std::string file_;

 public:
  bool required_domains = true;
};

YamlNode read_tree(const std::filesystem::path& file, const std::vector<std::string>& overrides,
                   Problems& problems) {
  const std::string text = config_detail::read_text_file(
      file, config_detail::kYamlBytes, ExitCode::config, "Check the path of the configuration.");
  YamlNode root = config_detail::parse_yaml(text, file.string());
  if (root.kind == YamlNode::Kind::null) {
    root.kind = YamlNode::Kind::map;
  }
  if (root.kind != YamlNode::Kind::map)
    throw Error(ExitCode::config, "the file is no map of keys", {},
                "Start from configs/reference.yaml.", root.where);
  root.where = file.string();
  config_detail::apply_overrides(root, overrides, problems);
  return root;
}

RunConfig read_checked(const std::filesystem::path& file, const std::vector<std::string>& overrides,
                       ConfigUse use, const ModelCheck& check_model, Problems& problems) {
  RunConfig config;
  config.source = absolute_path(file);
  const YamlNode root = read_tree(file, overrides, problems);
  Walk walk{problems, config.source.parent_path(), {}, {}};
  config_detail::walk_rows<RunConfig>(
      walk, root, "", config_detail::run_schema(), config,
      [use](const Row<RunConfig>& row) { return is_required(row, use); });
  Checker checker(walk, config, file.string());
  checker.required_domains = use == ConfigUse::run || use == ConfigUse::score;
  checker.check_rules();
  checker.check_files(use, check_model);
  config.origin = std::move(walk.origin);
  return config;
}

}  // namespace

CalibrationConfig refit_data(const RunConfig& config) {
  CalibrationConfig data = config.calibration;
  data.resample = false;
  if (config.refit.domains) {
    data.key = "refit.domains";
    data.domains = *config.refit.domains;
    for (DomainConfig& domain : data.domains)
      if (!domain.sequences) domain.sequences = config.refit.sequences;
  } else {
    data.key = "refit.sequences of calibration.domains";
    for (DomainConfig& domain : data.domains) domain.sequences = config.refit.sequences;
  }
  return data;
}

RunConfig read_run_config(const std::filesystem::path& file,
                          const std::vector<std::string>& overrides, ConfigUse use,
                          const ModelCheck& check_model) {
  Problems problems;
  RunConfig config;
  try {
    config = read_checked(file, overrides, use, check_model, problems);
  } catch (const Error& e) {  // the file cannot be read at all, or is not the YAML that we accept
    for (const Problem& problem : e.problems()) problems.add(problem);
  }
  const std::size_t count = problems.list().size();
  if (count > 0)
    problems.add(ExitCode::config,
                 fmt::format("{}. Nothing was started.", counted(count, "error")));
  problems.throw_if_any();
  return config;
}

}  // namespace espalier
