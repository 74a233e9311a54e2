#include "espalier/model/blockwise.h"

#include <algorithm>
#include <limits>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>

#include "espalier/core/error.h"
#include "espalier/core/fault.h"
#include "espalier/model/memory.h"
#include "espalier/model/tensor_ops.h"
#include "espalier/model/vocabulary_loss.h"

namespace espalier {
namespace {

UnitKind kind_of(std::int64_t half) { return half % 2 == 0 ? UnitKind::attention : UnitKind::mlp; }

HalfOutput run_half(const CausalLM& model, std::int64_t half, const at::Tensor& x_BTD) {
  return kind_of(half) == UnitKind::attention ? model.attention_half(half / 2, x_BTD)
                                              : model.mlp_half(half / 2, x_BTD);
}

std::string half_name(std::int64_t half) {
  return fmt::format("{} of layer {}", kind_of(half) == UnitKind::attention ? "attention" : "MLP",
                     half / 2);
}

at::Tensor embed(const CausalLM& model, const at::Tensor& tokens_BT, Communicator& tensor) {
  at::Tensor x_BTD = model.embed_partial(tokens_BT);
  all_reduce_sum(x_BTD, tensor);
  return x_BTD;
}

/// x + sum over tensor ranks of the half's partial output. Collective.
at::Tensor advance_half(const CausalLM& model, std::int64_t half, const at::Tensor& x_BTD,
                        Communicator& tensor) {
  at::Tensor partial_BTD = run_half(model, half, x_BTD).partial_BTD;
  all_reduce_sum(partial_BTD, tensor);
  return x_BTD + partial_BTD;
}

/// Turns gradients on for some weights of a layer as long as it lives.
class GradientScope {
 public:
  GradientScope(const LayerWeights& layer, const std::vector<TensorRole>& roles) {
    for (const TensorRole role : roles) weights_.push_back(layer.by_role(role));
    for (at::Tensor& w : weights_) w.requires_grad_(true);
  }
  ~GradientScope() {
    for (at::Tensor& w : weights_) w.requires_grad_(false);
  }
  GradientScope(const GradientScope&) = delete;
  GradientScope& operator=(const GradientScope&) = delete;
  const std::vector<at::Tensor>& weights() const { return weights_; }

 private:
  std::vector<at::Tensor> weights_;
};

/// One half run with gradients on: from its input to this rank's part of its output.
class HalfGraph {
 public:
  HalfGraph(const CausalLM& model, std::int64_t half, const at::Tensor& x_BTD,
            const BackwardObserver& observer)
      : half_(half),
        wants_gate_(observer.wants_gate(half / 2, kind_of(half))),
        roles_(observer.wants_weights(half / 2, kind_of(half))),
        weights_(model.layer(half / 2), roles_),
        leaf_BTD_(x_BTD.detach().requires_grad_(true)) {
    const c10::AutoGradMode mode(true);
    out_ = run_half(model, half, leaf_BTD_);
  }

  at::Tensor partial_BTD() const { return out_.partial_BTD.detach(); }

  /// Shows the observer what it wants; returns d/dx of this rank's part (zero where the rank holds
  /// no unit). Once only.
  at::Tensor backward(const at::Tensor& dy_BTD, bool needs_input, BackwardObserver& observer) {
    if (!needs_input && !wants_gate_ && roles_.empty()) return {};
    if (!out_.partial_BTD.requires_grad())
      return needs_input ? at::zeros_like(leaf_BTD_) : at::Tensor();
    const c10::AutoGradMode mode(true);
    std::vector<at::Tensor> inputs;
    if (needs_input) inputs.push_back(leaf_BTD_);
    if (wants_gate_) inputs.push_back(out_.gate);
    inputs.insert(inputs.end(), weights_.weights().begin(), weights_.weights().end());
    std::vector<at::Tensor> gradients = torch::autograd::grad({out_.partial_BTD}, inputs, {dy_BTD});

    std::size_t next = 0;
    const at::Tensor dx_BTD = needs_input ? gradients[next++] : at::Tensor();
    HalfGradients observed;
    observed.gate = out_.gate.detach();
    if (wants_gate_) observed.gate_gradient = gradients[next++];
    for (const TensorRole role : roles_)
      observed.weight_gradients.emplace_back(role, gradients[next++]);
    if (wants_gate_ || !roles_.empty()) {
      const c10::NoGradGuard no_gradient;
      observer.observe(half_ / 2, kind_of(half_), observed);
    }
    return dx_BTD;
  }

