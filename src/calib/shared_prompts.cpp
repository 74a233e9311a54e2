#include "espalier/calib/shared_prompts.h"

#include <algorithm>
#include <memory>

#include <ATen/ATen.h>

namespace espalier {
namespace {

/// A run of rows that are the options of one item, and how many of their first tokens they share.
struct Item {
  std::size_t begin = 0, end = 0;
  std::int64_t shared = 0;
};

class Rows {
 public:
  explicit Rows(const TokenRows& rows) : rows_(rows) {}

  std::size_t size() const { return rows_.length.size(); }
  std::int64_t length(std::size_t row) const { return rows_.length[row]; }
  std::int32_t token(std::size_t row, std::int64_t t) const { return rows_.tokens[at(row, t)]; }
  bool is_counted(std::size_t row, std::int64_t t) const { return rows_.counted[at(row, t)] != 0; }
  std::int64_t longest() const {
    return *std::max_element(rows_.length.begin(), rows_.length.end());
  }
  /// The place of the first token from which a counted one is predicted.
  std::int64_t first_predicting(std::size_t row) const {
    std::int64_t t = 1;
    while (!is_counted(row, t)) ++t;
    return t - 1;
  }

 private:
  std::size_t at(std::size_t row, std::int64_t t) const {
    return row * static_cast<std::size_t>(rows_.sequence_tokens) + static_cast<std::size_t>(t);
  }

  const TokenRows& rows_;
};

Item item_of(const Rows& rows, std::size_t begin, std::size_t end) {
  Item item{begin, end, rows.first_predicting(begin)};
  for (std::size_t row = begin + 1; row < end; ++row) {
    item.shared = std::min(item.shared, rows.first_predicting(row));
    std::int64_t common = 0;
    while (common < item.shared && rows.token(row, common) == rows.token(begin, common)) ++common;
    item.shared = common;
  }
  return item;
}

std::int64_t packed_tokens(const Rows& rows, const Item& item) {
  std::int64_t tokens = item.shared;
  for (std::size_t row = item.begin; row < item.end; ++row)
    tokens += rows.length(row) - item.shared;
  return tokens;
}

/// One packed row after the other, each of T tokens.
class Packing {
 public:
  Packing(const Rows& rows, std::int64_t B, std::int64_t T) : rows_(rows), T_(T) {
    const auto size = static_cast<std::size_t>(B * T);
    tokens_.reserve(size);
    position_.reserve(size);
    sequence_.reserve(size);
  }

  void add(const Item& item, std::span<const double> row_weights,
           std::vector<std::int64_t>& predictions) {
    const std::size_t row_begin = tokens_.size();
    for (std::int64_t t = 0; t < item.shared; ++t) put(item.begin, t, 0);
    for (std::size_t row = item.begin; row < item.end; ++row) {
      const std::size_t first = targets_.size();
      for (std::int64_t t = item.shared; t < rows_.length(row); ++t) {
        if (t + 1 < rows_.length(row) && rows_.is_counted(row, t + 1)) {
          predicting_.push_back(static_cast<std::int64_t>(tokens_.size()));
          targets_.push_back(rows_.token(row, t + 1));
        }
        put(row, t, static_cast<std::int64_t>(row - item.begin) + 1);
      }
      const std::size_t count = targets_.size() - first;
      predictions.push_back(static_cast<std::int64_t>(count));
      weights_.insert(weights_.end(), count, row_weights[row] / static_cast<double>(count));
    }
    real_.insert(real_.end(), tokens_.size() - row_begin, 1);
    const std::size_t row_end = row_begin + static_cast<std::size_t>(T_);
    tokens_.resize(row_end, 0);
    position_.resize(row_end, 0);
    sequence_.resize(row_end, -1);
    real_.resize(row_end, 0);
  }

  TokenBatch batch(at::Device device) const {
    const auto rows_of = [&](const auto& values) {
      return at::tensor(values, at::kLong).view({-1, T_}).to(device);
    };
    TokenBatch batch{rows_of(tokens_), at::tensor(predicting_, at::kLong).to(device),
                     at::tensor(targets_, at::kLong).to(device),
                     at::tensor(weights_, at::kDouble).to(device)};
    batch.packed = std::make_shared<PackedRows>(rows_of(position_), rows_of(sequence_));
    if (std::find(real_.begin(), real_.end(), 0) != real_.end())
      batch.real_BT = rows_of(real_).to(at::kBool);
    return batch;
  }

 private:
  void put(std::size_t row, std::int64_t t, std::int64_t sequence) {
    tokens_.push_back(rows_.token(row, t));
    position_.push_back(t);
    sequence_.push_back(sequence);
  }

  const Rows& rows_;
  std::int64_t T_;
  std::vector<std::int64_t> tokens_, position_, sequence_, real_;
  std::vector<std::int64_t> predicting_, targets_;
  std::vector<double> weights_;
};

}  // namespace

std::optional<TokenBatch> share_prompts(const TokenRows& plain, std::span<const std::size_t> begins,
                                        std::span<const double> row_weights, at::Device device,
                                        std::vector<std::int64_t>& predictions) {
  const Rows rows(plain);
  std::vector<Item> items;
  std::int64_t T = 0;
  for (std::size_t i = 0; i < begins.size(); ++i) {
    items.push_back(item_of(rows, begins[i], i + 1 < begins.size() ? begins[i + 1] : rows.size()));
    T = std::max(T, packed_tokens(rows, items.back()));
  }
  const auto B = static_cast<std::int64_t>(items.size());
  if (B * T >= static_cast<std::int64_t>(rows.size()) * rows.longest()) return std::nullopt;
  Packing packing(rows, B, T);
  for (const Item& item : items) packing.add(item, row_weights, predictions);
  return packing.batch(device);
}

}  // namespace espalier
