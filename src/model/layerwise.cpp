#include "espalier/model/layerwise.h"

#include <array>
#include <optional>
#include <utility>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "espalier/core/fault.h"
#include "espalier/model/tensor_ops.h"
#include "espalier/model/vocabulary_loss.h"
#include "half_graph.h"

namespace espalier {

/// What is known of a micro-batch beside its boundaries.
struct LayerwisePass::MicroBatch {
  MicroBatch(TokenBatch of, at::ScalarType dtype) : batch(std::move(of)), scale(batch, dtype) {}

  TokenBatch batch;
  LossScale scale;
  FiniteWatch watch;
  at::Tensor row_weights_B;  // once an observer wanted an output
};

namespace {

/// One half backward, with its graph made from its input: this may happen several times.
class HalfBackward {
 public:
  HalfBackward(const CausalLM& model, const RankGroup& tensor, std::int64_t half,
               BackwardObserver& observer)
      : model_(model), tensor_(tensor), half_(half), observer_(observer) {}

  /// Runs the half forward. Not collective.
  at::Tensor forward(const at::Tensor& x_BTD, const PackedRows* packed) {
    graph_.emplace(model_, half_, x_BTD, packed, observer_);
    return graph_->partial_BTD();
  }

  /// The gradient before the half from that after it; undefined where nobody needs it. Collective.
  at::Tensor backward(const TokenBatch& batch, const at::Tensor& dy_BTD,
                      const at::Tensor& row_weights_B, bool needs_input, FiniteWatch& watch) {
    HalfGraph::Gradients gradients = graph_->backward(dy_BTD, needs_input);
    graph_.reset();
    see_gradients(half_, gradients, watch);
    observed_ = std::move(gradients.observed);
    if (row_weights_B.defined())
      add_output(model_, half_, batch, dy_BTD, row_weights_B, tensor_, *observed_);
    if (!needs_input) return {};
    return before_half(half_, dy_BTD, std::move(gradients.dx_BTD), tensor_.reducer(), watch);
  }

  /// Shows the observer what it wants.
  void observe(const TokenBatch& batch, double scale) {
    if (!observed_) return;
    observed_->scale = scale;
    observed_->samples_SB = batch.samples_SB;
    observer_.observe(half_ / 2, kind_of(half_), *observed_);
    observed_.reset();
  }

