#include "espalier/pipeline/bench.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "bench_facts.h"
#include "bench_passes.h"
#include "bench_widths.h"

namespace espalier {
namespace {

using Json = nlohmann::ordered_json;

/// The same work on rounded widths, and how much longer it takes on those that `ragged` is of.
Json compared(const Json& ragged, Json rounded, const BenchRequest& request) {
  Json result{{"multiple", request.rounded_to},
              {"channels", channels_of(request.widths)},
              {"parameters", rounded.at("shape").at("parameters")},
              {"gemm_flops_per_s", rounded.at("gemm_flops_per_s")},
              {"gemm", std::move(rounded.at("gemm"))},
              {"passes", std::move(rounded.at("passes"))}};
  const auto quotient = [](const Json& a, const Json& b, const char* key) {
    return a.at(key).get<double>() / b.at(key).get<double>();
  };
  result["gemm_rate_ratio"] = quotient(result, ragged, "gemm_flops_per_s");
  for (std::size_t i = 0; i < result["passes"].size(); ++i) {
    Json& pass = result["passes"][i];
    const Json& other = ragged.at("passes").at(i);
    pass["seconds_ratio"] = quotient(other, pass, "seconds");
    pass["rate_ratio"] = quotient(pass, other, "hardware_flops_per_s");
  }
  return result;
}

/// What was measured in one order, and the same on rounded widths where they are asked for.
struct InOrder {
  Order order = Order::sample_major;
  Json result, rounded;
};

InOrder measure(CommRuntime& runtime, const BenchRequest& request,
                const std::optional<BenchRequest>& rounded, Order order) {
  InOrder found{order, {}, {}};
  std::vector<PassSetting> settings;
  {
    BenchPasses passes(runtime, request, order);
    found.result = passes.run({});
    settings = passes.settings();
  }
  if (rounded) found.rounded = BenchPasses(runtime, *rounded, order).run(settings);
  return found;
}

/// Layer by layer first: of a whole model the heap may keep some memory, which would then count as
/// that of a pass that holds few layers.
std::vector<Order> by_memory(std::vector<Order> orders) {
  std::stable_partition(orders.begin(), orders.end(),
                        [](Order order) { return order == Order::layer_major; });
  return orders;
}

void add_passes(Json& result, Json& other) {
  for (Json& pass : other.at("passes")) result["passes"].push_back(std::move(pass));
}

}  // namespace

Json run_bench(CommRuntime& runtime, const BenchRequest& request) {
  std::optional<BenchRequest> rounded;
  if (request.rounded_to > 0) {
    rounded = request;
    rounded->widths = with_rounded_channels(rounded->widths, rounded->model, request.rounded_to);
  }
  std::vector<InOrder> found;
  for (const Order order : by_memory(request.orders))
    found.push_back(measure(runtime, request, rounded, order));
  const auto of_order = [&](Order order) -> InOrder& {
    return *std::find_if(found.begin(), found.end(),
                         [&](const InOrder& one) { return one.order == order; });
  };
  InOrder& first = of_order(request.orders.front());
  for (std::size_t i = 1; i < request.orders.size(); ++i) {
    InOrder& other = of_order(request.orders[i]);
    add_passes(first.result, other.result);
    if (rounded) add_passes(first.rounded, other.rounded);
  }
  if (!rounded) return std::move(first.result);
  first.result["shape"]["layer_channels"] = channels_of(request.widths);
  first.result["rounded"] = compared(first.result, std::move(first.rounded), *rounded);
  return std::move(first.result);
}

}  // namespace espalier
