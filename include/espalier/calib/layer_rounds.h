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

/// Takes micro-batches 0 to `count` through a model layer by layer (LayerwisePass), dealt to data
/// ranks as deal_rounds deals them: a rank's k-th own micro-batch is number k * D + d of all.
/// Methods are called in the order in which they stand here, each at most once, and are collective
/// over grid.world(); they throw what deal_rounds throws, and AgreedError for layers or boundaries
/// that cannot be read or written.
class LayerRounds {
 public:
  /// Halves below `lowest_half` are not differentiated; 2 * layers = losses only.
  LayerRounds(const ProcessGrid& grid, std::string phase, const CausalLM& model,
              const LayerByLayer& how, std::int64_t count, std::int64_t lowest_half,
              const RoundHooks& hooks);

  /// `read(j)` gives the j-th of all micro-batches; it may fail alone.
  void embed(const std::function<TokenBatch(std::int64_t j)>& read);
  /// `observer_of(k)` is who looks at the rank's k-th micro-batch; `after(layer)` follows when all
  /// are through a layer, whose weights are still here. It is collective; false ends the way, on
  /// all ranks alike.
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
  const LayerwisePass& pass() const { return pass_; }

 private:
  void sweep(const std::function<void(std::size_t k)>& read,
             const std::function<Problems(std::size_t k)>& compute);
  void hold(std::int64_t layer, std::int64_t next);

  const ProcessGrid& grid_;
  std::string phase_;
  const CausalLM& model_;
  StreamedLayers& layers_;
  std::int64_t count_;
  RoundHooks hooks_;
  LayerwisePass pass_;
  std::int64_t steps_ = 0, all_steps_;  // a step: a micro-batch through a layer, embedding or loss
};

}  // namespace espalier
