#include "espalier/score/memory_need.h"

#include <algorithm>
#include <vector>

#include <c10/core/ScalarType.h>

#include "espalier/model/gate.h"
#include "espalier/model/kv_cache.h"
#include "espalier/model/vocabulary_loss.h"
#include "espalier/prune/unit_tensors.h"
#include "espalier/score/obs_order.h"
#include "espalier/score/unit_sums.h"

namespace espalier {
namespace {

std::int64_t size_of(at::ScalarType type) {
  return static_cast<std::int64_t>(c10::elementSize(type));
}

/// Elements of a tensor on the rank that holds `shard`.
std::int64_t elements(const TensorSpec& spec, const ModelConfig& config, const ShardWidths& shard) {
  const std::vector<std::int64_t> shape = shape_with(spec, config, shard.widths);
  std::int64_t product = 1;
  for (std::size_t axis = 0; axis < shape.size(); ++axis)
    product *= spec.axes[axis] == AxisKind::vocabulary ? shard.vocabulary.size() : shape[axis];
  return product;
}

std::int64_t units_of(const LayerWidths& layer, AttentionUnit unit, UnitKind half) {
  return static_cast<std::int64_t>(unit_numbers(layer, unit, half).size());
}

/// The need of one tensor rank.
class RankNeed {
 public:
  RankNeed(const ModelConfig& config, const PassShape& pass, int rank)
      : config_(config),
        pass_(pass),
        rank_(rank),
        shard_(shard_of(config, pass.widths, pass.tensor, rank, pass.channel_multiple)),
        entry_(size_of(pass.dtype)) {}

  MemoryNeed need() const {
    if (pass_.layer_by_layer) return layer_by_layer();
    MemoryNeed need;
    for (const Tensors& of_layer : tensors()) {
      need.weights += of_layer.weights;
      need.statistics += of_layer.sums;
    }
    need.statistics += summed_numbers() * pass_.domains * size_of(at::kDouble);
    if (with_outputs()) need.statistics += gram_bytes({0, config_.layers});
    need.cache = cache_bytes();
    // Inputs and graphs of halves are let go on the way back, so the height is where all together
    // are most.
    std::int64_t with_graphs = 0;
    const auto consider = [&](std::int64_t inputs, std::int64_t working, std::int64_t graphs) {
      const std::int64_t hidden = (inputs + 2) * hidden_bytes();
      with_graphs = std::max(with_graphs, hidden + working + graphs);
      if (hidden + working <= need.hidden_states + need.working) return;
      need.hidden_states = hidden;
      need.working = working;
    };
    const std::int64_t first = lowest_differentiated(), halves = 2 * config_.layers;
    const std::vector<std::int64_t> graphs = graphs_below(pass_.spare_bytes - need.statistics);
    consider(halves - first, loss_working(), graphs.back());
    for (std::int64_t half = 0; half < halves; ++half)
      consider(std::max<std::int64_t>(0, half - first + 1), half_bytes(half, Way::back),
               graphs[static_cast<std::size_t>(half)]);
    if (with_outputs()) consider(-2, order_working({0, config_.layers}), 0);
    need.kept_graphs = with_graphs - need.hidden_states - need.working;
    return need;
  }

 private:
  /// Of a layer, or of what lies outside.
  struct Tensors {
    std::int64_t weights = 0;
    std::int64_t sums = 0;  // of gradients of weights
  };
  /// Of each layer, and behind them of what lies outside.
  std::vector<Tensors> tensors() const {
    std::vector<Tensors> all(static_cast<std::size_t>(config_.layers + 1));
    for (const TensorSpec& spec : tensor_catalog(config_)) {
      Tensors& of = spec.layer < 0 ? all.back() : all[static_cast<std::size_t>(spec.layer)];
      const std::int64_t n = elements(spec, config_, shard_);
      of.weights += n * entry_;
      if (with_weight_gradients() && is_scored_tensor(spec)) of.sums += n * accumulator();
    }
    return all;
  }

