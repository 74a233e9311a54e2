#include "espalier/calib/calibration.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/core/hash.h"
#include "espalier/core/text.h"

namespace espalier {
namespace {

/// A number that depends on nothing but the name.
std::uint64_t name_word(const std::string& name) {
  return std::stoull(sha256_hex(std::string_view(name)).substr(0, 16), nullptr, 16);
}

/// The rows of a file in an order that depends on (seed, name, epoch) alone.
std::vector<std::int64_t> shuffled(std::int64_t rows, std::int64_t seed, std::uint64_t name_key,
                                   std::int64_t epoch) {
  std::vector<std::pair<std::uint64_t, std::int64_t>> keyed;
  keyed.reserve(static_cast<std::size_t>(rows));
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::uint64_t words[] = {static_cast<std::uint64_t>(seed), name_key,
                                   static_cast<std::uint64_t>(epoch),
                                   static_cast<std::uint64_t>(row)};
    keyed.emplace_back(counter_hash(words), row);
  }
  std::sort(keyed.begin(), keyed.end());
  std::vector<std::int64_t> order;
  order.reserve(keyed.size());
  for (const auto& [key, row] : keyed) order.push_back(row);
  return order;
}

/// The rows of a file one after the other, epoch by epoch, each row once in an epoch.
class RowStream {
 public:
  RowStream(std::int64_t rows, std::int64_t seed, const std::string& name)
      : rows_(rows), seed_(seed), name_key_(name_word(name)) {
    order_ = shuffled(rows_, seed_, name_key_, epoch_);
  }

  /// The next `count` rows, all different.
  std::vector<std::int64_t> take(std::int64_t count) {
    std::vector<std::int64_t> taken = from_epoch(count);
    const auto left = count - static_cast<std::int64_t>(taken.size());
    if (left == 0) return taken;
    order_ = shuffled(rows_, seed_, name_key_, ++epoch_);
    next_ = 0;
    // What this draw has got already comes last, so that it gets no row twice.
    const std::set<std::int64_t> got(taken.begin(), taken.end());
    std::stable_partition(order_.begin(), order_.end(),
                          [&](std::int64_t row) { return !got.contains(row); });
    const std::vector<std::int64_t> rest = from_epoch(left);
    taken.insert(taken.end(), rest.begin(), rest.end());
    return taken;
  }

 private:
  std::vector<std::int64_t> from_epoch(std::int64_t count) {
    const std::int64_t end = std::min(rows_, next_ + count);
    std::vector<std::int64_t> taken(order_.begin() + next_, order_.begin() + end);
    next_ = end;
    return taken;
  }

  std::int64_t rows_, seed_;
  std::uint64_t name_key_;
  std::int64_t epoch_ = 0, next_ = 0;
  std::vector<std::int64_t> order_;
};

std::vector<std::int64_t> draw_rows(std::int64_t rows, std::int64_t wanted, std::int64_t seed,
                                    const std::string& name, std::int64_t draw) {
  std::vector<std::int64_t> drawn(static_cast<std::size_t>(rows));
  std::iota(drawn.begin(), drawn.end(), std::int64_t{0});
  if (wanted == rows) return drawn;
  RowStream stream(rows, seed, name);
  for (std::int64_t before = 0; before < draw; ++before) stream.take(wanted);
  drawn = stream.take(wanted);
  std::sort(drawn.begin(), drawn.end());
  return drawn;
}

}  // namespace

Counting counting_of(Objective objective) {
  return objective == Objective::sft ? Counting::loss_mask : Counting::every_token;
}

std::int64_t sequences_per_micro_batch(std::int64_t micro_batch_tokens,
                                       std::int64_t sequence_tokens) {
  return std::max<std::int64_t>(1, micro_batch_tokens / sequence_tokens);
}

TokenBatch make_batch(const TokenRows& rows, double sequence_weight, at::Device device,
                      std::vector<std::int64_t>& predictions) {
  const std::int64_t S = rows.sequence_tokens;
  const auto B = static_cast<std::int64_t>(rows.length.size());
  const std::int64_t T = *std::max_element(rows.length.begin(), rows.length.end());
  std::vector<std::int64_t> positions, targets;
  std::vector<double> weights;
  predictions.clear();
  for (std::int64_t b = 0; b < B; ++b) {
    const std::size_t first = positions.size();
    for (std::int64_t t = 1; t < T; ++t) {
      const auto place = static_cast<std::size_t>(b * S + t);
      if (rows.counted[place] == 0) continue;
      positions.push_back(b * T + t - 1);
      targets.push_back(rows.tokens[place]);
    }
    const std::size_t count = positions.size() - first;
    predictions.push_back(static_cast<std::int64_t>(count));
    weights.insert(weights.end(), count, sequence_weight / static_cast<double>(count));
  }
  const at::Tensor tokens_BS = at::tensor(rows.tokens, at::kInt).view({B, S});
  TokenBatch batch{tokens_BS.narrow(1, 0, T).to(at::kLong).contiguous().to(device),
                   at::tensor(positions, at::kLong).to(device),
                   at::tensor(targets, at::kLong).to(device),
                   at::tensor(weights, at::kDouble).to(device)};
  if (std::any_of(rows.length.begin(), rows.length.end(), [&](auto length) { return length < T; }))
    batch.real_BT =
        (at::arange(T, at::kInt) < at::tensor(rows.length, at::kInt).unsqueeze(1)).to(device);
  return batch;
}

