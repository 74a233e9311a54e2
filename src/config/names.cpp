#include "names.h"

#include "espalier/core/error.h"

namespace espalier {
namespace config_detail {
namespace {

template <class E>
const char* name_in(const Names<E>& names, E value) {
  for (const auto& [name, meant] : names)
    if (meant == value) return name;
  throw Error(ExitCode::internal, "a configured value has no name");
}

}  // namespace

const Names<Objective>& objective_names() {
  static const Names<Objective> names{
      {"causal_lm", Objective::causal_lm}, {"sft", Objective::sft}, {"margin", Objective::margin}};
  return names;
}

const Names<Criterion>& criterion_names() {
  static const Names<Criterion> names{{"taylor", Criterion::taylor},
                                      {"taylor_gate", Criterion::taylor_gate},
                                      {"taylor_gate_sample", Criterion::taylor_gate_sample},
                                      {"wanda_sp", Criterion::wanda_sp},
                                      {"flap", Criterion::flap},
                                      {"obs", Criterion::obs},
                                      {"magnitude", Criterion::magnitude},
                                      {"random", Criterion::random}};
  return names;
}

const Names<Normalization>& normalization_names() {
  static const Names<Normalization> names{{"gisp", Normalization::gisp},
                                          {"param_mean", Normalization::param_mean},
                                          {"cost", Normalization::cost},
                                          {"block_mean", Normalization::block_mean},
                                          {"block_l2", Normalization::block_l2},
                                          {"block_standardize", Normalization::block_standardize},
                                          {"none", Normalization::none}};
  return names;
}

const Names<Order>& order_names() {
  static const Names<Order> names{{"auto", Order::automatic},
                                  {"sample_major", Order::sample_major},
                                  {"layer_major", Order::layer_major}};
  return names;
}

const Names<ShrinkTo>& shrink_to_names() {
  static const Names<ShrinkTo> names{{"dense", ShrinkTo::dense}, {"obs", ShrinkTo::obs}};
  return names;
}

const Names<RefitMatrices>& refit_matrices_names() {
  static const Names<RefitMatrices> names{{"outputs", RefitMatrices::outputs},
                                          {"all", RefitMatrices::all},
                                          {"auto", RefitMatrices::automatic}};
  return names;
}

}  // namespace config_detail

const char* name_of(Objective value) {
  return config_detail::name_in(config_detail::objective_names(), value);
}
const char* name_of(Criterion value) {
  return config_detail::name_in(config_detail::criterion_names(), value);
}
const char* name_of(Normalization value) {
  return config_detail::name_in(config_detail::normalization_names(), value);
}
const char* name_of(Order value) {
  return config_detail::name_in(config_detail::order_names(), value);
}
const char* name_of(ShrinkTo value) {
  return config_detail::name_in(config_detail::shrink_to_names(), value);
}
const char* name_of(RefitMatrices value) {
  return config_detail::name_in(config_detail::refit_matrices_names(), value);
}

std::optional<Criterion> criterion_named(std::string_view name) {
  for (const auto& [known, criterion] : config_detail::criterion_names())
    if (name == known) return criterion;
  return std::nullopt;
}

}  // namespace espalier
