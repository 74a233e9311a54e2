#include <algorithm>
#include <functional>
#include <span>

#include <fmt/format.h>

#include "budget.h"
#include "espalier/core/error.h"
#include "espalier/core/text.h"
#include "espalier/prune/plan.h"
#include "espalier/prune/plan_scores.h"

namespace espalier {
namespace {

constexpr const char* plan_format = "espalier-plan";
constexpr std::int64_t plan_version = 1;
/// removed_at is an int32, and a run that starts from the plan counts on.
constexpr std::int64_t last_iteration = 1'000'000'000;

std::string object(const std::string& group) { return group.empty() ? "/" : group; }

[[noreturn]] void refuse(const std::string& where, std::string what, std::string why) {
  throw Error(ExitCode::bad_content, std::move(what), std::move(why),
              "take the plan from another commit or export of the run", where);
}

AttentionUnit parse_unit(const std::string& where, const std::string& name) {
  for (const AttentionUnit unit :
       {AttentionUnit::query_head, AttentionUnit::equal_per_group, AttentionUnit::kv_group})
    if (name == name_of(unit)) return unit;
  refuse(where, fmt::format("attention_unit is '{}'", name),
         "query_head, equal_per_group and kv_group are known");
}

template <class T>
void write_matrix(Hdf5Writer& file, const std::string& path, const UnitMatrix<T>& matrix) {
  file.write(path, std::span<const T>(matrix.values), {matrix.layers, matrix.units});
}

/// Reads one of the four datasets after its shape was compared with the model's.
template <class T, class Read>
UnitMatrix<T> read_matrix(const Hdf5Reader& file, const std::string& path, std::int64_t layers,
                          std::int64_t units, Read read) {
  const std::vector<std::int64_t> shape = file.shape(path);
  if (shape != std::vector<std::int64_t>{layers, units})
    refuse(path, fmt::format("the shape is [{}]", fmt::join(shape, ", ")),
           fmt::format("the model has [{}, {}]", layers, units));
  return {layers, units, std::move(read(path).values)};
}

/// Names one unit in a message; made into text only where there is one.
struct Place {
  const std::string& matrix;
  std::int64_t layer;
  std::int64_t unit;
  std::string text() const { return fmt::format("{}, layer {}, unit {}", matrix, layer, unit); }
};

/// Checks removed_at and order against each other while it collects the removal order.
class OrderCheck {
 public:
  explicit OrderCheck(const PruningPlan& plan)
      : iteration_(plan.iteration),
        removed_at_by_place_(static_cast<std::size_t>(plan.removed()), 0) {}

  void add(const std::string& where, const UnitMatrix<std::int32_t>& removed_at,
           const UnitMatrix<std::int64_t>& order) {
    for (std::int64_t layer = 0; layer < order.layers; ++layer)
      for (std::int64_t unit = 0; unit < order.units; ++unit)
        add_unit({where, layer, unit}, removed_at.at(layer, unit), order.at(layer, unit));
  }

  /// Later places fell in the same or a later iteration.
  void finish(const std::string& where) const {
    const auto& list = removed_at_by_place_;
    const auto falling = std::adjacent_find(list.begin(), list.end(), std::greater<>());
    if (falling == list.end()) return;
    refuse(where,
           fmt::format("place {} of the order fell in iteration {}, the next in iteration {}",
                       falling - list.begin(), *falling, *(falling + 1)),
           "the order follows the iterations");
  }

 private:
  void add_unit(const Place& where, std::int32_t removed_at, std::int64_t place);

