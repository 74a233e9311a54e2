#include "espalier/calib/check_data.h"

#include <functional>
#include <numeric>
#include <optional>
#include <set>

#include <fmt/format.h>

#include "espalier/calib/calibration.h"
#include "espalier/calib/generation_file.h"
#include "espalier/core/error.h"
#include "espalier/store/files.h"

namespace espalier {
namespace {

/// One pass over the files of a configuration.
class DataCheck {
 public:
  DataCheck(const ModelConfig& model, const std::filesystem::path& model_directory, Share share)
      : model_(model), share_(share) {
    const std::filesystem::path tokenizer = model_directory / "tokenizer.json";
    std::error_code unreadable;
    if (std::filesystem::is_regular_file(tokenizer, unreadable))
      collect([&] { tokenizer_ = sha256_of_file(tokenizer); });
  }

  void calibration(const CalibrationConfig& config) {
    collect([&] {
      const Calibration data = Calibration::draw(config, 0, model_.vocabulary);
      for (const TokenFile& file : data.files()) note(file);
      data.check(share_);
    });
  }

  void evaluation(const EvaluationConfig& config) {
    for (const NamedTokens& data : config.perplexity)
      collect([&] { all_rows(data, Counting::loss_mask_if_present); });
    for (const NamedTokens& data : config.multiple_choice)
      collect([&] { all_rows(data, Counting::options); });
    for (const ExactMatchConfig& data : config.exact_match)
      collect([&] {
        const GenerationFile file = GenerationFile::open(data.tokens, model_.vocabulary);
        note(file.prompts(), data.max_new_tokens);
        if (file.pieces() < model_.vocabulary)
          notes_.push_back(fmt::format(
              "{}: has the text of {} tokens, the model's vocabulary {}; later ones are no text",
              file.prompts().path().string(), file.pieces(), model_.vocabulary));
        check_rows(file.prompts());
      });
  }

  std::vector<std::string> notes() const {
    problems_.throw_if_any();
    return notes_;
  }

 private:
  void all_rows(const NamedTokens& data, Counting counting) {
    const TokenFile file = TokenFile::open(data.tokens, model_.vocabulary, counting);
    note(file);
    // What is wrong with the options says nothing about the rows.
    if (counting == Counting::options) collect([&] { static_cast<void>(file.options()); });
    check_rows(file);
  }

  void collect(const std::function<void()>& work) { problems_.add(problems_of(work)); }

  void check_rows(const TokenFile& file) const {
    std::vector<std::int64_t> rows(static_cast<std::size_t>(file.rows()));
    std::iota(rows.begin(), rows.end(), std::int64_t{0});
    file.check(rows, share_);
  }

  /// `continued`: tokens that the rows are continued by.
  void note(const TokenFile& file, std::int64_t continued = 0) {
    if (!noted_.insert(file.path()).second) return;
    const std::string path = file.path().string();
    const TokenOrigin origin = file.origin();
    if (const std::int64_t longest = file.longest_row(); longest > model_.max_positions - continued)
      notes_.push_back(fmt::format(
          "{}: rows of up to {} tokens{} are longer than the model's max_position_embeddings = {}",
          path, longest, continued > 0 ? fmt::format(" and answers of {}", continued) : "",
          model_.max_positions));
    if (origin.vocabulary && *origin.vocabulary > model_.vocabulary)
      notes_.push_back(
          fmt::format("{}: written for a vocabulary of {} tokens, the model's has {}; only ids "
                      "that occur matter",
                      path, *origin.vocabulary, model_.vocabulary));
    if (!tokenizer_) return;
    if (!origin.tokenizer_sha256)
      notes_.push_back(fmt::format("{}: does not say which tokenizer wrote it", path));
    else if (*origin.tokenizer_sha256 != *tokenizer_)
      notes_.push_back(
          fmt::format("{}: written with another tokenizer than the model directory's", path));
  }

  const ModelConfig& model_;
  Share share_;
  std::optional<std::string> tokenizer_;
  std::set<std::filesystem::path> noted_;
  std::vector<std::string> notes_;
  Problems problems_;
};

}  // namespace

std::vector<std::string> check_data(const RunConfig& config, ConfigUse use,
                                    const ModelConfig& model,
                                    const std::filesystem::path& model_directory, Share share) {
  DataCheck check(model, model_directory, share);
  if (use == ConfigUse::run || use == ConfigUse::score) check.calibration(config.calibration);
  if (use == ConfigUse::run && config.refit.enabled) check.calibration(refit_data(config));
  if (use == ConfigUse::run || use == ConfigUse::eval) check.evaluation(config.evaluation);
  return check.notes();
}

}  // namespace espalier
