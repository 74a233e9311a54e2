#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "criteria.h"
#include "espalier/model/gate.h"
#include "espalier/model/tensor_ops.h"
#include "espalier/score/obs_order.h"
#include "espalier/score/unit_sums.h"

namespace espalier::criteria {
namespace {

/// What a value says instead of infinity until the values are of units: it never falls. Costs are
/// at least 0, and this can be added up over ranks.
constexpr double kNeverFalls = -1;

/// A half of a layer.
struct Half {
  std::int64_t layer = 0;
  UnitKind kind = UnitKind::attention;
};

/// The matrices A and G of every scored half, split by rows over the tensor ranks. They are of all
/// data at once: tokens are weighted by their domains as they are seen.
class GramMatrices final : public Statistics {
 public:
  GramMatrices(const CausalLM& model, const StatisticsOptions& options)
      : Statistics(model, options.unit),
        options_(options),
        wide_(model.options().dtype == at::kDouble ? at::kDouble : at::kFloat),
        sums_(static_cast<std::size_t>(model.layers())),
        scores_(sums_.size()) {}

  Needs needs() const override { return Needs::gradients; }
  bool weighs_tokens() const override { return true; }
  bool wants_output(std::int64_t layer, UnitKind half) const override {
    return is_scored(options_.scored, layer, half);
  }

  void observe(std::int64_t layer, UnitKind half, const HalfGradients& seen) override {
    if (token_weight() == 0) return;
    Sums& sums = sums_of_half(layer, half);
    const at::Tensor x_NK = real_rows(seen.whole_gate, seen.real_BT).to(wide_);
    add_products(sums.gram, x_NK, gate_place(model(), layer, half).mine);
    const at::Tensor factor_B = at::where(seen.row_weights_B > 0, 1 / seen.row_weights_B, 0.0)
                                    .mul_(1 / seen.scale)
                                    .to(wide_);
    const at::Tensor g_ND =
        real_rows(seen.output_gradient.to(wide_) * factor_B.view({-1, 1, 1}), seen.real_BT);
    if (is_full())
      add_products(sums.curvature, g_ND, own_outputs());
    else
      sums.curvature.add_(g_ND.square().sum(at::kDouble), token_weight());
  }

  void clear() override {
    for (auto& layer : sums_) layer = {};
    scores_.assign(sums_.size(), {});
  }

  Problems reduce(const ProcessGrid& grid, Range layers) override {
    for (const Half& half : scored_halves(layers)) {
      Sums& sums = sums_of_half(half.layer, half.kind);
      all_reduce_sum(sums.gram, grid.data().reducer());
      all_reduce_sum(sums.curvature, grid.data().reducer());
    }
    grid.data().reducer().check();
    return order_halves(grid, layers);
  }
  UnitSums finish(const Mixture&, Range) const override { return scores_; }
  std::vector<double> of_units(UnitKind, std::vector<double> values,
                               const std::vector<std::int64_t>&) const override {
    std::replace(values.begin(), values.end(), kNeverFalls,
                 std::numeric_limits<double>::infinity());
    return values;
  }

  std::optional<std::vector<UnitSums>> sums_so_far() const override { return std::nullopt; }
  void restore(const std::vector<UnitSums>&) override {
    throw Error(ExitCode::internal, "matrices of inputs cannot be restored from sums");
  }

  std::int64_t bytes() const override {
    std::int64_t bytes = 0;
    for (const auto& layer : sums_)
      for (const Sums& sums : layer)
        if (sums.gram.defined())
          bytes += static_cast<std::int64_t>(sums.gram.nbytes() + sums.curvature.nbytes());
    return bytes;
  }
  std::int64_t bytes_when_full() const override {
    const auto entry = static_cast<std::int64_t>(at::elementSize(wide_));
    std::int64_t bytes = 0;
    for (const Half& half : scored_halves(all_layers())) {
      const GatePlace entries = gate_place(model(), half.layer, half.kind);
      bytes += entries.mine.size() * entries.all * entry;
      bytes += is_full() ? own_outputs().size() * hidden() * entry
                         : static_cast<std::int64_t>(sizeof(double));
    }
    return bytes;
  }

