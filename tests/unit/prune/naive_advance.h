#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "espalier/prune/plan.h"
#include "unit/prune/sample_models.h"

// A second implementation of one pruning step that shares nothing with the first: after every
// single removal it builds the widths anew and counts the whole model.

namespace espalier::testing {

/// (score, layer, kind, unit) with kind 0 = attention, 1 = MLP.
using Ranked = std::tuple<double, std::int64_t, int, std::int64_t>;

inline std::int64_t units_of(const ModelConfig& config, AttentionUnit unit, int kind) {
  if (kind == 1) return config.channels;
  return unit == AttentionUnit::kv_group ? config.kv_heads : config.heads;
}

/// A score for every surviving unit of the listed kinds; few different values, so that ties are
/// many.
inline ScoreTable drawn_scores(Draw& draw, const PruningPlan& plan) {
  ScoreTable table;
  const auto fill = [&](const UnitMatrix<std::int32_t>& removed_at, ScoreList& list) {
    for (std::int64_t layer = 0; layer < removed_at.layers; ++layer)
      for (std::int64_t unit = 0; unit < removed_at.units; ++unit) {
        if (removed_at.at(layer, unit) >= 0) continue;
        list.layer.push_back(static_cast<std::int32_t>(layer));
        list.unit.push_back(static_cast<std::int32_t>(unit));
        list.score.push_back(static_cast<double>(draw.below(12)) / 8 - 0.25);
      }
  };
  fill(plan.attention_removed_at, table.attention);
  fill(plan.mlp_removed_at, table.mlp);
  return table;
}

class NaiveAdvance {
 public:
  NaiveAdvance(const ModelConfig& config, const PruneRules& rules, const PruningPlan& plan,
               const ScoreTable& scores, double target, std::int64_t iteration)
      : config_(config), rules_(rules), before_(plan), plan_(plan), target_(target) {
    collect(0, scores.attention);
    collect(1, scores.mlp);
    if (rules.width_multiple > 1) block();
    std::sort(ranked_.begin(), ranked_.end());
    if (rules.ranking == Ranking::global)
      global();
    else if (rules.ranking == Ranking::global_by_kind)
      by_kind();
    else
      local();
    std::sort(fallen_.begin(), fallen_.end());
    std::int64_t place = before_.removed();
    plan_ = before_;
    for (const Ranked& unit : fallen_) {
      set(plan_, unit, iteration, place);
      place = plan_.removed();
    }
    plan_.iteration = iteration;
  }

  const PruningPlan& plan() const { return plan_; }

 private:
  using Within = std::function<bool(const PruningPlan&)>;

  bool listed(int kind) const { return kind == 0 ? rules_.attention : rules_.mlp; }

  void collect(int kind, const ScoreList& list) {
    const auto& removed_at = kind == 0 ? before_.attention_removed_at : before_.mlp_removed_at;
    for (std::size_t i = 0; i < list.score.size(); ++i)
      if (listed(kind) && !rules_.protected_layer[static_cast<std::size_t>(list.layer[i])] &&
          removed_at.at(list.layer[i], list.unit[i]) < 0)
        ranked_.emplace_back(list.score[i], list.layer[i], kind, list.unit[i]);
    if (kind == 0 && before_.attention_unit == AttentionUnit::equal_per_group) bundle();
  }

  /// Puts the j-th lowest heads of all groups of a layer in one entry (mean, layer, 0, j).
  void bundle() {
    std::map<std::pair<std::int64_t, std::int64_t>, std::vector<double>> scores;
    for (const auto& [score, layer, kind, head] : ranked_) {
      const std::int64_t group = head / config_.group_size();
      std::int64_t j = 0;  // heads of this group that fall earlier
      for (const auto& [other, of_layer, of_kind, number] : ranked_)
        j += of_layer == layer && number / config_.group_size() == group &&
             std::pair(other, number) < std::pair(score, head);
      heads_[{layer, j}].push_back(head);
      scores[{layer, j}].push_back(score);
    }
    ranked_.clear();
    for (auto& [entry, heads] : heads_) {
      double sum = 0;  // added in the order of the groups, which the heads arrive in
      for (const double score : scores[entry]) sum += score;
      ranked_.emplace_back(sum / static_cast<double>(heads.size()), entry.first, 0, entry.second);
    }
  }