 private:
  const CausalLM& model_;
  const RankGroup& tensor_;
  std::int64_t half_;
  BackwardObserver& observer_;
  std::optional<HalfGraph> graph_;
  std::optional<HalfGradients> observed_;
};

}  // namespace

LayerwisePass::LayerwisePass(const CausalLM& model, const RankGroup& tensor,
                             std::unique_ptr<Boundaries> boundaries, std::int64_t lowest_half)
    : model_(model),
      tensor_(tensor),
      boundaries_(std::move(boundaries)),
      lowest_half_(lowest_half) {}

LayerwisePass::~LayerwisePass() = default;

void LayerwisePass::add(TokenBatch batch) {
  batches_.push_back(std::make_unique<MicroBatch>(std::move(batch), model_.options().dtype));
}

std::size_t LayerwisePass::micro_batches() const { return batches_.size(); }

Problems LayerwisePass::put(std::int64_t place, std::size_t micro_batch, const at::Tensor& x_BTD) {
  tensor_.reducer().check();  // it goes to the host
  return problems_of([&] { boundaries_->put(place, micro_batch, x_BTD); });
}

Problems LayerwisePass::embed(std::size_t micro_batch) {
  const c10::NoGradGuard no_gradient;
  fault::hit("forward.enter");
  MicroBatch& m = *batches_[micro_batch];
  return put(0, micro_batch,
             espalier::embed(model_, m.batch.tokens_BT, tensor_.reducer(), m.watch));
}

std::vector<std::int64_t> LayerwisePass::shape_at_boundary(std::size_t micro_batch) const {
  const at::Tensor& tokens_BT = batches_[micro_batch]->batch.tokens_BT;
  return {tokens_BT.size(0), tokens_BT.size(1), model_.config().hidden};
}

AtBoundary LayerwisePass::at_boundary(std::int64_t place, std::size_t micro_batch) {
  return {boundaries_->get(place == kGradients ? under_way() : place, micro_batch),
          batches_[micro_batch]->scale.factor()};
}

void LayerwisePass::put_back(std::int64_t place, std::size_t micro_batch, const AtBoundary& there) {
  const std::vector<std::int64_t> shape = shape_at_boundary(micro_batch);
  if (there.x_BTD.sizes() != at::IntArrayRef(shape) ||
      there.x_BTD.scalar_type() != model_.options().dtype)
    throw Error(
        ExitCode::bad_content,
        fmt::format("a paused pass left {} of {} where {} of {} is due",
                    at::toString(there.x_BTD.scalar_type()), fmt::join(there.x_BTD.sizes(), " x "),
                    at::toString(model_.options().dtype), fmt::join(shape, " x ")),
        "the files are of other work", "Remove its directory in ckpt/.");
  batches_[micro_batch]->scale.restore(there.loss_scale);
  boundaries_->put(place == kGradients ? under_way() : place, micro_batch,
                   there.x_BTD.to(model_.options().device));
}

void LayerwisePass::fetch_forward(std::int64_t layer, std::size_t micro_batch) {
  x_BTD_ = boundaries_->get(layer, micro_batch);
  if (layer < lowest_layer()) boundaries_->drop(layer, micro_batch);
  if (micro_batch + 1 < batches_.size()) boundaries_->will_get(layer, micro_batch + 1);
}

at::Tensor LayerwisePass::through_half(std::int64_t half, MicroBatch& m, const at::Tensor& x_BTD,
                                       InputObserver& observer) {
  HalfOutput out = run_half(model_, half, x_BTD, m.batch.packed.get());
  if (observer.wants_input(half / 2, kind_of(half)))
    observer.observe_input(half / 2, kind_of(half), out.gate, m.batch.real_BT);
  out.gate.reset();
  return after_half(half, x_BTD, std::move(out.partial_BTD), tensor_.reducer(), m.watch);
}

Problems LayerwisePass::forward(std::int64_t layer, std::size_t micro_batch,
                                InputObserver& observer) {
  const c10::NoGradGuard no_gradient;
  MicroBatch& m = *batches_[micro_batch];
  at::Tensor x_BTD = std::exchange(x_BTD_, {});
  for (const std::int64_t half : {2 * layer, 2 * layer + 1})
    x_BTD = through_half(half, m, x_BTD, observer);
  return put(layer + 1, micro_batch, x_BTD);
}

void LayerwisePass::leave_forward(std::int64_t layer) {
  if (layer < lowest_layer()) boundaries_->drop(layer);
}

void LayerwisePass::fetch_loss(std::size_t micro_batch) {
  x_BTD_ = boundaries_->get(under_way(), micro_batch);
  if (micro_batch + 1 < batches_.size()) boundaries_->will_get(under_way(), micro_batch + 1);
}

TokenLosses LayerwisePass::loss(std::size_t micro_batch) {
  const c10::NoGradGuard no_gradient;
  MicroBatch& m = *batches_[micro_batch];
  at::Tensor x_BTD = std::exchange(x_BTD_, {});
  poison_at("forward.exit", x_BTD);
  m.watch.next_step();
  m.watch.see(x_BTD, {FiniteWatch::Value::hidden, -1, TensorRole::final_norm});
  const bool differentiate = lowest_half_ < 2 * model_.layers();
  VocabularyLoss loss = vocabulary_loss(
      model_, x_BTD, m.batch.positions_N, m.batch.targets_N,
      differentiate ? m.batch.weights_N * m.scale.factor() : at::Tensor(), tensor_.reducer());
  TokenLosses losses = checked_losses(model_, m.batch, loss.nll_N, m.watch, tensor_);
  if (!differentiate || !losses.problems.empty()) return losses;
  poison_at("backward.enter", loss.dx_BTD);
  m.watch.next_step();
  m.watch.see(loss.dx_BTD, {FiniteWatch::Value::input_gradient, -1});
  losses.problems.add(put(under_way(), micro_batch, loss.dx_BTD));
  return losses;
}

void LayerwisePass::fetch_backward(std::int64_t layer, std::size_t micro_batch) {
  x_BTD_ = boundaries_->get(layer, micro_batch);
  boundaries_->drop(layer, micro_batch);
  dx_BTD_ = boundaries_->get(under_way(), micro_batch);
  if (micro_batch + 1 == batches_.size()) return;
  boundaries_->will_get(layer, micro_batch + 1);
  boundaries_->will_get(under_way(), micro_batch + 1);
}

Problems LayerwisePass::backward(std::int64_t layer, std::size_t micro_batch,
                                 BackwardObserver& observer) {
  const c10::NoGradGuard no_gradient;
  going_back_ = true;
  MicroBatch& m = *batches_[micro_batch];
  const PackedRows* packed = m.batch.packed.get();
  const std::array<std::int64_t, 2> halves{2 * layer, 2 * layer + 1};
  std::array<at::Tensor, 2> inputs_BTD{std::exchange(x_BTD_, {}), {}};
  at::Tensor dx_BTD = std::exchange(dx_BTD_, {});
  std::array<HalfBackward, 2> back{HalfBackward(model_, tensor_, halves[0], observer),
                                   HalfBackward(model_, tensor_, halves[1], observer)};
  // The residual between the halves is in no boundary. What is seen of it was seen on the way
  // forward.
  FiniteWatch seen;
  at::Tensor partial_BTD = halves[0] >= lowest_half_
                               ? back[0].forward(inputs_BTD[0], packed)
                               : run_half(model_, halves[0], inputs_BTD[0], packed).partial_BTD;
  inputs_BTD[1] =
      after_half(halves[0], inputs_BTD[0], std::move(partial_BTD), tensor_.reducer(), seen);
  back[1].forward(inputs_BTD[1], packed);

  for (const std::size_t k : {std::size_t{1}, std::size_t{0}}) {
    if (halves[k] < lowest_half_) break;
    const bool needs_input = halves[k] > lowest_half_;
    at::Tensor row_weights_B;
    if (observer.wants_output(layer, kind_of(halves[k]))) {
      if (!m.row_weights_B.defined()) m.row_weights_B = row_weights(m.batch);
      row_weights_B = m.row_weights_B;
    }
    for (;;) {
      const std::int64_t before = m.watch.step();
      at::Tensor before_BTD =
          back[k].backward(m.batch, dx_BTD, row_weights_B, needs_input, m.watch);
      const double scale = m.scale.factor();
      if (m.scale.may_overflow() &&
          tensor_.control().min(m.watch.first_step()) != FiniteWatch::kNever && m.scale.lower()) {
        dx_BTD = dx_BTD * (m.scale.factor() / scale);
        m.watch.rewind(before);
        back[k].forward(inputs_BTD[k], packed);
        continue;
      }
      back[k].observe(m.batch, scale);
      dx_BTD = std::move(before_BTD);
      break;
    }
  }
  if (layer == lowest_layer()) {
    fault::hit("backward.exit");
    return {};
  }
  return put(under_way(), micro_batch, dx_BTD);
}

void LayerwisePass::leave_backward(std::int64_t layer) { boundaries_->drop(layer); }

std::vector<LayerwisePass::Broken> LayerwisePass::broken() {
  if (batches_.empty()) return {};  // the same on all ranks of the group
  tensor_.reducer().check();
  std::vector<std::int64_t> first;
  for (const auto& m : batches_) first.push_back(m->watch.first_step());
  tensor_.control().all_reduce({first.data(), first.size(), DType::i64}, ReduceOp::min);
  std::vector<Broken> all;
  for (std::size_t j = 0; j < first.size(); ++j)
    if (first[j] != FiniteWatch::kNever)
      all.push_back({j, non_finite(model_, batches_[j]->batch,
                                   going_back_ ? "a gradient is NaN or infinite"
                                               : "the loss is NaN or infinite",
                                   batches_[j]->watch, tensor_)});
  return all;
}

std::int64_t LayerwisePass::repeated_halves() const { return 2 * model_.layers() - lowest_half_; }

}  // namespace espalier
