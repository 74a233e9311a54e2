#include "espalier/model/blockwise.h"

#include <algorithm>
#include <memory>
#include <utility>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "espalier/core/fault.h"
#include "espalier/core/pulse.h"
#include "espalier/model/memory.h"
#include "espalier/model/tensor_ops.h"
#include "espalier/model/vocabulary_loss.h"
#include "finite_watch.h"
#include "half_graph.h"

namespace espalier {
namespace {

/// This rank's part of a half's output, as a function of the half and its input.
auto run_partial(const CausalLM& model) {
  return [&model](std::int64_t half, const at::Tensor& x_BTD) {
    return run_half(model, half, x_BTD).partial_BTD;
  };
}

/// The hidden states after the last layer; `partial_of(half, x)` gives this rank's part of a half's
/// output. Collective.
template <class F>
at::Tensor through_layers(const CausalLM& model, const at::Tensor& tokens_BT, TensorReducer& tensor,
                          FiniteWatch& watch, F&& partial_of) {
  at::Tensor x_BTD = embed(model, tokens_BT, tensor, watch);
  for (std::int64_t half = 0; half < 2 * model.layers(); ++half) {
    at::Tensor partial_BTD = partial_of(half, x_BTD);
    x_BTD = after_half(half, x_BTD, std::move(partial_BTD), tensor, watch);
  }
  return x_BTD;
}

/// What the forward pass leaves for the backward pass: the input of every differentiated half, and
/// the graphs of as many halves as fit beside these into `bytes`, from the lowest. Kept or run
/// again, the same operations run on the same numbers, so every rank may decide for itself.
class Tape {
 public:
  Tape(const CausalLM& model, const PackedRows* packed, std::int64_t lowest_half,
       std::int64_t bytes, const BackwardObserver& observer)
      : model_(model),
        packed_(packed),
        lowest_(lowest_half),
        room_(bytes),
        observer_(observer),
        halves_(static_cast<std::size_t>(2 * model.layers())) {}

  /// This rank's part of the half's output.
  at::Tensor forward(std::int64_t half, const at::Tensor& x_BTD) {
    if (half < lowest_) return run_half(model_, half, x_BTD, packed_).partial_BTD;
    Entry& entry = at(half);
    entry.input_BTD = x_BTD;
    // The inputs of all halves are held whatever becomes of the graphs, and two more of their size:
    // they come first.
    if (half == lowest_)
      room_ -= (2 * model_.layers() - half + 2) * static_cast<std::int64_t>(x_BTD.nbytes());
    const MemoryMeter meter;
    auto graph = std::make_unique<HalfGraph>(model_, half, x_BTD, packed_, observer_);
    at::Tensor partial_BTD = graph->partial_BTD();
    // What is left must hold one more graph, of any half so far: that of a half run again, or what
    // the gradients of one need.
    largest_graph_ = std::max(largest_graph_, meter.bytes());
    if (room_ < meter.bytes() + largest_graph_) return partial_BTD;
    room_ -= meter.bytes();
    entry.graph = std::move(graph);
    return partial_BTD;
  }

  /// The graph of a half, kept or made again; the tape forgets the half.
  std::unique_ptr<HalfGraph> take(std::int64_t half) {
    Entry entry = std::move(at(half));
    at(half) = {};
    if (entry.graph) return std::move(entry.graph);
    ++repeated_;
    return std::make_unique<HalfGraph>(model_, half, entry.input_BTD, packed_, observer_);
  }

  /// Halves that ran twice.
  std::int64_t repeated() const { return repeated_; }

 private:
  struct Entry {
    at::Tensor input_BTD;
    std::unique_ptr<HalfGraph> graph;
  };
  Entry& at(std::int64_t half) { return halves_[static_cast<std::size_t>(half)]; }

  const CausalLM& model_;
  const PackedRows* packed_;
  std::int64_t lowest_;
  std::int64_t room_;
  std::int64_t largest_graph_ = 0;
  const BackwardObserver& observer_;
  std::vector<Entry> halves_;
  std::int64_t repeated_ = 0;
};

/// One micro-batch forward and backward at one scale of its loss.
class Attempt {
 public:
  Attempt(const CausalLM& model, const TokenBatch& batch, const BackwardScope& scope,
          BackwardObserver& observer, const RankGroup& tensor)
      : model_(model),
        batch_(batch),
        lowest_(scope.lowest_half),
        observer_(observer),
        tensor_(tensor),
        tape_(model, batch.packed.get(), lowest_,
              scope.graph_bytes - loss_bytes(model.config(), tensor.size(), model.options().dtype,
                                             batch.targets_N.numel(), true),
              observer) {}

  /// Shows the observer the halves below `unobserved` and lowers it to the last one shown.
  /// Collective.
  BackwardPass run(const LossScale& scale, std::int64_t& unobserved) {
    fault::hit("forward.enter");
    at::Tensor x_BTD = through_layers(
        model_, batch_.tokens_BT, tensor_.reducer(), watch_,
        [&](std::int64_t half, const at::Tensor& in_BTD) { return tape_.forward(half, in_BTD); });
    poison_at("forward.exit", x_BTD);
    watch_.next_step();
    watch_.see(x_BTD, {FiniteWatch::Value::hidden, -1, TensorRole::final_norm});
    const bool differentiate = lowest_ < 2 * model_.layers();
    VocabularyLoss loss = vocabulary_loss(
        model_, x_BTD, batch_.positions_N, batch_.targets_N,
        differentiate ? batch_.weights_N * scale.factor() : at::Tensor(), tensor_.reducer());
    TokenLosses losses = checked_losses(model_, batch_, loss.nll_N, watch_, tensor_);
    BackwardPass pass{std::move(losses.nll_N), 0, std::move(losses.problems)};
    if (!pass.problems.empty()) return pass;
    x_BTD.reset();
    poison_at("backward.enter", loss.dx_BTD);
    if (differentiate) backward(std::move(loss.dx_BTD), scale, unobserved);
    tensor_.reducer().check();
    gradients_finite_ =
        !differentiate || tensor_.control().min(watch_.first_step()) == FiniteWatch::kNever;
    fault::hit("backward.exit");
    pass.repeated_halves = tape_.repeated();
    return pass;
  }

