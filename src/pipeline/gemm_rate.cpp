#include "gemm_rate.h"

#include <time.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <vector>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "espalier/core/pulse.h"
#include "espalier/model/vocabulary_loss.h"

namespace espalier {
namespace {

/// One linear map, and how many rows it sees at once.
struct Map {
  at::Tensor weight;  // [out, in]
  std::int64_t rows = 0;
};

void add_map(std::vector<Map>& maps, const at::Tensor& weight, std::int64_t rows) {
  if (weight.numel() > 0 && rows > 0) maps.push_back({weight, rows});
}

void add_layer(std::vector<Map>& maps, const CausalLM& model, std::int64_t layer,
               std::int64_t rows) {
  for (const TensorRole role : {TensorRole::q, TensorRole::k, TensorRole::v, TensorRole::o,
                                TensorRole::gate, TensorRole::up, TensorRole::down})
    add_map(maps, model.layer(layer).by_role(role), rows);
}

void add_head(std::vector<Map>& maps, const CausalLM& model, std::int64_t rows) {
  const std::int64_t chunk = loss_chunk(model.head_VD().size(0));
  for (std::int64_t begin = 0; begin < rows; begin += chunk)
    add_map(maps, model.head_VD(), std::min(chunk, rows - begin));
}

/// Random rows of every width that is needed, made once.
class Rows {
 public:
  explicit Rows(at::TensorOptions options) : options_(options) {}
  void prepare(std::int64_t rows, std::int64_t width) {
    at::Tensor& held = by_width_[width];
    if (!held.defined() || held.size(0) < rows) held = at::empty({rows, width}, options_).normal_();
  }
  at::Tensor of(std::int64_t rows, std::int64_t width) const {
    return by_width_.at(width).narrow(0, 0, rows);
  }

 private:
  at::TensorOptions options_;
  std::map<std::int64_t, at::Tensor> by_width_;
};

at::Tensor product(GemmSweep::Direction direction, const Map& map, const Rows& random) {
  const at::Tensor& weight = map.weight;
  const auto x = [&] { return random.of(map.rows, weight.size(1)); };
  const auto dy = [&] { return random.of(map.rows, weight.size(0)); };
  switch (direction) {
    case GemmSweep::forward:
      return at::linear(x(), weight);
    case GemmSweep::input_gradient:
      return at::mm(dy(), weight);
    case GemmSweep::weight_gradient:
      break;
  }
  return at::mm(dy().t(), x());
}

}  // namespace

double processor_seconds() {
  timespec now{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

void synchronize(at::Device device) {
  if (!device.is_cpu())
    c10::impl::VirtualGuardImpl(device.type()).synchronizeDevice(device.index());
}

namespace {

/// All maps in one direction, then in the next.
void add_products(GemmSweep& sweep, const std::vector<Map>& maps, Rows& random, at::Device device) {
  for (const Map& map : maps) {
    random.prepare(map.rows, map.weight.size(0));
    random.prepare(map.rows, map.weight.size(1));
  }
  const double processor = processor_seconds();
  for (const GemmSweep::Direction direction :
       {GemmSweep::forward, GemmSweep::input_gradient, GemmSweep::weight_gradient}) {
    synchronize(device);
    const auto begin = std::chrono::steady_clock::now();
    for (const Map& map : maps) {
      product(direction, map, random);
      pulse::beat();
      sweep.flops[direction] +=
          2.0 * static_cast<double>(map.rows) * static_cast<double>(map.weight.numel());
    }
    synchronize(device);
    sweep.seconds[direction] +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }
  sweep.processor_seconds += processor_seconds() - processor;
}

}  // namespace

GemmSweep sweep_gemms(const CausalLM& model, std::int64_t rows, StreamedLayers* layers) {
  const c10::NoGradGuard no_gradient;
  Rows random(at::TensorOptions(model.options().dtype).device(model.options().device));
  GemmSweep sweep;
  std::vector<Map> maps;
  for (std::int64_t l = 0; l < model.layers(); ++l) {
    if (layers != nullptr) layers->hold(l);
    add_layer(maps, model, l, rows);
    if (layers == nullptr) continue;
    add_products(sweep, maps, random, model.options().device);
    maps.clear();
  }
  if (layers != nullptr) layers->let_go();
  add_head(maps, model, rows);
  add_products(sweep, maps, random, model.options().device);
  return sweep;
}

}  // namespace espalier
