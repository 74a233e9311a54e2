#include "selection.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <utility>

namespace espalier {
namespace {

constexpr std::int64_t unlimited = std::numeric_limits<std::int64_t>::max();

/// What one list may still lose.
struct Limit {
  std::int64_t units = unlimited;
  std::int64_t parameters = unlimited;
};

/// The gap relative to the highest fallen key; 0 for equal keys, the largest finite number where
/// the quotient is not finite. Standardised scores may be negative, hence the absolute value.
double relative_gap(double fallen, double kept) {
  const double gap = kept - fallen;
  if (!(gap > 0)) return 0;
  const double relative = gap / std::abs(fallen);
  return std::isfinite(relative) ? relative : std::numeric_limits<double>::max();
}

/// Lists of candidates that are cut independently of each other, and the limit of each.
class Cutter {
 public:
  explicit Cutter(Ledger& ledger) : ledger_(ledger) {}

  /// Takes the longest prefix within the limit; units that would break a floor are passed over.
  void cut(const std::vector<Candidate>& list, Limit limit) {
    const std::size_t before = result_.fallen.size();
    const Candidate* kept = nullptr;
    for (const Candidate& candidate : list) {
      if (!ledger_.may_fall(candidate)) continue;
      const std::int64_t cost = ledger_.cost(candidate);
      const std::int64_t units = ledger_.units_of(candidate);
      if (units > limit.units || cost > limit.parameters) {
        kept = &candidate;
        break;
      }
      ledger_.remove(candidate);
      result_.fallen.push_back(candidate);
      if (limit.units != unlimited) limit.units -= units;
      if (limit.parameters != unlimited) limit.parameters -= cost;
    }
    if (kept == nullptr && limit.units != unlimited)
      result_.missing += std::max<std::int64_t>(limit.units, 0);
    if (kept != nullptr && result_.fallen.size() > before)
      note_margin(relative_gap(result_.fallen.back().key, kept->key));
  }

  /// All that fell, in the total order over all lists.
  Selection finish() {
    std::sort(result_.fallen.begin(), result_.fallen.end(), falls_before);
    if (cut_) result_.margin = margin_;
    return std::move(result_);
  }

 private:
  void note_margin(double margin) {
    margin_ = std::min(margin_, margin);
    cut_ = true;
  }

  Ledger& ledger_;
  Selection result_;
  double margin_ = std::numeric_limits<double>::max();
  bool cut_ = false;  // some list lost a unit and kept another that could fall
};

struct Task {
  const ModelConfig& config;
  const PruneRules& rules;
  AttentionUnit unit;
  double target;