  /// The same on every tensor rank; true when the pass ended before it.
  bool gradients_are_finite() const { return gradients_finite_; }
  /// Collective, when they are not.
  Problem non_finite_gradient() {
    return non_finite(model_, batch_, "a gradient is NaN or infinite", watch_, tensor_);
  }

 private:
  void backward(at::Tensor dx_BTD, const LossScale& scale, std::int64_t& unobserved) {
    watch_.next_step();
    watch_.see(dx_BTD, {FiniteWatch::Value::input_gradient, -1});
    for (std::int64_t half = 2 * model_.layers() - 1; half >= lowest_; --half) {
      const bool needs_input = half > lowest_;
      HalfGraph::Gradients gradients = tape_.take(half)->backward(dx_BTD, needs_input);
      see_gradients(half, gradients, watch_);
      if (observer_.wants_output(half / 2, kind_of(half)))
        add_output(model_, half, batch_, dx_BTD, row_weights_of_batch(), tensor_,
                   *gradients.observed);
      if (gradients.observed) observe(half, *gradients.observed, scale, unobserved);
      if (!needs_input) break;
      dx_BTD = before_half(half, dx_BTD, std::move(gradients.dx_BTD), tensor_.reducer(), watch_);
    }
  }

  const at::Tensor& row_weights_of_batch() {
    if (!row_weights_B_.defined()) row_weights_B_ = row_weights(batch_);
    return row_weights_B_;
  }

  /// Each half once, at the first scale at which nothing on the way to it overflowed on this rank:
  /// what was observed is right whatever the scale, since the scale is taken out of it exactly.
  void observe(std::int64_t half, HalfGradients& observed, const LossScale& scale,
               std::int64_t& unobserved) {
    if (half >= unobserved) return;
    if (scale.may_overflow() && watch_.first_step() != FiniteWatch::kNever) return;
    observed.scale = scale.factor();
    observed.samples_SB = batch_.samples_SB;
    observer_.observe(half / 2, kind_of(half), observed);
    unobserved = half;
  }

  const CausalLM& model_;
  const TokenBatch& batch_;
  std::int64_t lowest_;
  BackwardObserver& observer_;
  const RankGroup& tensor_;
  FiniteWatch watch_;
  Tape tape_;
  at::Tensor row_weights_B_;
  bool gradients_finite_ = true;
};

}  // namespace

at::Tensor forward_hidden(const CausalLM& model, const at::Tensor& tokens_BT,
                          const RankGroup& tensor) {
  const c10::NoGradGuard no_gradient;
  FiniteWatch unread;
  return through_layers(model, tokens_BT, tensor.reducer(), unread, run_partial(model));
}

TokenLosses token_losses(const CausalLM& model, const TokenBatch& batch, const RankGroup& tensor) {
  InputObserver none;
  return observed_losses(model, batch, none, tensor);
}

TokenLosses observed_losses(const CausalLM& model, const TokenBatch& batch, InputObserver& observer,
                            const RankGroup& tensor) {
  const c10::NoGradGuard no_gradient;
  FiniteWatch watch;
  const at::Tensor x_BTD =
      through_layers(model, batch.tokens_BT, tensor.reducer(), watch,
                     [&](std::int64_t half, const at::Tensor& in_BTD) {
                       HalfOutput out = run_half(model, half, in_BTD, batch.packed.get());
                       if (observer.wants_input(half / 2, kind_of(half)))
                         observer.observe_input(half / 2, kind_of(half), out.gate, batch.real_BT);
                       return out.partial_BTD;
                     });
  return checked_losses(
      model, batch,
      vocabulary_loss(model, x_BTD, batch.positions_N, batch.targets_N, {}, tensor.reducer()).nll_N,
      watch, tensor);
}

at::Tensor logits_at(const CausalLM& model, const at::Tensor& hidden_BTD,
                     const at::Tensor& positions_N, const RankGroup& tensor) {
  const c10::NoGradGuard no_gradient;
  const at::Tensor rows_ND = model.final_norm(hidden_BTD)
                                 .reshape({-1, model.config().hidden})
                                 .index_select(0, positions_N);
  at::Tensor all_NV = at::zeros({rows_ND.size(0), model.config().vocabulary}, rows_ND.options());
  const Range mine = model.shard().vocabulary;
  all_NV.narrow(1, mine.begin, mine.size()).copy_(at::linear(rows_ND, model.head_VD()));
  all_reduce_sum(all_NV, tensor.reducer());
  tensor.reducer().check();
  return all_NV;
}

BackwardPass blockwise_backward(const CausalLM& model, const TokenBatch& batch,
                                const BackwardScope& scope, BackwardObserver& observer,
                                const RankGroup& tensor) {
  const c10::NoGradGuard no_gradient;
  LossScale scale(batch, model.options().dtype);
  std::int64_t unobserved = 2 * model.layers();
  for (;;) {
    Attempt attempt(model, batch, scope, observer, tensor);
    BackwardPass pass = attempt.run(scale, unobserved);
    if (attempt.gradients_are_finite()) return pass;
    if (scale.lower()) continue;
    pass.problems.add(attempt.non_finite_gradient());
    return pass;
  }
}

}  // namespace espalier
