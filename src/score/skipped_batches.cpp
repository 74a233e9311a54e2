#include "skipped_batches.h"

#include <algorithm>
#include <set>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "espalier/comm/agreement.h"
#include "espalier/core/log.h"
#include "espalier/core/text.h"

namespace espalier {

Problems SkippedBatches::note(std::int64_t micro_batch, Problems problems) {
  if (static_cast<std::int64_t>(skipped_.size() + broken_.size()) < most_) {
    broken_.push_back({micro_batch, std::move(problems)});
    return {};
  }
  if (most_ > 0) problems.add(too_many(skipped_.size() + broken_.size() + 1));
  return problems;
}

Problem SkippedBatches::too_many(std::size_t count) const {
  return {ExitCode::bad_content,
          fmt::format("{} of iteration {} have values that are not finite",
                      counted(count, "micro-batch", "micro-batches"), iteration_),
          fmt::format("calibration.max_skipped = {}", most_),
          "Look at what they have in common, or allow more.", ""};
}

bool SkippedBatches::leave_out(Calibration& data, const std::vector<MicroBatch>& order) {
  if (most_ == 0) return false;
  std::vector<std::int64_t> mine;
  std::string why;
  for (const Broken& broken : broken_) {
    mine.push_back(broken.micro_batch);
    why += broken.problems.list().front().message() + "\n";
  }
  std::vector<std::int64_t> all = grid_.world().gather(mine);
  std::sort(all.begin(), all.end());
  all.erase(std::unique(all.begin(), all.end()), all.end());  // tensor ranks found the same
  if (all.empty()) return false;
  const std::vector<std::string> told = grid_.world().gather_text(why);
  exclude(data, order, all);
  if (grid_.is_root()) warn(all.size(), told);
  broken_.clear();
  return true;
}

void SkippedBatches::exclude(Calibration& data, const std::vector<MicroBatch>& order,
                             const std::vector<std::int64_t>& numbers) {
  std::vector<MicroBatch> batches;
  for (const std::int64_t j : numbers) {
    batches.push_back(order[static_cast<std::size_t>(j)]);
    skipped_.push_back({data.domains()[batches.back().domain].name, data.rows_of(batches.back())});
  }
  data.exclude(batches);
  Problems problems;
  for (const Broken& broken : broken_)
    if (static_cast<std::int64_t>(skipped_.size()) > most_) problems.add(broken.problems);
  if (grid_.is_root()) add_what_cannot_go_on(data, problems);
  agree(grid_.world(), "calibrate", problems);
}

void SkippedBatches::add_what_cannot_go_on(const Calibration& data, Problems& problems) const {
  if (static_cast<std::int64_t>(skipped_.size()) > most_) problems.add(too_many(skipped_.size()));
  for (const DomainDraw& domain : data.domains())
    if (domain.rows.empty())
      problems.add(ExitCode::bad_content,
                   fmt::format("no sequence of domain '{}' is left", domain.name),
                   "all of its micro-batches were skipped",
                   "Use a wider model.dtype, or look at the domain's tokens.");
}

void SkippedBatches::warn(std::size_t count, const std::vector<std::string>& told) const {
  log::warning("iteration {} begins anew without the sequences of {}", iteration_,
               counted(count, "micro-batch that is", "micro-batches that are") + " not finite");
  for (std::size_t i = skipped_.size() - count; i < skipped_.size(); ++i)
    log::warning("skipped  domain '{}', rows {}", skipped_[i].domain,
                 fmt::join(skipped_[i].rows, " "));
  std::set<std::string> reasons;
  for (const std::string& text : told)
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t end = text.find('\n', at);
      if (reasons.insert(text.substr(at, end - at)).second)
        log::warning("skipped  {}", text.substr(at, end - at));
      at = end + 1;
    }
}

}  // namespace espalier