  MemoryNeed layer_by_layer() const {
    MemoryNeed need;
    const std::vector<Tensors> all = tensors();
    // The one at hand and the one that is read beside it.
    const auto weights = [&](std::int64_t layer, std::int64_t next) {
      const auto of = [&](std::int64_t l) { return all[static_cast<std::size_t>(l)].weights; };
      const bool is_layer = next >= 0 && next < config_.layers;
      return all.back().weights + of(layer) + (is_layer ? of(next) : 0);
    };
    const std::int64_t small_sums = summed_numbers() * pass_.domains * size_of(at::kDouble);
    const std::int64_t lowest = with_gradients() ? lowest_half(pass_.scored) / 2 : config_.layers;
    need.boundaries =
        (config_.layers - lowest + 1) * pass_.boundary_tokens * config_.hidden * entry_;
    // Sums of a layer begin on the way back through it, and end with it.
    const auto consider = [&](std::int64_t held, std::int64_t inputs, std::int64_t working,
                              std::int64_t sums) {
      const std::int64_t hidden = inputs * hidden_bytes();
      if (held + hidden + working + small_sums + sums <=
          need.weights + need.hidden_states + need.working + need.statistics)
        return;
      need.weights = held;
      need.hidden_states = hidden;
      need.working = working;
      need.statistics = small_sums + sums;
    };
    consider(weights(config_.layers - 1, -1), 3, loss_working(), 0);
    for (std::int64_t layer = 0; layer < config_.layers; ++layer) {
      consider(weights(layer, layer + 1), 3,
               std::max(attention_bytes(layer, Way::forward), mlp_bytes(layer, Way::forward)), 0);
      if (layer < lowest) continue;
      const std::int64_t gram = with_outputs() ? gram_bytes({layer, layer + 1}) : 0;
      const std::int64_t sums = all[static_cast<std::size_t>(layer)].sums + gram;
      // The attention's graph is kept while the MLP goes back, at whose end is its norm.
      const std::int64_t held = weights(layer, layer > lowest ? layer - 1 : -1);
      consider(held, 4,
               std::max(attention_bytes(layer, Way::forward) +
                            std::max(mlp_bytes(layer, Way::back), norm_back_bytes()),
                        attention_bytes(layer, Way::back)),
               sums);
      if (with_outputs()) consider(held, 0, order_working({layer, layer + 1}), sums);
    }
    return need;
  }

  std::int64_t lowest_differentiated() const {
    return with_gradients() ? lowest_half(pass_.scored) : 2 * config_.layers;
  }
  /// [B, T, D]
  std::int64_t hidden_bytes() const { return pass_.tokens * config_.hidden * entry_; }

  /// Bytes of the graphs that are kept of the halves below each, and last of all, where `room` is
  /// for them, the loss and the inputs of halves: as blockwise_backward does it.
  std::vector<std::int64_t> graphs_below(std::int64_t room) const {
    const std::int64_t first = lowest_differentiated(), halves = 2 * config_.layers;
    room -= loss_working() + (halves - first + 2) * hidden_bytes();
    std::vector<std::int64_t> below(static_cast<std::size_t>(first + 1), 0);
    std::int64_t largest = 0;
    for (std::int64_t half = first; half < halves; ++half) {
      const std::int64_t graph = graph_bytes(half);
      largest = std::max(largest, graph);
      const bool kept = room >= graph + largest;
      if (kept) room -= graph;
      below.push_back(below.back() + (kept ? graph : 0));
    }
    return below;
  }

  bool with_weight_gradients() const { return pass_.criterion == Criterion::taylor; }
  bool with_gradients() const {
    return with_weight_gradients() || pass_.criterion == Criterion::taylor_gate ||
           pass_.criterion == Criterion::taylor_gate_sample || with_outputs();
  }
  bool with_outputs() const { return pass_.criterion == Criterion::obs; }
  /// What its matrices are made of.
  std::int64_t wide() const { return pass_.dtype == at::kDouble ? 8 : 4; }

  std::int64_t accumulator() const {
    return size_of(accumulator_type(pass_.accumulate, pass_.dtype));
  }

  bool is_scored_tensor(const TensorSpec& spec) const {
    if (spec.layer < 0) return false;
    for (const UnitKind half : {UnitKind::attention, UnitKind::mlp}) {
      if (!is_scored(pass_.scored, spec.layer, half)) continue;
      const std::vector<TensorRole> roles = unit_roles(config_, pass_.unit, half);
      if (std::find(roles.begin(), roles.end(), spec.role) != roles.end()) return true;
    }
    return false;
  }