 private:
  struct Sums {
    at::Tensor gram;       // [this rank's entries, all entries]
    at::Tensor curvature;  // [this rank's outputs, D], or a number: its trace
  };

  bool is_full() const { return options_.curvature == Curvature::full; }
  std::int64_t hidden() const { return model().config().hidden; }
  static std::size_t index(UnitKind kind) { return static_cast<std::size_t>(kind); }

  std::vector<Half> scored_halves(Range layers) const {
    std::vector<Half> halves;
    for (std::int64_t layer = layers.begin; layer < layers.end; ++layer)
      for (const UnitKind kind : {UnitKind::attention, UnitKind::mlp})
        if (is_scored(options_.scored, layer, kind)) halves.push_back({layer, kind});
    return halves;
  }

  /// The rows of G that this rank sums: any split does, since gradients are on every rank.
  Range own_outputs() const {
    const auto ranks = static_cast<std::int64_t>(model().shards().size());
    const std::int64_t rank = model().tensor_index();
    return {hidden() * rank / ranks, hidden() * (rank + 1) / ranks};
  }

  Sums& sums_of_half(std::int64_t layer, UnitKind half) {
    Sums& sums = sums_[static_cast<std::size_t>(layer)][index(half)];
    if (sums.gram.defined()) return sums;
    const at::TensorOptions options = at::TensorOptions(wide_).device(model().options().device);
    const GatePlace entries = gate_place(model(), layer, half);
    sums.gram = at::zeros({entries.mine.size(), entries.all}, options);
    sums.curvature = is_full() ? at::zeros({own_outputs().size(), hidden()}, options)
                               : at::zeros({}, options.dtype(at::kDouble));
    return sums;
  }

  /// [B, T, n] to [tokens that are no padding, n].
  static at::Tensor real_rows(const at::Tensor& values_BTn, const at::Tensor& real_BT) {
    const at::Tensor rows_Nn = values_BTn.flatten(0, 1);
    if (!real_BT.defined()) return rows_Nn;
    return rows_Nn.index_select(0, real_BT.view(-1).nonzero().view(-1));
  }

  /// Adds the rank's rows of rows^T rows.
  void add_products(at::Tensor& sum, const at::Tensor& rows_Nn, const Range& mine) const {
    sum.addmm_(rows_Nn.narrow(1, mine.begin, mine.size()).t(), rows_Nn, 1, token_weight());
  }

  /// Halves are dealt over all ranks: each data rank takes every data_size-th round of as many
  /// halves as there are tensor ranks. Collective.
  Problems order_halves(const ProcessGrid& grid, Range layers) {
    const std::vector<Half> halves = scored_halves(layers);
    const auto T = static_cast<std::size_t>(grid.tensor_size());
    const auto rounds = (halves.size() + T - 1) / T;
    Problems problems;
    std::vector<std::vector<double>> found(halves.size());
    for (std::size_t round = 0; round < rounds; ++round) {
      if (static_cast<int>(round % static_cast<std::size_t>(grid.data_size())) != grid.data_index())
        continue;
      ObsSublayer own;
      std::size_t own_half = halves.size();
      for (std::size_t i = round * T; i < std::min(halves.size(), (round + 1) * T); ++i) {
        ObsSublayer sublayer = gathered(halves[i], grid.tensor());
        if (i % T != static_cast<std::size_t>(grid.tensor_index())) continue;
        own = std::move(sublayer);
        own_half = i;
      }
      if (own_half == halves.size()) continue;
      problems.add(problems_of([&] { found[own_half] = scores_of(halves[own_half], own); }));
    }
    share(halves, std::move(found), grid.world());
    return problems;
  }

