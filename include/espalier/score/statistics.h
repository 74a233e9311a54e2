#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "espalier/comm/process_grid.h"
#include "espalier/config/run_config.h"
#include "espalier/core/error.h"
#include "espalier/model/blockwise.h"

namespace espalier {

/// Which halves of which layers are scored: [layer][UnitKind].
using ScoredHalves = std::vector<std::array<bool, 2>>;
/// The first scored half, numbered as in BackwardScope; 2 * layers where none is.
std::int64_t lowest_half(const ScoredHalves& scored);

/// Numbers of the halves that this rank holds: values[layer][UnitKind], of the shard's units or of
/// entries of theirs in the order of the units; empty where a half is not scored.
using UnitSums = std::vector<std::array<std::vector<double>, 2>>;

/// What a criterion has to see of the model: nothing but its weights, what enters o_proj and
/// down_proj on the way forward, or gradients.
enum class Needs { weights, inputs, gradients };

/// How the data of several domains are taken together.
struct Mixture {
  /// Of each domain; they add up to 1.
  std::vector<double> share;
  /// Tokens of each domain that are no padding, over all data ranks.
  std::vector<double> tokens;

  /// What a token of domain d counts in statistics of all tokens: its share times the number of
  /// domains that have one, so 1 where these are equal.
  double per_token(std::size_t d) const;
};

/// A criterion at work: the additive numbers it collects, and what it makes of them. They are sums
/// over micro-batches and over data ranks; roots, absolute values and normalisation come after the
/// reduction, so that results do not depend on how the data was cut. docs/criteria.md says how to
/// write one.
class Statistics : public BackwardObserver, public InputObserver {
 public:
  virtual Needs needs() const = 0;
  /// Whether the sums are small enough to be kept for each domain by itself: then one pass over all
  /// data gives the values of every domain and of all together. Otherwise the coefficients of the
  /// mixture are in the loss that is differentiated, and there is one sum for all that is observed.
  virtual bool separates_domains() const { return false; }
  /// Whether values depend on sums over all tokens of an item alone, so that options may share the
  /// computation of their prompt.
  virtual bool sums_over_tokens() const { return false; }
  /// Whether tokens of several domains go into the same sums, each with its domain's
  /// token_weight().
  virtual bool weighs_tokens() const { return false; }
  /// Forgets everything: a new pass begins.
  virtual void clear() = 0;
  /// The domain of what is observed from here on.
  void enter(std::size_t domain) { domain_ = domain; }
  /// For weighs_tokens(): what a token of each domain counts, and what all count together.
  void weigh(std::vector<double> token_weights, double tokens) {
    token_weights_ = std::move(token_weights);
    tokens_ = tokens;
  }

  /// Sums over the ranks that hold the same shard, of these layers, all of whose data was observed;
  /// each layer once. Looks at the weights of no other layer. Collective over the grid, whatever
  /// the values are: those of this rank that are not finite are returned with tensor and layer, for
  /// the caller's next agreement.
  virtual Problems reduce(const ProcessGrid& grid, Range layers) = 0;
  /// After reduce(): this rank's values in these layers, finite or not, of units or of entries of
  /// theirs that of_units() makes units of. Looks at the weights of no
  /// other layer. Throws Error(bad_content) for weights that are not finite.
  virtual UnitSums finish(const Mixture& mixture, Range layers) const = 0;
  /// How many values finish() gives for this part of a half.
  virtual std::int64_t values_of(const LayerWidths& widths, UnitKind half) const;
  /// The values of a whole half, over all tensor ranks in dense order, to one per unit. `heads` are
  /// the query heads behind each attention unit; empty for channels. Pure.
  virtual std::vector<double> of_units(UnitKind half, std::vector<double> values,
                                       const std::vector<std::int64_t>& heads) const;

  /// After reduce() of all layers: the mean of each entry at the gates of the scored halves on this
  /// rank, over the tokens that are no padding, each counting Mixture::per_token of its domain.
  /// Nothing where the criterion does not sum the entries.
  virtual std::optional<UnitSums> mean_inputs(const Mixture& mixture) const;

  /// The sums of this rank so far, on the host, a row per domain (none for a criterion that looks
  /// at no data); nothing when they are too large to keep, or do not tell domains apart.
  virtual std::optional<std::vector<UnitSums>> sums_so_far() const = 0;
  /// Goes on from such rows in place of zero.
  virtual void restore(const std::vector<UnitSums>& rows) = 0;
  /// How many numbers a row has for this part of a half.
  virtual std::int64_t sums_of(const LayerWidths& widths, UnitKind half) const;

  /// After reduce() of some layers: what mean_inputs() needs of them, over all data ranks, a row
  /// per domain; none where it needs nothing. Of other layers zero or empty.
  virtual std::vector<UnitSums> reduced_sums() const { return {}; }
  /// Goes on with such rows in place of reduce() of their layers.
  virtual void restore_reduced(std::vector<UnitSums>) {}

  /// Bytes the accumulators take on the device now.
  virtual std::int64_t bytes() const = 0;
  /// Bytes they take once every scored half was observed, all weights being here.
  virtual std::int64_t bytes_when_full() const = 0;

 protected:
  Statistics(const CausalLM& model, AttentionUnit unit) : model_(model), unit_(unit) {}
  const CausalLM& model() const { return model_; }
  AttentionUnit unit() const { return unit_; }
  Range all_layers() const { return {0, model_.layers()}; }
  std::size_t domain() const { return domain_; }
  /// Of what is observed now.
  double token_weight() const { return token_weights_.at(domain_); }
  /// Of all that the sums are of, over all data ranks.
  double tokens() const { return tokens_; }

 private:
  const CausalLM& model_;
  AttentionUnit unit_;
  std::size_t domain_ = 0;
  std::vector<double> token_weights_;
  double tokens_ = 0;
};

struct StatisticsOptions {
  Criterion criterion = Criterion::taylor;
  AttentionUnit unit = AttentionUnit::query_head;
  Reduction reduction = Reduction::gradients;
  Accumulate accumulate = Accumulate::automatic;
  /// Of criterion obs: full or scalar.
  Curvature curvature = Curvature::full;
  double damping = 0.01;
  ScoredHalves scored;
  std::size_t domains = 1;
  /// Of criterion random.
  std::int64_t seed = 0;
  std::int64_t iteration = 0;
};

/// Makes the statistics of a criterion; `model` outlives them.
using StatisticsMaker =
    std::function<std::unique_ptr<Statistics>(const CausalLM& model, const StatisticsOptions&)>;

/// Those of options.criterion: a file each in src/score/criteria/.
std::unique_ptr<Statistics> make_statistics(const CausalLM& model,
                                            const StatisticsOptions& options);

/// The type in which gradients of weights are summed for a model of this type.
at::ScalarType accumulator_type(Accumulate accumulate, at::ScalarType model);

}  // namespace espalier
