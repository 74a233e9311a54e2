#include "espalier/calib/calibration.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "espalier/calib/shared_prompts.h"
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
  switch (objective) {
    case Objective::causal_lm:
      break;
    case Objective::sft:
      return Counting::loss_mask;
    case Objective::margin:
      return Counting::options;
  }
  return Counting::every_token;
}

std::int64_t sequences_per_micro_batch(std::int64_t micro_batch_tokens,
                                       std::int64_t sequence_tokens) {
  return std::max<std::int64_t>(1, micro_batch_tokens / sequence_tokens);
}

TokenBatch make_batch(const TokenRows& rows, std::span<const double> row_weights, at::Device device,
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
    weights.insert(weights.end(), count,
                   row_weights[static_cast<std::size_t>(b)] / static_cast<double>(count));
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

namespace {

/// The rows of the drawn items, whole.
void take_items(DomainDraw& domain, const OptionRows& options,
                const std::vector<std::int64_t>& items) {
  for (const std::int64_t item : items) {
    domain.begins.push_back(domain.rows.size());
    for (std::int64_t row = options.first[static_cast<std::size_t>(item)];
         row < options.first[static_cast<std::size_t>(item) + 1]; ++row) {
      domain.rows.push_back(row);
      domain.right.push_back(options.correct[static_cast<std::size_t>(row)]);
    }
  }
}

void take_rows(DomainDraw& domain, std::vector<std::int64_t> rows) {
  domain.rows = std::move(rows);
  domain.begins.resize(domain.rows.size());
  std::iota(domain.begins.begin(), domain.begins.end(), std::size_t{0});
}

void set_shares(DomainDraw& domain) {
  const auto rows = static_cast<double>(domain.rows.size());
  domain.shares.assign(domain.rows.size(), 1 / rows);
  if (domain.objective != Objective::margin) return;
  const auto right =
      static_cast<double>(std::count(domain.right.begin(), domain.right.end(), std::uint8_t{1}));
  for (std::size_t i = 0; i < domain.rows.size(); ++i)
    domain.shares[i] = domain.right[i] == 1 ? 1 / right : -1 / (rows - right);
}

/// The entries whose place is kept.
template <class T>
std::vector<T> kept_of(const std::vector<T>& values, const std::vector<bool>& kept) {
  std::vector<T> left;
  for (std::size_t i = 0; i < values.size(); ++i)
    if (kept[i]) left.push_back(values[i]);
  return left;
}

void keep_rows(DomainDraw& domain, const std::vector<bool>& kept) {
  std::vector<bool> begins(domain.rows.size(), false);
  for (const std::size_t begin : domain.begins) begins[begin] = true;
  begins = kept_of(begins, kept);
  domain.begins.clear();
  for (std::size_t i = 0; i < begins.size(); ++i)
    if (begins[i]) domain.begins.push_back(i);
  domain.rows = kept_of(domain.rows, kept);
  if (!domain.lengths.empty()) domain.lengths = kept_of(domain.lengths, kept);
  if (!domain.right.empty()) domain.right = kept_of(domain.right, kept);
  set_shares(domain);
}

/// The rows of a micro-batch at which its items begin, from its first one.
std::vector<std::size_t> begins_of(const DomainDraw& domain, const MicroBatch& micro_batch) {
  std::vector<std::size_t> begins;
  for (std::size_t i = 0; i < micro_batch.places.size(); ++i)
    if (std::binary_search(domain.begins.begin(), domain.begins.end(), micro_batch.places[i]))
      begins.push_back(i);
  return begins;
}

/// [items, rows] of a micro-batch: 1 where the row is of the item.
at::Tensor samples_of(const DomainDraw& domain, const MicroBatch& micro_batch) {
  const std::vector<std::size_t> begins = begins_of(domain, micro_batch);
  const auto rows = static_cast<std::int64_t>(micro_batch.places.size());
  at::Tensor samples_SB = at::zeros({static_cast<std::int64_t>(begins.size()), rows}, at::kDouble);
  for (std::size_t i = 0; i < begins.size(); ++i) {
    const auto begin = static_cast<std::int64_t>(begins[i]);
    const std::int64_t end =
        i + 1 < begins.size() ? static_cast<std::int64_t>(begins[i + 1]) : rows;
    samples_SB[static_cast<std::int64_t>(i)].narrow(0, begin, end - begin).fill_(1);
  }
  return samples_SB;
}

/// The values at a micro-batch's rows.
template <class T>
std::vector<T> at_places(const std::vector<T>& values, const MicroBatch& micro_batch) {
  std::vector<T> picked;
  picked.reserve(micro_batch.places.size());
  for (const std::size_t place : micro_batch.places) picked.push_back(values[place]);
  return picked;
}

/// What is drawn as a whole: its rows, and the tokens of the longest.
struct Whole {
  std::size_t begin = 0;
  std::size_t end = 0;
  std::int64_t longest = 0;
};

/// The longest first.
std::vector<Whole> wholes_of(const DomainDraw& draw, std::int64_t sequence_tokens) {
  std::vector<Whole> wholes;
  for (std::size_t i = 0; i < draw.begins.size(); ++i) {
    const std::size_t end = i + 1 < draw.begins.size() ? draw.begins[i + 1] : draw.rows.size();
    Whole whole{draw.begins[i], end, sequence_tokens};
    if (!draw.lengths.empty())
      whole.longest =
          *std::max_element(draw.lengths.begin() + static_cast<std::ptrdiff_t>(whole.begin),
                            draw.lengths.begin() + static_cast<std::ptrdiff_t>(whole.end));
    wholes.push_back(whole);
  }
  std::stable_sort(wholes.begin(), wholes.end(),
                   [](const Whole& a, const Whole& b) { return a.longest > b.longest; });
  return wholes;
}

/// Where the micro-batches of single rows begin when all hold `size` but one, which holds the rest:
/// of all places for that one the one where the fewest tokens are computed, of equal ones the last.
std::vector<std::size_t> begins_of_least_padding(const std::vector<Whole>& rows, std::size_t size) {
  const std::size_t full = rows.size() / size, rest = rows.size() % size;
  const auto tokens = [&](std::size_t begin, std::size_t count) {
    return static_cast<std::int64_t>(count) * rows[begin].longest;
  };
  std::size_t best = full;
  // Against the one of the rest coming last.
  std::int64_t more = 0, least = 0;
  for (std::size_t p = full; rest > 0 && p-- > 0;) {
    more += tokens(p * size, rest) + tokens(p * size + rest, size) - tokens(p * size, size) -
            tokens((p + 1) * size, rest);
    if (more >= least) continue;
    least = more;
    best = p;
  }
  std::vector<std::size_t> begins;
  for (std::size_t j = 0; j < full + (rest > 0 ? 1 : 0); ++j)
    begins.push_back(j <= best ? j * size : (j - 1) * size + rest);
  return begins;
}

/// Where those of items begin, of which a micro-batch holds as many as `size` rows take, or one.
std::vector<std::size_t> begins_of_items(const std::vector<Whole>& items, std::size_t size) {
  std::vector<std::size_t> begins;
  std::size_t rows = 0;
  for (std::size_t i = 0; i < items.size(); ++i) {
    const std::size_t more = items[i].end - items[i].begin;
    if (begins.empty() || rows + more > size) {
      begins.push_back(i);
      rows = 0;
    }
    rows += more;
  }
  return begins;
}

}  // namespace

DomainDraw Calibration::drawn(const DomainConfig& domain, const TokenFile& file, const Take& take,
                              const std::string& key) {
  const bool items = domain.objective == Objective::margin;
  const OptionRows options = items ? file.options() : OptionRows();
  const std::int64_t all = items ? options.items() : file.rows();
  const std::int64_t wanted = domain.sequences.value_or(all);
  if (wanted > all)
    throw Error(
        ExitCode::config, fmt::format("{}.sequences = {}", key, wanted),
        fmt::format("{} has {}", domain.tokens.string(), counted(all, items ? "item" : "sequence")),
        fmt::format("Use at most {}, or leave it out to take all.", all));
  const std::vector<std::int64_t> taken = take(domain, file, all, wanted);
  DomainDraw result{domain.name, domain.weight, domain.objective, {}, {}, {}, {}, {}};
  if (items)
    take_items(result, options, taken);
  else
    take_rows(result, taken);
  result.lengths = file.lengths_of(result.rows);
  set_shares(result);
  return result;
}

Calibration Calibration::draw_with(const CalibrationConfig& config, std::int64_t vocabulary,
                                   const Take& take) {
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
    problems.add(problems_of([&] {
      calibration.domains_.push_back(
          drawn(domain, calibration.files_.back(), take, fmt::format("{}[{}]", config.key, d)));
    }));
  }
  problems.throw_if_any();
  return calibration;
}