  static std::vector<double> scores_of(const Half& half, const ObsSublayer& sublayer) {
    try {
      std::vector<double> scores = obs_scores(sublayer);
      std::replace(scores.begin(), scores.end(), std::numeric_limits<double>::infinity(),
                   kNeverFalls);
      return scores;
    } catch (const Error& error) {
      std::vector<Problem> problems = error.problems();
      for (Problem& problem : problems)
        problem.where = fmt::format("{} of layer {}", name_of(half.kind), half.layer);
      throw Error(std::move(problems));
    }
  }

  /// The whole matrices of a half, on every rank of `tensor`. Its rows are forgotten. Collective.
  ObsSublayer gathered(const Half& half, const RankGroup& tensor) {
    Sums& sums = sums_[static_cast<std::size_t>(half.layer)][index(half.kind)];
    const GatePlace entries = gate_place(model(), half.layer, half.kind);
    const LayerWeights& weights = model().layer(half.layer);
    const at::Tensor reader_DK = half.kind == UnitKind::mlp ? weights.down_DF : weights.o_DHE;
    ObsSublayer sublayer;
    sublayer.damping = options_.damping;
    sublayer.gram_KK =
        whole(std::exchange(sums.gram, {}).div_(tokens()), entries.mine, entries.all, tensor);
    sublayer.reader_KD = whole(reader_DK.t().to(wide_), entries.mine, entries.all, tensor);
    const at::Tensor curvature = std::exchange(sums.curvature, {});
    if (is_full())
      sublayer.curvature_DD = whole(curvature, own_outputs(), hidden(), tensor);
    else
      sublayer.curvature_scale = curvature.item<double>() / static_cast<double>(hidden());
    sublayer.inputs_of_unit = inputs_of_units(half);
    return sublayer;
  }

  /// All rows of a matrix of which each rank has some. Collective.
  static at::Tensor whole(const at::Tensor& rows, const Range& mine, std::int64_t all,
                          const RankGroup& tensor) {
    at::Tensor matrix = espalier::gathered(rows, 0, mine, all, tensor.reducer());
    tensor.reducer().check();
    return matrix;
  }

  std::vector<std::int64_t> inputs_of_units(const Half& half) const {
    std::vector<std::int64_t> inputs;
    for (const ShardWidths& shard : model().shards()) {
      const LayerWidths& widths = shard.widths.layers[static_cast<std::size_t>(half.layer)];
      if (half.kind == UnitKind::mlp) {
        inputs.insert(inputs.end(), widths.channels.size(), 1);
      } else if (unit() == AttentionUnit::kv_group) {
        for (const std::int64_t heads : widths.groups(model().config()))
          inputs.push_back(heads * model().config().head_dim);
      } else {
        inputs.insert(inputs.end(), widths.query_heads.size(), model().config().head_dim);
      }
    }
    return inputs;
  }

  /// Tells everybody what each rank found, and keeps this rank's part. Collective over the world.
  void share(const std::vector<Half>& halves, std::vector<std::vector<double>> found,
             Communicator& world) {
    std::vector<double> all;
    for (std::size_t i = 0; i < halves.size(); ++i) {
      found[i].resize(inputs_of_units(halves[i]).size(), 0.0);
      all.insert(all.end(), found[i].begin(), found[i].end());
    }
    world.all_reduce_sum(std::span<double>(all));
    auto next = all.begin();
    for (const Half& half : halves)
      for (const ShardWidths& shard : model().shards()) {
        const LayerWidths& widths = shard.widths.layers[static_cast<std::size_t>(half.layer)];
        const auto end =
            next + static_cast<std::ptrdiff_t>(unit_numbers(widths, unit(), half.kind).size());
        if (&shard == &model().shard())
          scores_[static_cast<std::size_t>(half.layer)][index(half.kind)].assign(next, end);
        next = end;
      }
  }

  StatisticsOptions options_;
  at::ScalarType wide_;
  std::vector<std::array<Sums, 2>> sums_;
  UnitSums scores_;
};

}  // namespace

std::unique_ptr<Statistics> obs(const CausalLM& model, const StatisticsOptions& options) {
  return std::make_unique<GramMatrices>(model, options);
}

}  // namespace espalier::criteria
