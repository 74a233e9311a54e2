#include <algorithm>
#include <optional>
#include <utility>

#include <ATen/ATen.h>

#include "espalier/calib/generation_file.h"
#include "espalier/core/json.h"
#include "espalier/core/text.h"
#include "espalier/eval/answers.h"
#include "espalier/eval/choices.h"
#include "espalier/model/generate.h"
#include "kinds.h"

namespace espalier {
namespace {

/// The text of a continuation as it grows.
class Answer {
 public:
  explicit Answer(const GenerationFile& file) : file_(&file) {
    for (const std::string& stop : file.stop())
      longest_stop_ = std::max(longest_stop_, stop.size());
  }

  /// Whether the answer ends with this token.
  bool ends_with(std::int64_t token) {
    if (file_->is_end(token)) return true;
    // A stop text that the piece completes begins in it, or fewer bytes before it than it has.
    const std::size_t from = text_.size() - std::min(text_.size(), longest_stop_);
    text_ += file_->piece(token);
    return std::any_of(file_->stop().begin(), file_->stop().end(), [&](const std::string& stop) {
      return text_.find(stop, from) != std::string::npos;
    });
  }
  /// Up to the first stop text.
  std::string text() const { return cut_at_stop(text_, file_->stop()); }

 private:
  const GenerationFile* file_;
  std::size_t longest_stop_ = 0;
  std::string text_;
};

PromptBatch read_prompts(const GenerationFile& file, std::span<const std::int64_t> items,
                         std::int64_t max_new_tokens, at::Device device) {
  const TokenRows rows = file.prompts().read(items);
  PromptBatch batch;
  batch.prompt_tokens.assign(rows.length.begin(), rows.length.end());
  batch.most_new = max_new_tokens;
  const std::int64_t longest =
      *std::max_element(batch.prompt_tokens.begin(), batch.prompt_tokens.end());
  const at::Tensor all_NS =
      at::from_blob(const_cast<std::int32_t*>(rows.tokens.data()),
                    {static_cast<std::int64_t>(items.size()), rows.sequence_tokens}, at::kInt);
  batch.tokens_BT = all_NS.narrow(1, 0, longest).to(at::kLong).to(device);
  return batch;
}

/// How often a greedily generated answer is the expected one, as lm-evaluation-harness scores its
/// task gsm8k (eval/answers.h). Two numbers for each prompt, 1 or 0: whether its answer is right by
/// the strict and by the flexible filter; where items are asked for also the number of tokens and
/// the tokens.
class ExactMatch final : public Evaluation {
 public:
  explicit ExactMatch(const ExactMatchConfig& config)
      : Evaluation("exact_match", config.name, config.tokens),
        max_new_tokens_(config.max_new_tokens) {}

  nlohmann::ordered_json settings() const override { return {{"max_new_tokens", max_new_tokens_}}; }
  void want_items() override { with_tokens_ = true; }

  void open(std::int64_t vocabulary) override {
    file_ = GenerationFile::open(tokens(), vocabulary);
  }
  std::vector<std::int32_t> row_lengths() const override {
    std::vector<std::int32_t> lengths = file_->prompt_tokens();
    for (std::int32_t& length : lengths) length += static_cast<std::int32_t>(max_new_tokens_);
    return lengths;
  }
  std::int64_t columns() const override { return with_tokens_ ? kTokens + max_new_tokens_ : 2; }

  void read(std::span<const std::int64_t> rows, const CausalLM& model,
            const std::string& origin) override {
    rows_.assign(rows.begin(), rows.end());
    batch_ = read_prompts(*file_, rows, max_new_tokens_, model.options().device);
    batch_.origin = origin;
  }

  Problems compute(const CausalLM& model, const RankGroup& tensor,
                   std::span<double> values_NC) override {
    std::vector<Answer> answers(rows_.size(), Answer(*file_));
    Continuations continued = continue_greedily(
        model, batch_,
        [&](std::size_t prompt, std::int64_t token) { return answers[prompt].ends_with(token); },
        tensor);
    const auto width = static_cast<std::size_t>(columns());
    for (std::size_t i = 0; i < rows_.size(); ++i)
      fill(values_NC.subspan(i * width, width), answers[i].text(), file_->answer(rows_[i]),
           continued.tokens[i]);
    return std::move(continued.problems);
  }

  TaskOutcome outcome(std::span<const double> values_NC) const override {
    TaskOutcome outcome{kind(), name(), {}, {}, {}};
    add(outcome, "strict", right_in(values_NC, 0));
    add(outcome, "flexible", right_in(values_NC, 1));
    outcome.facts["items"] = file_->items();
    return outcome;
  }

  std::vector<nlohmann::ordered_json> items(std::span<const double> values_NC) const override {
    std::vector<nlohmann::ordered_json> all;
    const auto width = static_cast<std::size_t>(columns());
    for (std::int64_t i = 0; i < file_->items(); ++i) {
      const std::span<const double> values =
          values_NC.subspan(static_cast<std::size_t>(i) * width, width);
      Answer answer(*file_);
      std::vector<std::int64_t> generated;
      for (std::int64_t t = 0; t < static_cast<std::int64_t>(values[2]); ++t) {
        generated.push_back(
            static_cast<std::int64_t>(values[static_cast<std::size_t>(kTokens + t)]));
        answer.ends_with(generated.back());
      }
      all.push_back({{"task", name()},
                     {"item", i},
                     {"text", utf8_text(answer.text())},
                     {"tokens", std::move(generated)},
                     {"strict", values[0] == 1},
                     {"flexible", values[1] == 1}});
    }
    return all;
  }

 private:
  static constexpr std::int64_t kTokens = 3;  // the column of the first

  void fill(std::span<double> values, const std::string& text, const std::string& reference,
            const std::vector<std::int64_t>& generated) const {
    const std::string expected = comparable_answer(reference);
    values[0] = comparable_answer(strict_answer(text)) == expected ? 1 : 0;
    values[1] = comparable_answer(flexible_answer(text)) == expected ? 1 : 0;
    if (!with_tokens_) return;
    values[2] = static_cast<double>(generated.size());
    std::copy(generated.begin(), generated.end(), values.begin() + kTokens);
  }
  std::int64_t right_in(std::span<const double> values_NC, std::size_t column) const {
    const auto width = static_cast<std::size_t>(columns());
    std::int64_t right = 0;
    for (std::size_t at = column; at < values_NC.size(); at += width)
      right += values_NC[at] == 1 ? 1 : 0;
    return right;
  }
  void add(TaskOutcome& outcome, const std::string& metric, std::int64_t right) const {
    const Share01 share = share_of_ones(right, file_->items());
    outcome.results.push_back({name(), metric, share.mean, share.standard_error, file_->items()});
    outcome.facts[metric] = share.mean;
    outcome.facts[metric + "_stderr"] = nullptr;
    if (share.standard_error) outcome.facts[metric + "_stderr"] = *share.standard_error;
  }

  std::int64_t max_new_tokens_;
  bool with_tokens_ = false;
  std::optional<GenerationFile> file_;
  std::vector<std::int64_t> rows_;
  PromptBatch batch_;
};

}  // namespace

std::unique_ptr<Evaluation> make_exact_match(const ExactMatchConfig& config) {
  return std::make_unique<ExactMatch>(config);
}

}  // namespace espalier