Calibration Calibration::draw(const CalibrationConfig& config, std::int64_t iteration,
                              std::int64_t vocabulary) {
  const std::int64_t draw = config.resample ? std::max<std::int64_t>(iteration - 1, 0) : 0;
  return draw_with(
      config, vocabulary,
      [&](const DomainConfig& domain, const TokenFile&, std::int64_t all, std::int64_t wanted) {
        return draw_rows(all, wanted, config.seed, domain.name, draw);
      });
}

Calibration Calibration::draw_apart(const CalibrationConfig& config, const RowsOfFiles& taken,
                                    std::int64_t vocabulary) {
  return draw_with(
      config, vocabulary,
      [&](const DomainConfig& domain, const TokenFile& file, std::int64_t all,
          std::int64_t wanted) {
        std::vector<std::int64_t> order = shuffled(all, config.seed, name_word(domain.name), 0);
        const auto others = taken.find(domain.tokens);
        if (others != taken.end()) {
          // Of an item, its first row says for all whether they were looked at.
          const bool items = domain.objective == Objective::margin;
          const OptionRows options = items ? file.options() : OptionRows();
          std::stable_partition(order.begin(), order.end(), [&](std::int64_t i) {
            const std::int64_t row = items ? options.first[static_cast<std::size_t>(i)] : i;
            return !others->second.contains(row);
          });
        }
        order.resize(static_cast<std::size_t>(wanted));
        std::sort(order.begin(), order.end());
        return order;
      });
}

