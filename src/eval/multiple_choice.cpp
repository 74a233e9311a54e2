#include <cmath>
#include <utility>

#include "espalier/eval/choices.h"
#include "kinds.h"
#include "row_losses.h"

namespace espalier {
namespace {

/// log p of each option's tokens, summed.
std::vector<double> log_likelihoods(std::span<const double> values_NC) {
  std::vector<double> sums(values_NC.size() / 2);
  for (std::size_t row = 0; row < sums.size(); ++row) sums[row] = -values_NC[2 * row];
  return sums;
}

class MultipleChoice : public RowLosses {
 public:
  explicit MultipleChoice(const NamedTokens& data)
      : RowLosses("multiple_choice", data, Counting::options) {}

  void open(std::int64_t vocabulary) override {
    RowLosses::open(vocabulary);
    options_ = file().options();
  }

  TaskOutcome outcome(std::span<const double> values_NC) const override {
    const std::vector<double> sums = log_likelihoods(values_NC);
    const bool by_length = !options_.normalizer.empty();
    std::int64_t right = 0, right_by_length = 0;
    for (std::int64_t i = 0; i < options_.items(); ++i) {
      const Choice choice = choice_of(options_, sums, i);
      right += is_right(i, choice.option) ? 1 : 0;
      if (by_length) right_by_length += is_right(i, *choice.by_length) ? 1 : 0;
    }
    TaskOutcome outcome{kind(), name(), {}, {}, {}};
    add(outcome, "acc", right);
    if (by_length) add(outcome, "acc_norm", right_by_length);
    outcome.facts["items"] = options_.items();
    return outcome;
  }

  std::vector<nlohmann::ordered_json> items(std::span<const double> values_NC) const override {
    const std::vector<double> sums = log_likelihoods(values_NC);
    std::vector<nlohmann::ordered_json> all;
    for (std::int64_t i = 0; i < options_.items(); ++i) {
      const Choice choice = choice_of(options_, sums, i);
      const auto begin = sums.begin() + options_.first[static_cast<std::size_t>(i)];
      const auto end = sums.begin() + options_.first[static_cast<std::size_t>(i) + 1];
      nlohmann::ordered_json item{{"task", name()},
                                  {"item", options_.item[row_of(i, 0)]},
                                  {"log_likelihoods", std::vector<double>(begin, end)},
                                  {"choice", choice.option},
                                  {"right", is_right(i, choice.option)}};
      if (choice.by_length) {
        item["choice_norm"] = *choice.by_length;
        item["right_norm"] = is_right(i, *choice.by_length);
      }
      all.push_back(std::move(item));
    }
    return all;
  }

 private:
  std::size_t row_of(std::int64_t item, std::int64_t option) const {
    return static_cast<std::size_t>(options_.first[static_cast<std::size_t>(item)] + option);
  }
  bool is_right(std::int64_t item, std::int64_t option) const {
    return options_.correct[row_of(item, option)] == 1;
  }
  void add(TaskOutcome& outcome, const std::string& metric, std::int64_t right) const {
    const Share01 share = share_of_ones(right, options_.items());
    outcome.results.push_back({name(), metric, share.mean, share.standard_error, options_.items()});
    outcome.facts[metric] = share.mean;
    outcome.facts[metric + "_stderr"] = nullptr;
    if (share.standard_error) outcome.facts[metric + "_stderr"] = *share.standard_error;
  }

  OptionRows options_;
};

}  // namespace

Choice choice_of(const OptionRows& options, std::span<const double> sums, std::int64_t item) {
  const std::int64_t begin = options.first[static_cast<std::size_t>(item)];
  const std::int64_t end = options.first[static_cast<std::size_t>(item) + 1];
  const auto best = [&](const auto& value) {
    std::int64_t at = begin;
    for (std::int64_t row = begin + 1; row < end; ++row)
      if (value(static_cast<std::size_t>(row)) > value(static_cast<std::size_t>(at))) at = row;
    return at - begin;
  };
  Choice choice{best([&](std::size_t row) { return sums[row]; }), std::nullopt};
  if (!options.normalizer.empty())
    choice.by_length = best([&](std::size_t row) { return sums[row] / options.normalizer[row]; });
  return choice;
}

Share01 share_of_ones(std::int64_t ones, std::int64_t n) {
  const auto size = static_cast<double>(n);
  const double mean = static_cast<double>(ones) / size;
  if (n < 2) return {mean, std::nullopt};
  // sum of (x - mean)^2 = n mean (1 - mean), for x of 0 and 1.
  return {mean, std::sqrt(mean * (1 - mean) / (size - 1))};
}

std::unique_ptr<Evaluation> make_multiple_choice(const NamedTokens& data) {
  return std::make_unique<MultipleChoice>(data);
}

}  // namespace espalier