  bool by_structures() const { return rules.measure == Measure::structures; }
  std::int64_t share_of_layer(UnitKind kind, double ratio) const {
    return whole_entries(floor_share(units_per_layer(config, unit, kind), ratio), entry(kind));
  }
  std::int64_t entry(UnitKind kind) const { return units_per_entry(config, rules, unit, kind); }
};

Limit global_limit(const Task& task, const Ledger& ledger) {
  Limit limit;
  if (task.by_structures()) {
    limit.units =
        whole_entries(floor_share(rankable_units(task.config, task.rules, task.unit), task.target),
                      units_per_entry(task.config, task.rules, task.unit));
    for (const UnitKind kind : {UnitKind::attention, UnitKind::mlp})
      if (is_listed(task.rules, kind)) limit.units -= ledger.units(kind);
  } else {
    limit.parameters =
        parameter_budget(task.config, task.rules.measure, task.target) - ledger.parameters();
  }
  return limit;
}

Limit kind_limit(const Task& task, const Ledger& ledger, UnitKind kind) {
  Limit limit;
  if (task.by_structures()) {
    const std::int64_t n = units_per_layer(task.config, task.unit, kind) * task.config.layers;
    limit.units = whole_entries(floor_share(n, task.target), task.entry(kind)) - ledger.units(kind);
  } else {
    limit.parameters =
        kind_budget(task.config, task.rules, kind, task.target) - ledger.parameters(kind);
  }
  return limit;
}

/// One list per layer and kind: [2 * layer] attention, [2 * layer + 1] MLP.
using LayerLists = std::vector<std::vector<Candidate>>;

LayerLists split_by_layer(const ModelConfig& config, const std::vector<Candidate>& candidates) {
  LayerLists lists(2 * static_cast<std::size_t>(config.layers));
  for (const Candidate& candidate : candidates)
    lists[2 * static_cast<std::size_t>(candidate.layer) + (candidate.kind == UnitKind::mlp)]
        .push_back(candidate);
  return lists;
}

UnitKind kind_of_list(std::size_t list) {
  return list % 2 == 0 ? UnitKind::attention : UnitKind::mlp;
}

std::int32_t layer_of_list(std::size_t list) { return static_cast<std::int32_t>(list / 2); }

/// Parameters gone after the first, second, ... entry of each list that may fall.
std::vector<std::vector<std::int64_t>> running_costs(const LayerLists& lists, Ledger ledger) {
  std::vector<std::vector<std::int64_t>> costs(lists.size());
  for (std::size_t i = 0; i < lists.size(); ++i) {
    std::int64_t sum = 0;
    for (const Candidate& candidate : lists[i]) {
      if (!ledger.may_fall(candidate)) continue;
      sum += ledger.cost(candidate);
      ledger.remove(candidate);
      costs[i].push_back(sum);
    }
  }
  return costs;
}

/// Every ratio at which some layer loses one unit more.
std::vector<double> steps_of_ratio(const Task& task) {
  std::vector<double> steps{0};
  for (const UnitKind kind : {UnitKind::attention, UnitKind::mlp}) {
    if (!is_listed(task.rules, kind)) continue;
    const std::int64_t n = units_per_layer(task.config, task.unit, kind);
    for (std::int64_t k = 1; k <= n; ++k)
      steps.push_back(static_cast<double>(k) / static_cast<double>(n));
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

/// `local` by parameters: the largest ratio per layer whose plan does not exceed the target. A list
/// that meets its floor stays there while the others go on.
double ratio_within_budget(const Task& task, const LayerLists& lists, const Ledger& ledger) {
  const auto costs = running_costs(lists, ledger);
  const std::int64_t budget =
      parameter_budget(task.config, task.rules.measure, task.target) - ledger.parameters();
  const auto fits = [&](double ratio) {
    std::int64_t sum = 0;
    for (std::size_t i = 0; i < lists.size(); ++i) {
      const std::int64_t wanted = task.share_of_layer(kind_of_list(i), ratio) -
                                  ledger.units(kind_of_list(i), layer_of_list(i));
      const auto most = static_cast<std::int64_t>(costs[i].size());
      const std::int64_t taken =
          std::clamp<std::int64_t>(wanted / task.entry(kind_of_list(i)), 0, most);
      if (taken > 0) sum += costs[i][static_cast<std::size_t>(taken - 1)];
    }
    return sum <= budget;
  };
  const std::vector<double> steps = steps_of_ratio(task);
  const auto first_above = std::partition_point(steps.begin() + 1, steps.end(), fits);
  return *(first_above - 1);
}

void cut_layers(const Task& task, const std::vector<Candidate>& candidates, const Ledger& start,
                Cutter& cutter) {
  const LayerLists lists = split_by_layer(task.config, candidates);
  const double ratio = task.by_structures() ? task.target : ratio_within_budget(task, lists, start);
  for (std::size_t i = 0; i < lists.size(); ++i) {
    const UnitKind kind = kind_of_list(i);
    const std::int32_t layer = layer_of_list(i);
    if (!is_listed(task.rules, kind) || task.rules.protected_layer[i / 2]) continue;
    cutter.cut(lists[i], {task.share_of_layer(kind, ratio) - start.units(kind, layer), unlimited});
  }
}

std::vector<Candidate> of_kind(const std::vector<Candidate>& candidates, UnitKind kind) {
  std::vector<Candidate> list;
  std::copy_if(candidates.begin(), candidates.end(), std::back_inserter(list),
               [kind](const Candidate& candidate) { return candidate.kind == kind; });
  return list;
}

void cut_kinds(const Task& task, const std::vector<Candidate>& candidates, const Ledger& start,
               Cutter& cutter) {
  for (const UnitKind kind : {UnitKind::attention, UnitKind::mlp}) {
    if (!is_listed(task.rules, kind)) continue;
    cutter.cut(of_kind(candidates, kind), kind_limit(task, start, kind));
  }
}

}  // namespace

Selection select(const ModelConfig& config, const PruneRules& rules, AttentionUnit unit,
                 const std::vector<Candidate>& candidates, Ledger ledger, double target) {
  const Task task{config, rules, unit, target};
  const Ledger start = ledger;
  Cutter cutter(ledger);
  if (rules.ranking == Ranking::global)
    cutter.cut(candidates, global_limit(task, start));
  else if (rules.ranking == Ranking::global_by_kind)
    cut_kinds(task, candidates, start, cutter);
  else
    cut_layers(task, candidates, start, cutter);
  Selection result = cutter.finish();
  // By parameters the longest prefix is the answer wherever it ends.
  if (!task.by_structures()) result.missing = 0;
  return result;
}

Selection select_as_far(const ModelConfig& config, const PruneRules& rules, AttentionUnit unit,
                        const std::vector<Candidate>& candidates, const Ledger& start,
                        const Ledger& end) {
  const Task task{config, rules, unit, 0};
  Ledger ledger = start;
  Cutter cutter(ledger);
  const auto limit = [&](std::int64_t units, std::int64_t parameters) {
    return task.by_structures() ? Limit{units, unlimited} : Limit{unlimited, parameters};
  };
  const auto units = [&](UnitKind kind) { return end.units(kind) - start.units(kind); };
  if (rules.ranking == Ranking::global) {
    cutter.cut(candidates, limit(units(UnitKind::attention) + units(UnitKind::mlp),
                                 end.parameters() - start.parameters()));
  } else if (rules.ranking == Ranking::global_by_kind) {
    for (const UnitKind kind : {UnitKind::attention, UnitKind::mlp})
      cutter.cut(of_kind(candidates, kind),
                 limit(units(kind), end.parameters(kind) - start.parameters(kind)));
  } else {
    const LayerLists lists = split_by_layer(config, candidates);
    for (std::size_t i = 0; i < lists.size(); ++i) {
      const UnitKind kind = kind_of_list(i);
      const std::int32_t layer = layer_of_list(i);
      cutter.cut(lists[i], {end.units(kind, layer) - start.units(kind, layer), unlimited});
    }
  }
  return cutter.finish();
}

namespace {

/// One entry for each unit, bundle of heads or block of channels of a kind that may still fall.
void append_open(const PruneRules& rules, UnitKind kind, std::int64_t entry,
                 const UnitMatrix<std::int32_t>& removed_at, std::vector<Candidate>& candidates) {
  if (!is_listed(rules, kind)) return;
  for (std::int64_t layer = 0; layer < removed_at.layers; ++layer) {
    if (rules.protected_layer[static_cast<std::size_t>(layer)]) continue;
    // Which units an entry of several holds does not matter to a ledger: every so many of those
    // that are left stand for one.
    std::int64_t left = 0;
    for (std::int64_t unit = 0; unit < removed_at.units; ++unit)
      if (removed_at.at(layer, unit) < 0 && ++left % entry == 0)
        candidates.push_back(
            {0, static_cast<std::int32_t>(layer), static_cast<std::int32_t>(unit), kind});
  }
}

}  // namespace

// The first entry of an order may take more than the target leaves: the smallest come first here.
bool asks_for_units(const ModelConfig& config, const PruneRules& rules, const PruningPlan& plan,
                    double target) {
  const Ledger ledger(config, plan, {rules.min_heads, rules.min_channels}, rules.width_multiple);
  std::vector<Candidate> candidates;
  append_open(rules, UnitKind::attention, units_per_bundle(config, plan.attention_unit),
              plan.attention_removed_at, candidates);
  append_open(rules, UnitKind::mlp, rules.width_multiple, plan.mlp_removed_at, candidates);
  for (Candidate& each : candidates)
    each.key = static_cast<double>(rules.measure == Measure::structures ? ledger.units_of(each)
                                                                        : ledger.cost(each));
  std::sort(candidates.begin(), candidates.end(), falls_before);
  return !select(config, rules, plan.attention_unit, candidates, ledger, target).fallen.empty();
}

}  // namespace espalier