Calibration Calibration::draw(const CalibrationConfig& config, std::int64_t iteration,
                              std::int64_t vocabulary) {
  Calibration calibration;
  calibration.micro_batch_tokens_ = config.micro_batch_tokens;
  calibration.resample_ = config.resample;
  Problems problems;
  for (std::size_t d = 0; d < config.domains.size(); ++d) {
    const DomainConfig& domain = config.domains[d];
    try {
      calibration.files_.push_back(
          TokenFile::open(domain.tokens, vocabulary, counting_of(domain.objective)));
    } catch (const Error& error) {
      for (const Problem& problem : error.problems()) problems.add(problem);
      continue;
    }
    const std::int64_t rows = calibration.files_.back().rows();
    const std::int64_t wanted = domain.sequences.value_or(rows);
    if (wanted > rows) {
      problems.add(ExitCode::config,
                   fmt::format("calibration.domains[{}].sequences = {}", d, wanted),
                   fmt::format("{} has {}", domain.tokens.string(), counted(rows, "sequence")),
                   fmt::format("Use at most {}, or leave it out to take all.", rows));
      continue;
    }
    calibration.domains_.push_back(
        {domain.name, domain.weight, domain.objective,
         draw_rows(rows, wanted, config.seed, domain.name,
                   config.resample ? std::max<std::int64_t>(iteration - 1, 0) : 0)});
  }
  problems.throw_if_any();
  return calibration;
}

std::vector<std::pair<double, MicroBatch>> Calibration::placed(std::size_t domain) const {
  const std::size_t rows = domains_[domain].rows.size();
  const auto size = static_cast<std::size_t>(
      sequences_per_micro_batch(micro_batch_tokens_, files_[domain].sequence_tokens()));
  const std::size_t count = (rows + size - 1) / size;
  std::vector<std::pair<double, MicroBatch>> batches;
  for (std::size_t i = 0; i < count; ++i)
    batches.emplace_back((static_cast<double>(i) + 0.5) / static_cast<double>(count),
                         MicroBatch{domain, i * size, std::min(rows, (i + 1) * size)});
  return batches;
}

std::vector<MicroBatch> Calibration::micro_batches() const {
  std::vector<std::pair<double, MicroBatch>> all;
  for (std::size_t d = 0; d < domains_.size(); ++d)
    for (const auto& batch : placed(d)) all.push_back(batch);
  std::stable_sort(all.begin(), all.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<MicroBatch> order;
  order.reserve(all.size());
  for (const auto& [place, batch] : all) order.push_back(batch);
  return order;
}

std::vector<MicroBatch> Calibration::micro_batches_of(std::size_t domain) const {
  std::vector<MicroBatch> order;
  for (const auto& [place, batch] : placed(domain)) order.push_back(batch);
  return order;
}

std::vector<std::int64_t> Calibration::rows_of(const MicroBatch& micro_batch) const {
  const std::vector<std::int64_t>& rows = domains_[micro_batch.domain].rows;
  return {rows.begin() + static_cast<std::ptrdiff_t>(micro_batch.begin),
          rows.begin() + static_cast<std::ptrdiff_t>(micro_batch.end)};
}

void Calibration::exclude(const std::vector<MicroBatch>& micro_batches) {
  std::vector<std::set<std::int64_t>> excluded(domains_.size());
  for (const MicroBatch& batch : micro_batches)
    for (const std::int64_t row : rows_of(batch)) excluded[batch.domain].insert(row);
  for (std::size_t d = 0; d < domains_.size(); ++d)
    std::erase_if(domains_[d].rows, [&](std::int64_t row) { return excluded[d].contains(row); });
}

CalibrationBatch Calibration::read(const MicroBatch& micro_batch, Differentiated objective,
                                   at::Device device) const {
  const DomainDraw& domain = domains_[micro_batch.domain];
  const std::span<const std::int64_t> rows(domain.rows.data() + micro_batch.begin,
                                           micro_batch.end - micro_batch.begin);
  double weight = 1.0 / static_cast<double>(domain.rows.size());
  if (objective == Differentiated::pooled_loss) {
    double total = 0;
    for (const DomainDraw& other : domains_) total += other.weight;
    weight *= domain.weight / total;
  }
  CalibrationBatch result;
  result.domain = micro_batch.domain;
  const TokenRows read = files_[micro_batch.domain].read(rows);
  result.batch = make_batch(read, weight, device, result.predictions);
  result.real_tokens = std::accumulate(read.length.begin(), read.length.end(), std::int64_t{0});
  return result;
}

void Calibration::check(Share share) const {
  Problems problems;
  for (std::size_t d = 0; d < files_.size(); ++d) {
    std::vector<std::int64_t> all(resample_ ? static_cast<std::size_t>(files_[d].rows()) : 0);
    std::iota(all.begin(), all.end(), std::int64_t{0});
    // Many files of one block each are spread over the shares, too.
    const Share turned{(share.index + static_cast<int>(d)) % share.count, share.count};
    problems.add(problems_of([&] { files_[d].check(resample_ ? all : domains_[d].rows, turned); }));
  }
  problems.throw_if_any();
}

std::int64_t Calibration::sequences() const {
  std::int64_t count = 0;
  for (const DomainDraw& domain : domains_) count += static_cast<std::int64_t>(domain.rows.size());
  return count;
}

}  // namespace espalier
