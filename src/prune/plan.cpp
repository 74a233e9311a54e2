#include "espalier/prune/plan.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <span>

#include <fmt/format.h>

#include "budget.h"
#include "espalier/core/error.h"
#include "espalier/core/hash.h"

namespace espalier {
namespace {

static_assert(std::endian::native == std::endian::little, "digests are over little-endian bytes");

template <class T>
UnitMatrix<T> all_kept(std::int64_t layers, std::int64_t units) {
  return {layers, units, std::vector<T>(static_cast<std::size_t>(layers * units), T{-1})};
}

template <class T>
void hash_matrix(Sha256& hash, const UnitMatrix<T>& matrix) {
  hash.update_i64(matrix.layers);
  hash.update_i64(matrix.units);
  hash.update(std::as_bytes(std::span(matrix.values)));
}

std::int64_t count_removed(const UnitMatrix<std::int32_t>& removed_at) {
  return std::count_if(removed_at.values.begin(), removed_at.values.end(),
                       [](std::int32_t iteration) { return iteration >= 0; });
}

std::vector<std::int32_t> kept_units(const UnitMatrix<std::int32_t>& removed_at,
                                     std::int64_t layer) {
  std::vector<std::int32_t> kept;
  for (std::int64_t unit = 0; unit < removed_at.units; ++unit)
    if (removed_at.at(layer, unit) < 0) kept.push_back(static_cast<std::int32_t>(unit));
  return kept;
}

std::vector<std::int32_t> heads_of_groups(const std::vector<std::int32_t>& kv_heads,
                                          std::int64_t group_size) {
  std::vector<std::int32_t> heads;
  for (const std::int32_t kv_head : kv_heads)
    for (std::int64_t i = 0; i < group_size; ++i)
      heads.push_back(static_cast<std::int32_t>(kv_head * group_size + i));
  return heads;
}

void check_shapes(const ModelConfig& config, const PruningPlan& plan) {
  const std::int64_t units = units_per_layer(config, plan.attention_unit, UnitKind::attention);
  const auto fits = [&](const auto& matrix, std::int64_t n) {
    return matrix.layers == config.layers && matrix.units == n &&
           static_cast<std::int64_t>(matrix.values.size()) == config.layers * n;
  };
  ESPALIER_CHECK(fits(plan.attention_removed_at, units) && fits(plan.attention_order, units) &&
                     fits(plan.mlp_removed_at, config.channels) &&
                     fits(plan.mlp_order, config.channels),
                 fmt::format("the plan has [{}, {}] attention units and [{}, {}] channels, the "
                             "model [{}, {}] and [{}, {}]",
                             plan.attention_removed_at.layers, plan.attention_removed_at.units,
                             plan.mlp_removed_at.layers, plan.mlp_removed_at.units, config.layers,
                             units, config.layers, config.channels));
  const std::int64_t uneven = uneven_layer(config, plan);
  ESPALIER_CHECK(uneven < 0,
                 fmt::format("the groups of layer {} lost not as many query heads each, "
                             "and the attention unit is equal_per_group",
                             uneven));
}

/// Names the first unit that `base` removed and `plan` keeps.
void require_removed(const char* kind, const UnitMatrix<std::int32_t>& base,
                     const UnitMatrix<std::int32_t>& plan) {
  for (std::int64_t layer = 0; layer < base.layers; ++layer)
    for (std::int64_t unit = 0; unit < base.units; ++unit)
      if (base.at(layer, unit) >= 0 && plan.at(layer, unit) < 0)
        throw Error(ExitCode::bad_content,
                    fmt::format("the plan keeps {} {} of layer {}, which the model has lost", kind,
                                unit, layer),
                    "a plan belongs to the model that its run started from",
                    "Take that model, or the unpruned one.");
}

/// Marks what is missing in layer `layer` of [0, units) as removed in iteration 1.
void remove_missing(std::int64_t layer, const std::vector<std::int32_t>& kept,
                    UnitMatrix<std::int32_t>& removed_at, UnitMatrix<std::int64_t>& order,
                    std::int64_t& place) {
  for (std::int64_t unit = 0; unit < removed_at.units; ++unit) {
    if (std::binary_search(kept.begin(), kept.end(), static_cast<std::int32_t>(unit))) continue;
    removed_at.at(layer, unit) = 1;
    order.at(layer, unit) = place++;
  }
}

std::string break_in(const char* kind, std::int64_t iteration,
                     const UnitMatrix<std::int32_t>& before_at,
                     const UnitMatrix<std::int64_t>& before_order,
                     const UnitMatrix<std::int32_t>& at, const UnitMatrix<std::int64_t>& order) {
  for (std::int64_t layer = 0; layer < at.layers; ++layer)
    for (std::int64_t unit = 0; unit < at.units; ++unit) {
      const std::int32_t was = before_at.at(layer, unit), is = at.at(layer, unit);
      const auto place = [&] { return fmt::format("{} {} of layer {}", kind, unit, layer); };
      if (was >= 0 && is < 0) return place() + " is kept by the plan and gone from the model";
      if (was >= 0 && (was != is || before_order.at(layer, unit) != order.at(layer, unit)))
        return place() + " fell at another place of the order";
      if (was < 0 && is >= 0 && is <= iteration)
        return fmt::format("{} is in the model, and the plan removed it in iteration {}", place(),
                           is);
    }
  return {};
}

std::int64_t count_of(const std::vector<std::int32_t>& units) {
  return static_cast<std::int64_t>(units.size());
}

double share(std::int64_t left, std::int64_t dense) {
  return dense == 0 ? 0.0 : static_cast<double>(dense - left) / static_cast<double>(dense);
}

}  // namespace

std::int64_t PruningPlan::removed() const {
  return count_removed(attention_removed_at) + count_removed(mlp_removed_at);
}

const char* name_of(AttentionUnit unit) {
  switch (unit) {
    case AttentionUnit::query_head:
      return "query_head";
    case AttentionUnit::equal_per_group:
      return "equal_per_group";
    case AttentionUnit::kv_group:
      return "kv_group";
  }
  return "";
}

std::int64_t uneven_layer(const ModelConfig& config, const PruningPlan& plan) {
  if (plan.attention_unit != AttentionUnit::equal_per_group) return -1;
  const std::int64_t group = config.group_size();
  const UnitMatrix<std::int32_t>& removed_at = plan.attention_removed_at;
  for (std::int64_t layer = 0; layer < removed_at.layers; ++layer) {
    std::vector<std::int64_t> lost(static_cast<std::size_t>(config.kv_heads), 0);
    for (std::int64_t head = 0; head < removed_at.units; ++head)
      lost[static_cast<std::size_t>(head / group)] += removed_at.at(layer, head) >= 0;
    if (std::adjacent_find(lost.begin(), lost.end(), std::not_equal_to<>()) != lost.end())
      return layer;
  }
  return -1;
}

std::string PruningPlan::digest() const {
  Sha256 hash;
  hash_matrix(hash, attention_removed_at);
  hash_matrix(hash, attention_order);
  hash_matrix(hash, mlp_removed_at);
  hash_matrix(hash, mlp_order);
  return hash.hex();
}

PruningPlan dense_plan(const ModelConfig& config, AttentionUnit unit) {
  const std::int64_t units = units_per_layer(config, unit, UnitKind::attention);
  PruningPlan plan;
  plan.attention_unit = unit;
  plan.model_config_sha256 = config.sha256;
  plan.attention_removed_at = all_kept<std::int32_t>(config.layers, units);
  plan.attention_order = all_kept<std::int64_t>(config.layers, units);
  plan.mlp_removed_at = all_kept<std::int32_t>(config.layers, config.channels);
  plan.mlp_order = all_kept<std::int64_t>(config.layers, config.channels);
  return plan;
}

PruningPlan plan_of_widths(const ModelConfig& config, const ModelWidths& widths,
                           AttentionUnit unit) {
  PruningPlan plan = dense_plan(config, unit);
  std::int64_t place = 0;
  for (std::int64_t i = 0; i < config.layers; ++i) {
    const LayerWidths& layer = widths.layers[static_cast<std::size_t>(i)];
    const bool by_group = unit == AttentionUnit::kv_group;
    if (by_group && layer.query_heads != heads_of_groups(layer.kv_heads, config.group_size()))
      throw Error(ExitCode::config, "prune.attention_unit = kv_group",
                  fmt::format("layer {} of the model has {} query heads for {} KV heads: single "
                              "query heads were removed",
                              i, layer.query_heads.size(), layer.kv_heads.size()),
                  "Set prune.attention_unit: query_head.");
    if (unit == AttentionUnit::equal_per_group && !layer.query_heads.empty() &&
        (count_of(layer.kv_heads) != config.kv_heads || !layer.even_groups(config)))
      throw Error(ExitCode::config, "prune.attention_unit = equal_per_group",
                  fmt::format("layer {} of the model has {} query heads on {} of {} KV heads: its "
                              "groups have not lost as many each",
                              i, layer.query_heads.size(), layer.kv_heads.size(), config.kv_heads),
                  "Set prune.attention_unit: query_head.");
    remove_missing(i, by_group ? layer.kv_heads : layer.query_heads, plan.attention_removed_at,
                   plan.attention_order, place);
    remove_missing(i, layer.channels, plan.mlp_removed_at, plan.mlp_order, place);
  }
  plan.iteration = place == 0 ? 0 : 1;
  return plan;
}

std::string break_of_continuation(const PruningPlan& before, const PruningPlan& plan) {
  const bool groups = plan.attention_unit == AttentionUnit::kv_group;
  std::string text =
      break_in(groups ? "KV group" : "query head", before.iteration, before.attention_removed_at,
               before.attention_order, plan.attention_removed_at, plan.attention_order);
  if (text.empty())
    text = break_in("channel", before.iteration, before.mlp_removed_at, before.mlp_order,
                    plan.mlp_removed_at, plan.mlp_order);
  return text;
}

ModelWidths widths_of(const ModelConfig& config, const PruningPlan& plan) {
  check_shapes(config, plan);
  ModelWidths widths;
  for (std::int64_t i = 0; i < config.layers; ++i) {
    LayerWidths layer;
    layer.query_heads = kept_units(plan.attention_removed_at, i);
    if (plan.attention_unit == AttentionUnit::kv_group)
      layer.query_heads = heads_of_groups(layer.query_heads, config.group_size());
    layer.kv_heads = kept_kv_heads(config, layer.query_heads);
    layer.channels = kept_units(plan.mlp_removed_at, i);
    widths.layers.push_back(std::move(layer));
  }
  return widths;
}

void require_part(const PruningPlan& base, const PruningPlan& plan) {
  if (base.attention_unit != plan.attention_unit)
    throw Error(ExitCode::bad_content,
                "the plan and the model were pruned in other attention units",
                fmt::format("the plan's is {}, the model's {}", name_of(plan.attention_unit),
                            name_of(base.attention_unit)),
                "Take the model that the plan's run started from, or the unpruned one.");
  require_removed("attention unit", base.attention_removed_at, plan.attention_removed_at);
  require_removed("channel", base.mlp_removed_at, plan.mlp_removed_at);
}

double Sparsity::of(Measure measure) const {
  switch (measure) {
    case Measure::structures:
      return structures;
    case Measure::parameters:
      return parameters;
    case Measure::total_parameters:
      return total_parameters;
  }
  return structures;
}

Sparsity sparsity_of(const ModelConfig& config, const PruneRules& rules, const PruningPlan& plan) {
  const ParameterCount dense = count_parameters(config, dense_widths(config));
  const ParameterCount left = count_parameters(config, widths_of(config, plan));
  const std::int64_t units = rankable_units(config, rules, plan.attention_unit);
  std::int64_t removed = 0;
  if (rules.attention) removed += count_removed(plan.attention_removed_at);
  if (rules.mlp) removed += count_removed(plan.mlp_removed_at);
  return {share(units - removed, units), share(left.decoder, dense.decoder),
          share(left.total, dense.total)};
}

}  // namespace espalier