  /// Puts the j-th lowest m channels of a layer in one entry (mean, layer, 1, j).
  void block() {
    std::map<std::int64_t, std::vector<Ranked>> by_layer;
    std::vector<Ranked> others;
    for (const Ranked& unit : ranked_)
      if (std::get<2>(unit) == 1)
        by_layer[std::get<1>(unit)].push_back(unit);
      else
        others.push_back(unit);
    ranked_ = others;
    for (auto& [layer, channels] : by_layer) {
      std::sort(channels.begin(), channels.end());
      std::map<std::int64_t, double> sums;
      for (std::size_t i = 0; i < channels.size(); ++i) {
        const std::int64_t j = static_cast<std::int64_t>(i) / rules_.width_multiple;
        channels_[{layer, j}].push_back(std::get<3>(channels[i]));
        sums[j] += std::get<0>(channels[i]);
      }
      for (const auto& [j, sum] : sums)
        ranked_.emplace_back(sum / static_cast<double>(rules_.width_multiple), layer, 1, j);
    }
  }

  /// The units of one entry.
  std::vector<std::int64_t> units_in(const Ranked& entry) const {
    const auto [score, layer, kind, number] = entry;
    if (kind == 1 && rules_.width_multiple > 1) return channels_.at({layer, number});
    if (kind == 1 || before_.attention_unit != AttentionUnit::equal_per_group) return {number};
    return heads_.at({layer, number});
  }

  void set(PruningPlan& plan, const Ranked& entry, std::int64_t iteration, std::int64_t place) {
    const auto [score, layer, kind, number] = entry;
    for (const std::int64_t unit : units_in(entry)) {
      (kind == 0 ? plan.attention_removed_at : plan.mlp_removed_at).at(layer, unit) =
          static_cast<std::int32_t>(iteration);
      (kind == 0 ? plan.attention_order : plan.mlp_order).at(layer, unit) = place++;
    }
  }

  bool holds_floors(const PruningPlan& plan, std::int64_t layer, int kind) const {
    const LayerWidths widths = widths_of(config_, plan).layers[static_cast<std::size_t>(layer)];
    if (kind == 0) return static_cast<std::int64_t>(widths.query_heads.size()) >= rules_.min_heads;
    return static_cast<std::int64_t>(widths.channels.size()) >= rules_.min_channels;
  }

  void take(const std::function<bool(const Ranked&)>& in_list, const Within& within) {
    for (const Ranked& unit : ranked_) {
      if (!in_list(unit)) continue;
      PruningPlan trial = plan_;
      set(trial, unit, 1, 0);
      if (!holds_floors(trial, std::get<1>(unit), std::get<2>(unit))) continue;
      if (!within(trial)) return;
      plan_ = trial;
      fallen_.push_back(unit);
    }
  }

  std::int64_t removed(const PruningPlan& plan, int kind, std::int64_t layer = -1) const {
    const auto& removed_at = kind == 0 ? plan.attention_removed_at : plan.mlp_removed_at;
    std::int64_t count = 0;
    for (std::int64_t i = 0; i < config_.layers; ++i)
      for (std::int64_t unit = 0; unit < removed_at.units; ++unit)
        count += (layer < 0 || i == layer) && removed_at.at(i, unit) >= 0;
    return count;
  }

  static std::int64_t whole(double value) {
    return static_cast<std::int64_t>(std::floor(value + 1e-9));
  }

  std::int64_t measured(const ModelWidths& widths) const {
    const ParameterCount count = count_parameters(config_, widths);
    return rules_.measure == Measure::total_parameters ? count.total : count.decoder;
  }

  std::int64_t parameters_gone(const ModelWidths& widths) const {
    return measured(dense_widths(config_)) - measured(widths);
  }

