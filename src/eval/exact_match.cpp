#include "espalier/eval/exact_match.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <optional>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "espalier/calib/calibration.h"
#include "espalier/eval/answers.h"
#include "espalier/model/generate.h"

namespace espalier {
namespace {

/// The text of a continuation as it grows.
class Answer {
 public:
  explicit Answer(const GenerationFile& file) : file_(&file) {
    for (const std::string& stop : file.stop()) longest_stop_ = std::max(longest_stop_, stop.size());
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
  std::string text() const { return cut_at_stop(text_, file_->stop()); }

 private:
  const GenerationFile* file_;
  std::size_t longest_stop_ = 0;
  std::string text_;
};

PromptBatch read_prompts(const GenerationFile& file, const std::vector<std::int64_t>& items,
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

GeneratedAnswer scored(std::int64_t item, std::vector<std::int64_t> tokens, std::string text,
                       const std::string& reference) {
  const std::string expected = comparable_answer(reference);
  GeneratedAnswer answer{item, std::move(tokens), std::move(text), false, false};
  answer.strict = comparable_answer(strict_answer(answer.text)) == expected;
  answer.flexible = comparable_answer(flexible_answer(answer.text)) == expected;
  return answer;
}

double standard_error(double mean, std::int64_t items) {
  return items < 2 ? 0.0 : std::sqrt(mean * (1 - mean) / static_cast<double>(items - 1));
}

}  // namespace

std::vector<std::vector<std::int64_t>> prompt_batches(
    const std::vector<std::int32_t>& prompt_tokens, std::int64_t max_new_tokens,
    std::int64_t micro_batch_tokens) {
  const auto tokens_of = [&](std::int64_t item) {
    return prompt_tokens[static_cast<std::size_t>(item)];
  };
  std::vector<std::int64_t> order(prompt_tokens.size());
  std::iota(order.begin(), order.end(), std::int64_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int64_t a, std::int64_t b) { return tokens_of(a) > tokens_of(b); });
  std::vector<std::vector<std::int64_t>> batches;
  for (std::size_t begin = 0; begin < order.size();) {
    const std::int64_t rows = sequences_per_micro_batch(micro_batch_tokens,
                                                        tokens_of(order[begin]) + max_new_tokens);
    const std::size_t end = std::min(order.size(), begin + static_cast<std::size_t>(rows));
    batches.emplace_back(order.begin() + static_cast<std::ptrdiff_t>(begin),
                         order.begin() + static_cast<std::ptrdiff_t>(end));
    begin = end;
  }
  return batches;
}

ExactMatch evaluate_exact_match(const CausalLM& model, const ExactMatchConfig& config,
                                std::int64_t micro_batch_tokens, const ProcessGrid& grid,
                                const RoundHooks& hooks, std::vector<GeneratedAnswer>* answers) {
  std::optional<GenerationFile> file;
  std::vector<std::vector<std::int64_t>> batches;
  together(grid.world(), "evaluate", [&] {
    file = GenerationFile::open(config.tokens, model.config().vocabulary);
    batches = prompt_batches(file->prompt_tokens(), config.max_new_tokens, micro_batch_tokens);
  });
  const auto count = static_cast<std::int64_t>(batches.size());
  std::array<std::int64_t, 2> right{0, 0};  // strict, flexible
  std::vector<std::int64_t> items;
  PromptBatch batch;
  const auto read = [&](std::int64_t j) {
    items = batches[static_cast<std::size_t>(j)];
    batch = read_prompts(*file, items, config.max_new_tokens, model.options().device);
    batch.origin = fmt::format("micro-batch {} of {}, evaluation '{}', data rank {}", j + 1, count,
                               config.name, grid.data_index());
  };
  const auto compute = [&] {
    std::vector<Answer> texts(items.size(), Answer(*file));
    Continuations continued = continue_greedily(
        model, batch,
        [&](std::size_t prompt, std::int64_t token) { return texts[prompt].ends_with(token); },
        grid.tensor());
    for (std::size_t i = 0; i < items.size(); ++i) {
      GeneratedAnswer answer = scored(items[i], std::move(continued.tokens[i]), texts[i].text(),
                                      file->answer(items[i]));
      right[0] += answer.strict ? 1 : 0;
      right[1] += answer.flexible ? 1 : 0;
      if (answers != nullptr) answers->push_back(std::move(answer));
    }
    return std::move(continued.problems);
  };
  std::int64_t done = 0;
  deal_rounds(grid, "evaluate", count, done, read, compute, hooks);
  grid.data().control().all_reduce_sum(std::span<std::int64_t>(right));
  const auto all = static_cast<double>(file->items());
  const double strict = static_cast<double>(right[0]) / all;
  const double flexible = static_cast<double>(right[1]) / all;
  return {config.name, strict,        standard_error(strict, file->items()),
          flexible,    standard_error(flexible, file->items()), file->items()};
}

}  // namespace espalier