  /// Numbers that are summed for each domain.
  std::int64_t summed_numbers() const {
    std::int64_t numbers = 0;
    for (std::int64_t layer = 0; layer < config_.layers; ++layer)
      for (const UnitKind half : {UnitKind::attention, UnitKind::mlp})
        if (is_scored(pass_.scored, layer, half)) numbers += summed_in(widths(layer), half);
    return numbers;
  }
  std::int64_t summed_in(const LayerWidths& layer, UnitKind half) const {
    switch (pass_.criterion) {
      case Criterion::taylor_gate:
      case Criterion::taylor_gate_sample:
        return units_of(layer, pass_.unit, half);
      case Criterion::wanda_sp:
        return gate_entries(layer, half, config_);
      case Criterion::flap:
        return 2 * gate_entries(layer, half, config_);
      case Criterion::obs:
      case Criterion::taylor:
      case Criterion::magnitude:
      case Criterion::random:
        break;
    }
    return 0;
  }
  /// Entries of a half at the gate over all ranks.
  std::int64_t all_entries(std::int64_t layer, UnitKind half) const {
    return gate_entries(pass_.widths.layers[static_cast<std::size_t>(layer)], half, config_);
  }
  bool scores(std::int64_t layer, UnitKind half) const {
    return is_scored(pass_.scored, layer, half);
  }
  /// Calls f(i, layer, half) for every scored half of these layers, the i-th.
  template <class F>
  void for_each_scored(Range layers, F&& f) const {
    std::int64_t i = 0;
    for (std::int64_t layer = layers.begin; layer < layers.end; ++layer)
      for (const UnitKind half : {UnitKind::attention, UnitKind::mlp})
        if (scores(layer, half)) f(i++, layer, half);
  }
  /// This rank's rows of A and, under full curvature, of G.
  std::int64_t gram_bytes(std::int64_t layer, UnitKind half) const {
    const std::int64_t D = config_.hidden, T = pass_.tensor;
    const std::int64_t outputs = D * (rank_ + 1) / T - D * rank_ / T;
    const std::int64_t numbers =
        gate_entries(widths(layer), half, config_) * all_entries(layer, half);
    return pass_.curvature == Curvature::full ? wide() * (numbers + outputs * D)
                                              : wide() * numbers + size_of(at::kDouble);
  }
  std::int64_t gram_bytes(Range layers) const {
    std::int64_t bytes = 0;
    for_each_scored(layers, [&](std::int64_t, std::int64_t layer, UnitKind half) {
      bytes += gram_bytes(layer, half);
    });
    return bytes;
  }
  /// Halves are ordered in rounds of one per tensor rank: matrices gathered in place of this rank's
  /// rows of all of them, and what ordering takes beside them.
  std::int64_t order_working(Range layers) const {
    std::vector<std::int64_t> rounds(static_cast<std::size_t>(2 * layers.size()), 0);
    for_each_scored(layers, [&](std::int64_t i, std::int64_t layer, UnitKind half) {
      std::int64_t& round = rounds[static_cast<std::size_t>(i / pass_.tensor)];
      round -= gram_bytes(layer, half);
      if (i % pass_.tensor != rank_) return;
      const std::int64_t K = all_entries(layer, half), D = config_.hidden;
      const std::int64_t curvature = pass_.curvature == Curvature::full ? D * D : 0;
      round += obs_order_bytes(K, D) + wide() * (K * K + K * D + curvature);
    });
    return std::max<std::int64_t>(0, *std::max_element(rounds.begin(), rounds.end()));
  }
  bool with_inputs() const {
    return pass_.criterion == Criterion::wanda_sp || pass_.criterion == Criterion::flap;
  }
  /// What enters o_proj or down_proj, and a block of it in float64, once the half has run.
  std::int64_t observed_bytes(std::int64_t layer, UnitKind half) const {
    if (!scores(layer, half)) return 0;
    if (with_outputs()) {
      // The rank's gate and that of all ranks, the gradient of the output times a factor of its
      // row, and wider copies of a narrow gate and gradient.
      const std::int64_t copy = entry_ < wide() ? wide() : 0;
      const std::int64_t mine = gate_entries(widths(layer), half, config_);
      const std::int64_t gathered = pass_.tensor > 1 ? all_entries(layer, half) * entry_ : 0;
      return pass_.tokens * (mine * entry_ + gathered + all_entries(layer, half) * copy +
                             config_.hidden * (copy + wide()));
    }
    if (!with_inputs()) return 0;
    const std::int64_t entries = gate_entries(widths(layer), half, config_);
    return pass_.tokens * entries * entry_ + input_sums_bytes(pass_.tokens, entries);
  }

  std::int64_t cache_bytes() const {
    std::int64_t all = 0, largest = 0;
    for (std::int64_t layer = 0; layer < config_.layers; ++layer) {
      const std::int64_t bytes =
          pass_.cached_tokens * entry_ *
          cached_per_token(static_cast<std::int64_t>(widths(layer).kv_heads.size()),
                           config_.head_dim);
      all += bytes;
      largest = std::max(largest, bytes);
    }
    return all + largest;
  }

  const LayerWidths& widths(std::int64_t layer) const {
    return shard_.widths.layers[static_cast<std::size_t>(layer)];
  }