  /// Widths of the plan as if only one kind had been touched.
  ModelWidths only(int kind, const PruningPlan& plan) const {
    ModelWidths widths = dense_widths(config_);
    const ModelWidths pruned = widths_of(config_, plan);
    for (std::size_t i = 0; i < widths.layers.size(); ++i) {
      if (kind == 0) {
        widths.layers[i].query_heads = pruned.layers[i].query_heads;
        widths.layers[i].kv_heads = pruned.layers[i].kv_heads;
      } else {
        widths.layers[i].channels = pruned.layers[i].channels;
      }
    }
    return widths;
  }

  double dense() const { return static_cast<double>(measured(dense_widths(config_))); }

  void global() {
    const auto all = [](const Ranked&) { return true; };
    if (rules_.measure != Measure::structures) {
      const std::int64_t budget = whole(dense() * target_);
      take(all, [&](const PruningPlan& plan) {
        return parameters_gone(widths_of(config_, plan)) <= budget;
      });
      return;
    }
    std::int64_t n = 0;
    for (int kind : {0, 1})
      if (listed(kind)) n += config_.layers * units_of(config_, before_.attention_unit, kind);
    const std::int64_t most = whole(static_cast<double>(n) * target_);
    take(all, [&](const PruningPlan& plan) {
      std::int64_t count = 0;
      for (int kind : {0, 1})
        if (listed(kind)) count += removed(plan, kind);
      return count <= most;
    });
  }

  /// Parameters that vanish when every unit of a kind does.
  double prunable(int kind) const {
    ModelWidths widths = dense_widths(config_);
    for (LayerWidths& layer : widths.layers) {
      if (kind == 0) layer.query_heads = layer.kv_heads = {};
      if (kind == 1) layer.channels = {};
    }
    return static_cast<double>(parameters_gone(widths));
  }

  void by_kind() {
    double both = 0;
    for (int kind : {0, 1})
      if (listed(kind)) both += prunable(kind);
    for (int kind : {0, 1}) {
      if (!listed(kind)) continue;
      const std::int64_t budget = whole(dense() * target_ * (prunable(kind) / both));
      const std::int64_t n = config_.layers * units_of(config_, before_.attention_unit, kind);
      const std::int64_t most = whole(static_cast<double>(n) * target_);
      take([&](const Ranked& unit) { return std::get<2>(unit) == kind; },
           [&](const PruningPlan& plan) {
             return rules_.measure == Measure::structures
                        ? removed(plan, kind) <= most
                        : parameters_gone(only(kind, plan)) <= budget;
           });
    }
  }

  void at_ratio(double ratio) {
    plan_ = before_;
    fallen_.clear();
    for (std::int64_t layer = 0; layer < config_.layers; ++layer)
      for (int kind : {0, 1}) {
        const std::int64_t n = units_of(config_, before_.attention_unit, kind);
        const std::int64_t most = whole(static_cast<double>(n) * ratio);
        take(
            [&](const Ranked& unit) {
              return std::get<1>(unit) == layer && std::get<2>(unit) == kind;
            },
            [&](const PruningPlan& plan) { return removed(plan, kind, layer) <= most; });
      }
  }

  void local() {
    if (rules_.measure == Measure::structures) return at_ratio(target_);
    const std::int64_t budget = whole(dense() * target_);
    std::vector<double> ratios{0};
    for (int kind : {0, 1}) {
      const std::int64_t n = units_of(config_, before_.attention_unit, kind);
      for (std::int64_t k = 1; k <= n && listed(kind); ++k)
        ratios.push_back(static_cast<double>(k) / static_cast<double>(n));
    }
    std::sort(ratios.rbegin(), ratios.rend());
    for (const double ratio : ratios) {
      at_ratio(ratio);
      if (ratio == 0 || parameters_gone(widths_of(config_, plan_)) <= budget) return;
    }
  }

  const ModelConfig& config_;
  PruneRules rules_;
  PruningPlan before_;
  PruningPlan plan_;
  double target_;
  std::vector<Ranked> ranked_;
  std::vector<Ranked> fallen_;
  /// The heads of each bundle, by layer and place.
  std::map<std::pair<std::int64_t, std::int64_t>, std::vector<std::int64_t>> heads_;
  /// The channels of each block, by layer and place.
  std::map<std::pair<std::int64_t, std::int64_t>, std::vector<std::int64_t>> channels_;
};

}  // namespace espalier::testing