 private:
  std::int64_t half_;
  bool wants_gate_;
  std::vector<TensorRole> roles_;
  GradientScope weights_;
  at::Tensor leaf_BTD_;
  HalfOutput out_;
};

/// What the forward pass leaves for the backward pass: the input of every differentiated half, and
/// the graphs of as many halves as fit into `bytes`, from the lowest. Kept or run again, the same
/// operations run on the same numbers, so every rank may decide for itself.
class Tape {
 public:
  Tape(const CausalLM& model, std::int64_t lowest_half, std::int64_t bytes,
       const BackwardObserver& observer)
      : model_(model),
        lowest_(lowest_half),
        room_(bytes),
        observer_(observer),
        halves_(static_cast<std::size_t>(2 * model.layers())) {}

  /// This rank's part of the half's output.
  at::Tensor forward(std::int64_t half, const at::Tensor& x_BTD) {
    if (half < lowest_) return run_half(model_, half, x_BTD).partial_BTD;
    Entry& entry = at(half);
    entry.input_BTD = x_BTD;
    const MemoryMeter meter;
    auto graph = std::make_unique<HalfGraph>(model_, half, x_BTD, observer_);
    const at::Tensor partial_BTD = graph->partial_BTD();
    room_ -= static_cast<std::int64_t>(x_BTD.nbytes());
    // What is left must hold one more graph like it: that of a half run again, or what the
    // gradients of one need.
    if (room_ < 2 * meter.bytes()) return partial_BTD;
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
    return std::make_unique<HalfGraph>(model_, half, entry.input_BTD, observer_);
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
  std::int64_t lowest_;
  std::int64_t room_;
  const BackwardObserver& observer_;
  std::vector<Entry> halves_;
  std::int64_t repeated_ = 0;
};

/// Runs forward once more and says where the first value that is not finite appeared. Collective,
/// and the same on every tensor rank, since residuals are.
Problem non_finite_loss(const CausalLM& model, const TokenBatch& batch, Communicator& tensor) {
  std::string place = "the output projection or the loss";
  at::Tensor x_BTD = embed(model, batch.tokens_BT, tensor);
  if (!all_finite(x_BTD)) place = "the embedding";
  for (std::int64_t half = 0; half < 2 * model.layers(); ++half) {
    if (place == "the embedding") break;
    x_BTD = advance_half(model, half, x_BTD, tensor);
    if (all_finite(x_BTD)) continue;
    place = half_name(half);
    break;
  }
  return {ExitCode::bad_content,
          "the loss is NaN or infinite",
          fmt::format("the first value that is not finite is an activation after the {}", place),
          "Use a wider model.dtype (float16 overflows easily), or check the weights of that layer.",
          {}};
}

/// The losses on the host, and what is wrong with them: the same on every tensor rank. Collective.
TokenLosses checked_losses(const CausalLM& model, const TokenBatch& batch, const at::Tensor& nll_N,
                           Communicator& tensor) {
  TokenLosses losses{nll_N.to(at::kCPU), {}};
  if (!all_finite(losses.nll_N)) losses.problems.add(non_finite_loss(model, batch, tensor));
  return losses;
}

/// Remembers, on this rank alone, where a gradient first is NaN or infinite: the sum over tensor
/// ranks carries it to all of them. Reads the device once, at the end.
class GradientWatch {
 public:
  /// `part` was made from `incoming`; what came in broken is somebody else's.
  void see(const at::Tensor& part, const at::Tensor& incoming, std::int64_t half) {
    if (!part.defined()) return;
    const at::Tensor finite = at::isfinite(part).all();
    innocent_.push_back(incoming.defined()
                            ? at::logical_or(finite, at::isfinite(incoming).all().logical_not())
                            : finite);
    half_.push_back(half);
  }

  /// What arose on this rank; empty when all is finite.
  Problems problems(std::int64_t halves) const {
    if (innocent_.empty()) return {};
    const at::Tensor innocent = at::stack(innocent_).to(at::kCPU);
    const bool* begin = innocent.const_data_ptr<bool>();
    const auto first =
        static_cast<std::size_t>(std::find(begin, begin + half_.size(), false) - begin);
    if (first == half_.size()) return {};
    const std::int64_t half = half_[first];
    const std::string place =
        half == halves
            ? fmt::format("'model.norm.weight', after layer {}", halves / 2 - 1)
            : fmt::format("'model.layers.{}.{}.weight', {}", half / 2,
                          kind_of(half) == UnitKind::attention ? "input_layernorm"
                                                               : "post_attention_layernorm",
                          half_name(half));
    return Problems({{ExitCode::bad_content,
                      "a gradient is NaN or infinite: at the input of tensor " + place,
                      "it is the first such value on the way back from the loss",
                      "Use a wider model.dtype (float16 overflows easily), or check the weights of "
                      "that layer.",
                      {}}});
  }