  /// What RMSNorm keeps at most: its input in float32 where the model is narrower (not where our
  /// own loops run, model/fused.h), and its output where weights that read it have gradients.
  std::int64_t norm_bytes() const {
    const std::int64_t wide = keeps_wide_copies() ? 4 : 0;
    return pass_.tokens * config_.hidden * (wide + (with_weight_gradients() ? entry_ : 0));
  }
  bool norms_are_loops() const { return pass_.on_cpu && pass_.dtype != at::kHalf; }
  bool keeps_wide_copies() const { return entry_ < 4 && !norms_are_loops(); }
  std::int64_t loss_working() const {
    return std::max(loss_bytes(config_, pass_.tensor, pass_.dtype, pass_.tokens, with_gradients()),
                    final_norm_bytes());
  }
  /// Going back through an RMSNorm: both gradients; of LibTorch's operations arrays in float32 or
  /// wider, fewer where no rows of the loss lie beside them.
  std::int64_t norm_back_bytes() const {
    if (norms_are_loops()) return pass_.tokens * config_.hidden * 2 * entry_;
    return pass_.tokens * config_.hidden * 4 * std::max<std::int64_t>(4, entry_);
  }
  /// Going back through the last RMSNorm: its output, the rows of the loss and three gradients; of
  /// LibTorch's operations six arrays in float32 or wider beside the rows of the loss.
  std::int64_t final_norm_bytes() const {
    if (!with_gradients()) return 0;
    if (norms_are_loops()) return pass_.tokens * config_.hidden * 5 * entry_;
    const std::int64_t wide = std::max<std::int64_t>(4, entry_);
    return pass_.tokens * config_.hidden * (6 * wide + (entry_ < 4 ? 3 : 2) * entry_);
  }
  /// What a half takes while it runs forward, or most on its way back, if it goes that way.
  enum class Way { forward, back };

  /// The graph of a half that waits for its way back, with its output.
  std::int64_t graph_bytes(std::int64_t half) const {
    const LayerWidths& layer = widths(half / 2);
    if (half % 2 == 1) return mlp_bytes(half / 2, Way::forward) + hidden_bytes();
    const auto heads = static_cast<std::int64_t>(layer.query_heads.size());
    const auto kv_heads = static_cast<std::int64_t>(layer.kv_heads.size());
    // Rotated q and k, v and the output; q and k as they came out of their products, for their
    // weights or their norms.
    const std::int64_t kept = 2 * (heads + kv_heads) * config_.head_dim * entry_;
    const std::int64_t mapped =
        config_.qk_norm || with_weight_gradients()
            ? (heads + kv_heads) * config_.head_dim * (config_.qk_norm ? normed_entry() : entry_)
            : 0;
    return norm_bytes() + pass_.tokens * (kept + mapped) + hidden_bytes();
  }
  /// Of q or k before its norm, and that in float32 where the model is narrower.
  std::int64_t normed_entry() const { return keeps_wide_copies() ? entry_ + 4 : entry_; }

  std::int64_t half_bytes(std::int64_t half, Way way) const {
    return half % 2 == 0 ? attention_bytes(half / 2, way) : mlp_bytes(half / 2, way);
  }

  /// Rotated q and k, v, the output and its contiguous copy; where q and k are normed, what they
  /// were before, and that in float32 where the model is narrower; going back a gradient of each.
  std::int64_t attention_bytes(std::int64_t layer, Way way) const {
    const auto heads = static_cast<std::int64_t>(widths(layer).query_heads.size());
    const auto kv_heads = static_cast<std::int64_t>(widths(layer).kv_heads.size());
    // Where weights have gradients, q and k are held as they came out of their products as well.
    const std::int64_t mapped = with_weight_gradients() ? heads + kv_heads : 0;
    const std::int64_t kept = (3 * heads + 2 * kv_heads + mapped) * config_.head_dim;
    const int arrays = with_gradients() && way == Way::back ? 2 : 1;
    const std::int64_t normed =
        config_.qk_norm ? (heads + kv_heads) * config_.head_dim * normed_entry() : 0;
    return std::max(norm_bytes() + pass_.tokens * (entry_ * kept * arrays + normed),
                    observed_bytes(layer, UnitKind::attention));
  }
  /// gate, silu(gate), up and their product; going back the gradients of three.
  std::int64_t mlp_bytes(std::int64_t layer, Way way) const {
    const auto channels = static_cast<std::int64_t>(widths(layer).channels.size());
    const int arrays = with_gradients() && way == Way::back ? 7 : 4;
    return std::max(norm_bytes() + pass_.tokens * entry_ * channels * arrays,
                    observed_bytes(layer, UnitKind::mlp));
  }

  const ModelConfig& config_;
  const PassShape& pass_;
  std::int64_t rank_;
  ShardWidths shard_;
  std::int64_t entry_;
};

}  // namespace

MemoryNeed memory_need(const ModelConfig& config, const PassShape& pass) {
  MemoryNeed most;
  for (int rank = 0; rank < pass.tensor; ++rank) {
    const MemoryNeed need = RankNeed(config, pass, rank).need();
    if (need.total() > most.total()) most = need;
  }
  return most;
}

}  // namespace espalier
