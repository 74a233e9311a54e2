#include "espalier/calib/layer_rounds.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include "espalier/calib/rounds.h"

namespace espalier {
namespace {

using Clock = std::chrono::steady_clock;

}  // namespace

LayerRounds::LayerRounds(const ProcessGrid& grid, std::string phase, const CausalLM& model,
                         const LayerByLayer& how, std::int64_t count, std::int64_t lowest_half,
                         const RoundHooks& hooks, Stops stops, std::int64_t finished)
    : grid_(grid),
      phase_(std::move(phase)),
      model_(model),
      layers_(*how.layers),
      count_(count),
      hooks_(hooks),
      stops_(stops),
      finished_(finished),
      pass_(model, grid.tensor(), how.boundaries(), lowest_half) {
  const bool losses = finishes_forward() || finished_ == 0;
  const std::int64_t back = finishes_forward() ? 0 : highest_back() + 1 - pass_.lowest_layer();
  all_steps_ = count_ * (1 + forward_layers().size() + (losses ? 1 : 0) + back);
}

Range LayerRounds::forward_layers() const {
  if (finishes_forward()) return {finished_, model_.layers()};
  // The input of the layer that goes back first is what the layer below it gives.
  return {0, finished_ == 0 ? model_.layers() : highest_back()};
}

std::int64_t LayerRounds::place(std::int64_t finished) const {
  return finishes_forward() ? finished : LayerwisePass::kGradients;
}

AtBoundary LayerRounds::at_boundary(std::int64_t finished, std::size_t k) {
  return pass_.at_boundary(place(finished), k);
}

std::int64_t LayerRounds::number_of(std::size_t k) const {
  return static_cast<std::int64_t>(k) * grid_.data_size() + grid_.data_index();
}

void LayerRounds::sweep(const std::function<void(std::size_t k)>& read,
                        const std::function<Problems(std::size_t k)>& compute,
                        bool finishes_layers) {
  RoundHooks hooks = hooks_;
  if (finishes_layers && stops_ == Stops::between_layers) {
    hooks.poll = {};
    hooks.heeds_stop = false;
  }
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

void LayerRounds::embed(const std::function<TokenBatch(std::int64_t j)>& read,
                        const std::function<AtBoundary(std::int64_t j)>& recall) {
  sweep(
      [&](std::size_t k) {
        pass_.add(read(number_of(k)));
        if (finished_ > 0) pass_.put_back(place(finished_), k, recall(number_of(k)));
      },
      [&](std::size_t k) {
        // What is further on its way needs no embedding.
        return finishes_forward() && finished_ > 0 ? Problems() : pass_.embed(k);
      });
}

bool LayerRounds::forward(const std::function<InputObserver&(std::size_t k)>& observer_of,
                          const std::function<bool(std::int64_t layer)>& after) {
  const Range layers = forward_layers();
  for (std::int64_t layer = layers.begin; layer < layers.end; ++layer) {
    const Clock::time_point begin = Clock::now();
    hold(layer, layer + 1);
    sweep([&](std::size_t k) { pass_.fetch_forward(layer, k); },
          [&](std::size_t k) { return pass_.forward(layer, k, observer_of(k)); },
          finishes_forward());
    pass_.leave_forward(layer);
    forward_seconds_ =
        std::max(forward_seconds_, std::chrono::duration<double>(Clock::now() - begin).count());
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
      [&](std::size_t k) { return take(k, pass_.loss(k)); }, finishes_forward());
}

bool LayerRounds::backward(const std::function<BackwardObserver&(std::size_t k)>& observer_of,
                           const std::function<bool(std::int64_t layer)>& after) {
  // Forward once more, and twice as much for the gradients of inputs and weights.
  if (stops_ == Stops::between_layers && hooks_.foresee) hooks_.foresee(3 * forward_seconds_);
  for (std::int64_t layer = highest_back(); layer >= pass_.lowest_layer(); --layer) {
    hold(layer, layer > pass_.lowest_layer() ? layer - 1 : -1);
    sweep([&](std::size_t k) { pass_.fetch_backward(layer, k); },
          [&](std::size_t k) { return pass_.backward(layer, k, observer_of(k)); }, true);
    pass_.leave_backward(layer);
    if (!after(layer)) return false;
  }
  return true;
}

std::vector<LayerwisePass::Broken> LayerRounds::broken() { return pass_.broken(); }

}  // namespace espalier