Calibration::RowsOfFiles Calibration::rows_of_files() const {
  RowsOfFiles rows;
  for (std::size_t d = 0; d < domains_.size(); ++d)
    rows[files_[d].path()].insert(domains_[d].rows.begin(), domains_[d].rows.end());
  return rows;
}

Calibration Calibration::whole(TokenFile file, const std::string& name,
                               std::int64_t micro_batch_tokens) {
  Calibration calibration;
  calibration.micro_batch_tokens_ = micro_batch_tokens;
  DomainConfig domain;
  domain.name = name;
  domain.tokens = file.path();
  const Take all_rows = [](const DomainConfig&, const TokenFile&, std::int64_t all, std::int64_t) {
    return draw_rows(all, all, 0, {}, 0);
  };
  calibration.domains_.push_back(drawn(domain, file, all_rows, name));
  calibration.files_.push_back(std::move(file));
  return calibration;
}

std::vector<Calibration::Placed> Calibration::placed(std::size_t domain) const {
  const DomainDraw& draw = domains_[domain];
  const std::int64_t most =
      sequences_per_micro_batch(micro_batch_tokens_, files_[domain].sequence_tokens());
  const std::vector<Whole> wholes = wholes_of(draw, files_[domain].sequence_tokens());
  const auto size = static_cast<std::size_t>(most);
  const std::vector<std::size_t> begins = draw.objective == Objective::margin
                                              ? begins_of_items(wholes, size)
                                              : begins_of_least_padding(wholes, size);
  std::vector<Placed> batches;
  for (std::size_t j = 0; j < begins.size(); ++j) {
    const std::size_t end = j + 1 < begins.size() ? begins[j + 1] : wholes.size();
    Placed placed{(static_cast<double>(j) + 0.5) / static_cast<double>(begins.size()),
                  most * wholes[begins[j]].longest,
                  {domain, {}}};
    for (std::size_t i = begins[j]; i < end; ++i)
      for (std::size_t row = wholes[i].begin; row < wholes[i].end; ++row)
        placed.batch.places.push_back(row);
    // Files are read from the front.
    std::sort(placed.batch.places.begin(), placed.batch.places.end());
    batches.push_back(std::move(placed));
  }
  return batches;
}

