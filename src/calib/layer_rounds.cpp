#include "espalier/calib/layer_rounds.h"

#include <optional>
#include <utility>

#include "espalier/calib/rounds.h"

namespace espalier {

LayerRounds::LayerRounds(const ProcessGrid& grid, std::string phase, const CausalLM& model,
                         const LayerByLayer& how, std::int64_t count, std::int64_t lowest_half,
                         const RoundHooks& hooks)
    : grid_(grid),
      phase_(std::move(phase)),
      model_(model),
      layers_(*how.layers),
      count_(count),
      hooks_(hooks),
      pass_(model, grid.tensor(), how.boundaries(), lowest_half),
      all_steps_(count * (2 + 2 * model.layers() - pass_.lowest_layer())) {}

std::int64_t LayerRounds::number_of(std::size_t k) const {
  return static_cast<std::int64_t>(k) * grid_.data_size() + grid_.data_index();
}

void LayerRounds::sweep(const std::function<void(std::size_t k)>& read,
                        const std::function<Problems(std::size_t k)>& compute) {
  RoundHooks hooks = hooks_;
  if (hooks.progress)
    hooks.progress = [this](std::int64_t done, std::int64_t) {
      hooks_.progress(steps_ + done, all_steps_);
    };
  std::size_t mine = 0;
  std::int64_t done = 0;
  deal_rounds(
      grid_, phase_, count_, done,
      [&](std::int64_t j) {
        mine = static_cast<std::size_t>(j / grid_.data_size());
        read(mine);
      },
      [&] { return compute(mine); }, hooks);
  steps_ += count_;
}

void LayerRounds::hold(std::int64_t layer, std::int64_t next) {
  together(grid_.world(), phase_, [&] {
    const bool is_layer = next >= 0 && next < model_.layers();
    layers_.hold(layer, is_layer ? std::optional(next) : std::nullopt);
  });
}

void LayerRounds::embed(const std::function<TokenBatch(std::int64_t j)>& read) {
  sweep([&](std::size_t k) { pass_.add(read(number_of(k))); },
        [&](std::size_t k) { return pass_.embed(k); });
}

bool LayerRounds::forward(const std::function<InputObserver&(std::size_t k)>& observer_of,
                          const std::function<bool(std::int64_t layer)>& after) {
  for (std::int64_t layer = 0; layer < model_.layers(); ++layer) {
    hold(layer, layer + 1);
    sweep([&](std::size_t k) { pass_.fetch_forward(layer, k); },
          [&](std::size_t k) { return pass_.forward(layer, k, observer_of(k)); });
    pass_.leave_forward(layer);
    if (!after(layer)) return false;
  }
  return true;
}

void LayerRounds::loss(const std::function<void(std::size_t k)>& read,
                       const std::function<Problems(std::size_t k, TokenLosses losses)>& take) {
  sweep(
      [&](std::size_t k) {
        read(k);
        pass_.fetch_loss(k);
      },
      [&](std::size_t k) { return take(k, pass_.loss(k)); });
}

bool LayerRounds::backward(const std::function<BackwardObserver&(std::size_t k)>& observer_of,
                           const std::function<bool(std::int64_t layer)>& after) {
  for (std::int64_t layer = model_.layers() - 1; layer >= pass_.lowest_layer(); --layer) {
    hold(layer, layer > pass_.lowest_layer() ? layer - 1 : -1);
    sweep([&](std::size_t k) { pass_.fetch_backward(layer, k); },
          [&](std::size_t k) { return pass_.backward(layer, k, observer_of(k)); });
    pass_.leave_backward(layer);
    if (!after(layer)) return false;
  }
  return true;
}

std::vector<LayerwisePass::Broken> LayerRounds::broken() { return pass_.broken(); }

}  // namespace espalier
