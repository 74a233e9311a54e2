#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "espalier/comm/process_grid.h"
#include "espalier/model/layerwise.h"
#include "espalier/model/load.h"

namespace espalier {

/// How a pass holds one decoder layer at a time.
struct LayerByLayer {
  /// The weights of the pass's model; outlives the pass.
  StreamedLayers* layers = nullptr;
  /// Where micro-batches are between layers.
  BoundariesMaker boundaries;
};

/// What a request to stop cuts short: rounds, or nothing before all micro-batches are through a
/// layer where layers come to their end, so that what was done of a pass can be kept.
enum class Stops { in_rounds, between_layers };

/// Takes micro-batches 0 to `count` through a model layer by layer (LayerwisePass), dealt to data
/// ranks as deal_rounds deals them: a rank's k-th own micro-batch is number k * D + d of all.
/// Methods are called in the order in which they stand here, each at most once, and are collective
/// over grid.world(); they throw what deal_rounds throws, and AgreedError for layers or boundaries
/// that cannot be read or written.
///
/// Layers are finished on the way forward where nothing is differentiated, else on the way back.
/// Those that another process finished are left out: with the micro-batches where it left them the
/// way goes on behind them, after as much of the way forward as it takes to come there.
class LayerRounds {
 public:
  /// Halves below `lowest_half` are not differentiated; 2 * layers = losses only. `finished`: how
  /// many layers were finished already.
  LayerRounds(const ProcessGrid& grid, std::string phase, const CausalLM& model,
              const LayerByLayer& how, std::int64_t count, std::int64_t lowest_half,
              const RoundHooks& hooks, Stops stops = Stops::in_rounds, std::int64_t finished = 0);

  /// `read(j)` gives the j-th of all micro-batches; it may fail alone, as may `recall(j)`, which
  /// is asked where layers were finished already: where the j-th was then.
  void embed(const std::function<TokenBatch(std::int64_t j)>& read,
             const std::function<AtBoundary(std::int64_t j)>& recall = {});
  /// `observer_of(k)` is who looks at the rank's k-th micro-batch; `after(layer)` follows when all
  /// are through a layer, whose weights are still here. It is collective; false ends the way, on
  /// all ranks alike. A stop between layers is its concern.
  bool forward(const std::function<InputObserver&(std::size_t k)>& observer_of,
               const std::function<bool(std::int64_t layer)>& after);
  /// `take(k, losses)` says what is wrong, on the same terms as deal_rounds' compute. `read(k)`
  /// comes before it and may fail alone.
  void loss(const std::function<void(std::size_t k)>& read,
            const std::function<Problems(std::size_t k, TokenLosses losses)>& take);
  bool backward(const std::function<BackwardObserver&(std::size_t k)>& observer_of,
                const std::function<bool(std::int64_t layer)>& after);

  /// The rank's own micro-batches with values that are not finite, by their number among all, the
  /// same on every rank of the tensor group. Collective over that.
  std::vector<LayerwisePass::Broken> broken();
  /// The number among all micro-batches of the rank's k-th own.
  std::int64_t number_of(std::size_t k) const;
  /// Where the rank's k-th is when so many layers are finished, and its shape. Not collective.
  AtBoundary at_boundary(std::int64_t finished, std::size_t k);
  std::vector<std::int64_t> shape_at_boundary(std::size_t k) const {
    return pass_.shape_at_boundary(k);
  }
  const LayerwisePass& pass() const { return pass_; }

 private:
  bool finishes_forward() const { return pass_.lowest_layer() == model_.layers(); }
  std::int64_t place(std::int64_t finished) const;
  /// Layers that are to come on the way forward, and where the way back begins.
  Range forward_layers() const;
  std::int64_t highest_back() const { return model_.layers() - 1 - finished_; }
  void sweep(const std::function<void(std::size_t k)>& read,
             const std::function<Problems(std::size_t k)>& compute, bool finishes_layers = false);
  void hold(std::int64_t layer, std::int64_t next);

  const ProcessGrid& grid_;
  std::string phase_;
  const CausalLM& model_;
  StreamedLayers& layers_;
  std::int64_t count_;
  RoundHooks hooks_;
  Stops stops_;
  std::int64_t finished_;  // by another process
  LayerwisePass pass_;
  std::int64_t steps_ = 0, all_steps_;  // a step: a micro-batch through a layer, embedding or loss
  double forward_seconds_ = 0;          // of the slowest layer
};

}  // namespace espalier