std::vector<MicroBatch> Calibration::micro_batches() const {
  std::vector<Placed> all;
  for (std::size_t d = 0; d < domains_.size(); ++d)
    for (Placed& batch : placed(d)) all.push_back(std::move(batch));
  std::stable_sort(all.begin(), all.end(),
                   [](const Placed& a, const Placed& b) { return a.place < b.place; });
  std::stable_sort(all.begin(), all.end(),
                   [](const Placed& a, const Placed& b) { return a.tokens > b.tokens; });
  std::vector<MicroBatch> order;
  order.reserve(all.size());
  for (Placed& each : all) order.push_back(std::move(each.batch));
  return order;
}

std::vector<MicroBatch> Calibration::micro_batches_of(std::size_t domain) const {
  std::vector<MicroBatch> order;
  for (Placed& each : placed(domain)) order.push_back(std::move(each.batch));
  return order;
}

std::vector<std::int64_t> Calibration::rows_of(const MicroBatch& micro_batch) const {
  return at_places(domains_[micro_batch.domain].rows, micro_batch);
}

void Calibration::exclude(const std::vector<MicroBatch>& micro_batches) {
  std::vector<std::set<std::int64_t>> excluded(domains_.size());
  for (const MicroBatch& batch : micro_batches)
    for (const std::int64_t row : rows_of(batch)) excluded[batch.domain].insert(row);
  for (std::size_t d = 0; d < domains_.size(); ++d) {
    std::vector<bool> kept;
    for (const std::int64_t row : domains_[d].rows) kept.push_back(!excluded[d].contains(row));
    keep_rows(domains_[d], kept);
  }
}

CalibrationBatch Calibration::read(const MicroBatch& micro_batch, Differentiated objective,
                                   at::Device device, Prompts prompts) const {
  const DomainDraw& domain = domains_[micro_batch.domain];
  double weight = 1;
  if (objective == Differentiated::pooled_loss) {
    double total = 0;
    for (const DomainDraw& other : domains_) total += other.weight;
    weight = domain.weight / total;
  }
  CalibrationBatch result;
  result.domain = micro_batch.domain;
  result.shares = at_places(domain.shares, micro_batch);
  std::vector<double> weights = result.shares;
  for (double& row_weight : weights) row_weight *= weight;
  const TokenRows read = files_[micro_batch.domain].read(rows_of(micro_batch));
  std::optional<TokenBatch> packed;
  if (domain.objective == Objective::margin && prompts == Prompts::shared)
    packed =
        share_prompts(read, begins_of(domain, micro_batch), weights, device, result.predictions);
  if (packed) {
    result.batch = std::move(*packed);
  } else {
    result.batch = make_batch(read, weights, device, result.predictions);
    if (domain.objective == Objective::margin)
      result.batch.samples_SB = samples_of(domain, micro_batch).to(device);
  }
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

std::int64_t Calibration::real_tokens(std::size_t domain) const {
  const std::vector<std::int32_t> lengths = files_[domain].lengths();
  std::int64_t tokens = 0;
  for (const std::int64_t row : domains_[domain].rows)
    tokens += lengths[static_cast<std::size_t>(row)];
  return tokens;
}

}  // namespace espalier
