#include <algorithm>
#include <limits>

#include <fmt/format.h>

#include "espalier/core/text.h"
#include "espalier/pipeline/bench.h"

namespace espalier {
namespace {

using Json = nlohmann::ordered_json;

std::string ms(double seconds) {
  return seconds < 1 ? fmt::format("{:.3g} ms", 1e3 * seconds) : duration(seconds);
}

std::string gib(const Json& bytes) {
  return fmt::format("{:.2f} GiB", bytes.get<double>() / 1073741824.0);
}

std::string seconds_text(const Json& seconds) {
  std::string text;
  for (const auto& [name, value] : seconds.items())
    text += fmt::format("{}{} {:.2f}", text.empty() ? "" : ", ", name, value.get<double>());
  return text;
}

std::string order_text(const Json& pass) {
  const std::string order = pass.at("order").get<std::string>();
  if (!pass.contains("boundaries")) return order;
  return fmt::format("{}, boundaries in {}", order, pass.at("boundaries").get<std::string>());
}

std::string pass_text(const Json& pass) {
  const auto number = [&](const char* key) { return pass.at(key).get<double>(); };
  const auto count = [&](const char* key) { return pass.at(key).get<std::int64_t>(); };
  std::string text = fmt::format(
      "pass     {}: {} of {} in micro-batches of {}, tensor {} x data {}, {}, recompute {} ({} ran "
      "twice)\n",
      pass.at("criterion").get<std::string>(), counted(count("sequences"), "sequence"),
      counted(count("sequence_tokens"), "token"), counted(count("micro_batch_tokens"), "token"),
      count("tensor"), count("data"), order_text(pass), pass.at("recompute").get<std::string>(),
      counted(count("repeated_halves"), "half layer"));
  text +=
      fmt::format("         {:.3f} s, {:.1f} tokens/s; model {}, hardware {} = {:.3f} of gemm\n",
                  number("seconds"), number("tokens_per_s"), rate_text(number("model_flops_per_s")),
                  rate_text(number("hardware_flops_per_s")), number("gemm_fraction"));
  text += fmt::format("         seconds: {}\n", seconds_text(pass.at("seconds_by_phase")));
  if (!pass.at("seconds_by_kind").empty())
    text += fmt::format("         of these: {}\n", seconds_text(pass.at("seconds_by_kind")));
  text += fmt::format("         memory a rank: {} forecast, peak {}\n",
                      gib(pass.at("forecast_bytes")), gib(pass.at("peak_bytes")));
  return text;
}

std::string spread_text(const Json& numbers) {
  std::int64_t least = std::numeric_limits<std::int64_t>::max(), most = 0;
  for (const Json& number : numbers) {
    least = std::min(least, number.get<std::int64_t>());
    most = std::max(most, number.get<std::int64_t>());
  }
  return least < most ? fmt::format("{}-{}", least, most) : fmt::format("{}", most);
}

std::string rounded_text(const Json& result) {
  const Json& rounded = result.at("rounded");
  std::string text = fmt::format(
      "rounded  {} channels a layer at multiples of {}, in place of {}; gemm {}, {:.3f} x the "
      "rate\n",
      spread_text(rounded.at("channels")), rounded.at("multiple").get<std::int64_t>(),
      spread_text(result.at("shape").at("layer_channels")),
      rate_text(rounded.at("gemm_flops_per_s").get<double>()),
      rounded.at("gemm_rate_ratio").get<double>());
  for (const Json& pass : rounded.at("passes")) {
    text += pass_text(pass);
    text += fmt::format(
        "ratio    {}{}: ragged takes {:.3f} x as long; rounded has {:.3f} x the rate\n",
        pass.at("criterion").get<std::string>(), pass.contains("boundaries") ? ", layer_major" : "",
        pass.at("seconds_ratio").get<double>(), pass.at("rate_ratio").get<double>());
  }
  return text;
}

}  // namespace

std::string rate_text(double flops_per_s) {
  return flops_per_s < 1e12 ? fmt::format("{:.1f} GFLOP/s", flops_per_s / 1e9)
                            : fmt::format("{:.1f} TFLOP/s", flops_per_s / 1e12);
}

std::string bench_text(const Json& result) {
  const Json &machine = result.at("machine"), &shape = result.at("shape"),
             &gemm = result.at("gemm");
  std::string text = fmt::format(
      "machine  {}, {}, {} of {}\n", machine.at("name").get<std::string>(),
      machine.at("device").get<std::string>(), counted(machine.at("ranks").get<int>(), "rank"),
      counted(machine.at("threads").get<int>(), "thread"));
  if (machine.at("ranks").get<int>() > 1)
    text += fmt::format("sums     of tensors over {}\n",
                        machine.at("sums_of_tensors").get<std::string>());
  text += fmt::format(
      "shape    {}: hidden {}, {} channels, {} layers, {} query / {} KV heads of {}, vocabulary "
      "{}, "
      "{}{}\n",
      one_line(shape.at("name").get<std::string>()), shape.at("hidden").get<std::int64_t>(),
      shape.at("channels").get<std::int64_t>(), shape.at("layers").get<std::int64_t>(),
      shape.at("heads").get<std::int64_t>(), shape.at("kv_heads").get<std::int64_t>(),
      shape.at("head_dim").get<std::int64_t>(), shape.at("vocabulary").get<std::int64_t>(),
      shape.at("dtype").get<std::string>(), shape.at("dense").get<bool>() ? "" : ", pruned");
  text += fmt::format(
      "gemm     {} over all linear maps at {} rows (forward {}, input gradients {}, weight "
      "gradients {})\n",
      rate_text(result.at("gemm_flops_per_s").get<double>()), gemm.at("rows").get<std::int64_t>(),
      rate_text(gemm.at("forward_flops_per_s").get<double>()),
      rate_text(gemm.at("input_gradient_flops_per_s").get<double>()),
      rate_text(gemm.at("weight_gradient_flops_per_s").get<double>()));
  for (const Json& pass : result.at("passes")) text += pass_text(pass);
  if (result.contains("rounded")) text += rounded_text(result);
  const Json& refit = result.at("refit");
  text +=
      fmt::format("refit    {} inputs, {} outputs: sums of {} {}, solving {}\n",
                  refit.at("inputs").get<std::int64_t>(), refit.at("outputs").get<std::int64_t>(),
                  counted(refit.at("rows").get<std::int64_t>(), "token"),
                  rate_text(refit.at("sums_flops_per_s").get<double>()),
                  rate_text(refit.at("solving_flops_per_s").get<double>()));
  for (const Json& sum : result.at("collectives")) {
    const auto bytes = sum.at("bytes").get<double>(), seconds = sum.at("seconds").get<double>();
    text += fmt::format("sum      {} ranks ({}), {:.0f} KiB: {}, {:.2f} GB/s\n",
                        sum.at("ranks").get<int>(), sum.at("group").get<std::string>(),
                        bytes / 1024, ms(seconds), bytes / seconds / 1e9);
  }
  return text;
}

}  // namespace espalier