  std::int64_t iteration_;
  std::vector<std::int32_t> removed_at_by_place_;  // 0 = not seen yet
};

void OrderCheck::add_unit(const Place& where, std::int32_t removed_at, std::int64_t place) {
  if (removed_at != -1 && (removed_at < 1 || removed_at > iteration_))
    refuse(where.text(), fmt::format("removed_at is {}", removed_at),
           fmt::format("-1 or an iteration from 1 to {} is needed", iteration_));
  const auto removed = static_cast<std::int64_t>(removed_at_by_place_.size());
  if (place < -1 || place >= removed)
    refuse(where.text(), fmt::format("order is {}", place),
           fmt::format("the plan removes {}", counted(removed, "unit")));
  if ((removed_at == -1) != (place == -1))
    refuse(where.text(), fmt::format("removed_at is {} and order is {}", removed_at, place),
           "both are -1 for a kept unit and neither for a removed one");
  if (place < 0) return;
  std::int32_t& slot = removed_at_by_place_[static_cast<std::size_t>(place)];
  if (slot != 0)
    refuse(where.text(), fmt::format("order is {} for a second unit", place),
           "it is a permutation of the removed units");
  slot = removed_at;
}

void require_format(const Hdf5Reader& file, const std::string& top) {
  const std::string format = file.attribute_string(top, "format");
  if (format != plan_format)
    refuse(top, fmt::format("the format is '{}'", format),
           fmt::format("'{}' is needed", plan_format));
  const std::int64_t version = file.attribute_i64(top, "version");
  if (version != plan_version)
    refuse(top, fmt::format("the version is {}", version),
           fmt::format("this program reads version {}", plan_version));
}

void require_list_of(const PruningPlan& plan, const ScoreList& list, UnitKind kind) {
  const UnitMatrix<std::int32_t>& removed_at =
      kind == UnitKind::attention ? plan.attention_removed_at : plan.mlp_removed_at;
  for (std::size_t i = 0; i < list.score.size(); ++i) {
    const std::int32_t layer = list.layer[i];
    const std::int32_t unit = list.unit[i];
    const auto scored = [&] {
      return fmt::format("{} unit {} of layer {}", name_of(kind), unit, layer);
    };
    if (layer < 0 || layer >= removed_at.layers || unit < 0 || unit >= removed_at.units)
      refuse(
          "scores", scored() + " has a score",
          fmt::format("the plan has {} layers of {} units", removed_at.layers, removed_at.units));
    const std::int32_t at = removed_at.at(layer, unit);
    if (at != -1 && at != plan.iteration)
      refuse("scores", fmt::format("{} has a score but fell in iteration {}", scored(), at),
             "only units that were there are scored");
  }
}

}  // namespace

void write_plan(Hdf5Writer& file, const std::string& group, const PruningPlan& plan) {
  write_matrix(file, group + "/attention/removed_at", plan.attention_removed_at);
  write_matrix(file, group + "/attention/order", plan.attention_order);
  write_matrix(file, group + "/mlp/removed_at", plan.mlp_removed_at);
  write_matrix(file, group + "/mlp/order", plan.mlp_order);
  const std::string top = object(group);
  file.attribute(top, "format", std::string(plan_format));
  file.attribute(top, "version", plan_version);
  file.attribute(top, "digest", plan.digest());
  file.attribute(top, "attention_unit", std::string(name_of(plan.attention_unit)));
  file.attribute(top, "iteration", plan.iteration);
  file.attribute(top, "model_config_sha256", plan.model_config_sha256);
}

// The hash of config.json is not compared here: an export's config.json has other bytes than its
// source's, and both describe the same dense model.
PruningPlan read_plan(const Hdf5Reader& file, const std::string& group, const ModelConfig& config) {
  const std::string top = object(group);
  require_format(file, top);
  PruningPlan plan;
  plan.attention_unit = parse_unit(top, file.attribute_string(top, "attention_unit"));
  plan.iteration = file.attribute_i64(top, "iteration");
  plan.model_config_sha256 = file.attribute_string(top, "model_config_sha256");
  if (plan.iteration < 0 || plan.iteration > last_iteration)
    refuse(top, fmt::format("iteration is {}", plan.iteration),
           fmt::format("it counts from 0 and is at most {}", last_iteration));
  const std::int64_t units = units_per_layer(config, plan.attention_unit, UnitKind::attention);
  const auto i32 = [&](const std::string& path) { return file.read_i32(path); };
  const auto i64 = [&](const std::string& path) { return file.read_i64(path); };
  const auto read_i32 = [&](const std::string& name, std::int64_t n) {
    return read_matrix<std::int32_t>(file, group + name, config.layers, n, i32);
  };
  const auto read_i64 = [&](const std::string& name, std::int64_t n) {
    return read_matrix<std::int64_t>(file, group + name, config.layers, n, i64);
  };
  plan.attention_removed_at = read_i32("/attention/removed_at", units);
  plan.attention_order = read_i64("/attention/order", units);
  plan.mlp_removed_at = read_i32("/mlp/removed_at", config.channels);
  plan.mlp_order = read_i64("/mlp/order", config.channels);
  OrderCheck check(plan);
  check.add(group + "/attention", plan.attention_removed_at, plan.attention_order);
  check.add(group + "/mlp", plan.mlp_removed_at, plan.mlp_order);
  check.finish(top);
  const std::string digest = file.attribute_string(top, "digest");
  if (digest != plan.digest())
    refuse(top, fmt::format("the digest is {}", digest),
           fmt::format("the content's digest is {}", plan.digest()));
  if (const std::int64_t layer = uneven_layer(config, plan); layer >= 0)
    refuse(top, fmt::format("the groups of layer {} lost not as many query heads each", layer),
           "attention_unit is equal_per_group");
  return plan;
}

void require_scores_of(const PruningPlan& plan, const ScoreTable& scores) {
  require_list_of(plan, scores.attention, UnitKind::attention);
  require_list_of(plan, scores.mlp, UnitKind::mlp);
}

}  // namespace espalier
