#include "layer_text.h"

#include <cmath>
#include <limits>

#include <ATen/ATen.h>

#include "espalier/core/json.h"
#include "espalier/model/tensor_ops.h"

namespace espalier {
namespace {

using Json = nlohmann::ordered_json;

constexpr RefitOutcome kOutcomes[] = {RefitOutcome::refitted, RefitOutcome::dense,
                                      RefitOutcome::obs, RefitOutcome::empty};

constexpr TensorRole kProjections[] = {TensorRole::q, TensorRole::k, TensorRole::v,
                                       TensorRole::gate, TensorRole::up};

void add(Json& json, const MatrixFacts& facts) {
  json["outcome"] = name_of(facts.outcome);
  json["width"] = facts.width;
  json["tokens_per_width"] = facts.tokens_per_width;
  json["ridge"] = facts.ridge;
  json["error_before"] = facts.error_before;
  // JSON has no infinity: no ridge had a solution.
  json["error_after"] = std::isfinite(facts.error_after) ? Json(facts.error_after) : Json();
}

void read(const Json& json, MatrixFacts& facts) {
  for (const RefitOutcome outcome : kOutcomes)
    if (json.at("outcome") == name_of(outcome)) facts.outcome = outcome;
  facts.width = json.at("width");
  facts.tokens_per_width = json.at("tokens_per_width");
  facts.ridge = json.at("ridge");
  facts.error_before = json.at("error_before");
  facts.error_after = json.at("error_after").is_null() ? std::numeric_limits<double>::infinity()
                                                       : json.at("error_after").get<double>();
}

}  // namespace

Json to_json(const RefitFacts& facts) {
  Json json{{"layer", facts.layer}, {"kind", name_of(facts.kind)}};
  add(json, facts);
  for (const MatrixFacts& projection : facts.projections)
    add(json["projections"][matrix_name(projection.role)], projection);
  return json;
}

RefitFacts facts_from(const Json& json) {
  RefitFacts facts;
  facts.layer = json.at("layer");
  const bool mlp = json.at("kind") == name_of(UnitKind::mlp);
  facts.kind = mlp ? UnitKind::mlp : UnitKind::attention;
  facts.role = mlp ? TensorRole::down : TensorRole::o;
  read(json, facts);
  if (!json.contains("projections")) return facts;
  for (const TensorRole role : kProjections)
    if (const auto found = json.at("projections").find(matrix_name(role));
        found != json.at("projections").end()) {
      MatrixFacts& projection = facts.projections.emplace_back();
      projection.layer = facts.layer;
      projection.role = role;
      read(*found, projection);
    }
  return facts;
}

namespace refit_detail {

std::string layer_text(const RefittedLayer& layer) {
  Json json{{"layer", layer.layer}, {"facts", Json::array()}, {"matrices", Json::array()}};
  for (const RefitFacts& facts : layer.facts) json["facts"].push_back(to_json(facts));
  for (const auto& [name, matrix] : layer.matrices)
    json["matrices"].push_back({name, std::string(torch_name(to_dtype(matrix.scalar_type()))),
                                matrix.size(0), matrix.size(1)});
  return json_text(json);
}

RefittedLayer layer_from(const std::string& text) {
  const Json json = Json::parse(text);
  RefittedLayer layer{json.at("layer"), {}, {}};
  for (const Json& facts : json.at("facts")) layer.facts.push_back(facts_from(facts));
  for (const Json& matrix : json.at("matrices"))
    layer.matrices.emplace(
        matrix.at(0).get<std::string>(),
        at::empty({matrix.at(2).get<std::int64_t>(), matrix.at(3).get<std::int64_t>()},
                  to_scalar_type(dtype_from_torch(matrix.at(1).get<std::string>()).value())));
  return layer;
}

}  // namespace refit_detail
}  // namespace espalier