 private:
  std::vector<at::Tensor> innocent_;
  std::vector<std::int64_t> half_;
};

void poison(at::Tensor& tensor) {
  tensor = tensor.clone();
  tensor.view(-1).narrow(0, 0, 1).fill_(std::numeric_limits<double>::quiet_NaN());
}

}  // namespace

at::Tensor forward_hidden(const CausalLM& model, const at::Tensor& tokens_BT,
                          Communicator& tensor) {
  const c10::NoGradGuard no_gradient;
  at::Tensor x_BTD = embed(model, tokens_BT, tensor);
  for (std::int64_t half = 0; half < 2 * model.layers(); ++half)
    x_BTD = advance_half(model, half, x_BTD, tensor);
  return x_BTD;
}

TokenLosses token_losses(const CausalLM& model, const TokenBatch& batch, Communicator& tensor) {
  const c10::NoGradGuard no_gradient;
  const at::Tensor x_BTD = forward_hidden(model, batch.tokens_BT, tensor);
  return checked_losses(
      model, batch,
      vocabulary_loss(model, x_BTD, batch.positions_N, batch.targets_N, {}, tensor).nll_N, tensor);
}

at::Tensor logits_at(const CausalLM& model, const at::Tensor& hidden_BTD,
                     const at::Tensor& positions_N, Communicator& tensor) {
  const c10::NoGradGuard no_gradient;
  const at::Tensor rows_ND = model.final_norm(hidden_BTD)
                                 .reshape({-1, model.config().hidden})
                                 .index_select(0, positions_N);
  at::Tensor all_NV = at::zeros({rows_ND.size(0), model.config().vocabulary}, rows_ND.options());
  const Range mine = model.shard().vocabulary;
  all_NV.narrow(1, mine.begin, mine.size()).copy_(at::linear(rows_ND, model.head_VD()));
  all_reduce_sum(all_NV, tensor);
  return all_NV;
}

BackwardPass blockwise_backward(const CausalLM& model, const TokenBatch& batch,
                                const BackwardScope& scope, BackwardObserver& observer,
                                Communicator& tensor) {
  const c10::NoGradGuard no_gradient;
  const std::int64_t halves = 2 * model.layers();
  const std::int64_t lowest = scope.lowest_half;
  Tape tape(model, lowest, scope.graph_bytes - loss_bytes(model, batch.targets_N.numel()),
            observer);
  fault::hit("forward.enter");
  at::Tensor x_BTD = embed(model, batch.tokens_BT, tensor);
  for (std::int64_t half = 0; half < halves; ++half) {
    at::Tensor partial_BTD = tape.forward(half, x_BTD);
    all_reduce_sum(partial_BTD, tensor);
    x_BTD = x_BTD + partial_BTD;
  }
  if (fault::hit("forward.exit").effect == fault::Effect::nan) poison(x_BTD);
  VocabularyLoss loss = vocabulary_loss(model, x_BTD, batch.positions_N, batch.targets_N,
                                        lowest < halves ? batch.weights_N : at::Tensor(), tensor);
  TokenLosses losses = checked_losses(model, batch, loss.nll_N, tensor);
  BackwardPass pass{std::move(losses.nll_N), 0, std::move(losses.problems)};
  if (!pass.problems.empty()) return pass;
  x_BTD.reset();
  at::Tensor dx_BTD = loss.dx_BTD;
  if (fault::hit("backward.enter").effect == fault::Effect::nan && dx_BTD.defined()) poison(dx_BTD);
  GradientWatch watch;
  watch.see(dx_BTD, {}, halves);
  for (std::int64_t half = halves - 1; half >= lowest; --half) {
    const bool needs_input = half > lowest;
    at::Tensor part_BTD = tape.take(half)->backward(dx_BTD, needs_input, observer);
    if (!needs_input) break;
    watch.see(part_BTD, dx_BTD, half);
    all_reduce_sum(part_BTD, tensor);
    dx_BTD = dx_BTD + part_BTD;
  }
  pass.problems = watch.problems(halves);
  fault::hit("backward.exit");
  pass.repeated_halves = tape.repeated();
  return pass;
}

}  // namespace espalier
