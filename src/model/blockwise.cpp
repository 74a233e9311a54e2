#include "espalier/model/blockwise.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/csrc/autograd/autograd.h>

#include "espalier/core/error.h"
#include "espalier/core/fault.h"
#include "espalier/core/pulse.h"
#include "espalier/model/memory.h"
#include "espalier/model/tensor_ops.h"
#include "espalier/model/vocabulary_loss.h"
#include "espalier/prune/unit_tensors.h"

namespace espalier {
namespace {

UnitKind kind_of(std::int64_t half) { return half % 2 == 0 ? UnitKind::attention : UnitKind::mlp; }

HalfOutput run_half(const CausalLM& model, std::int64_t half, const at::Tensor& x_BTD,
                    const PackedRows* packed = nullptr) {
  return kind_of(half) == UnitKind::attention ? model.attention_half(half / 2, x_BTD, packed)
                                              : model.mlp_half(half / 2, x_BTD);
}

/// This rank's part of a half's output, as a function of the half and its input.
auto run_partial(const CausalLM& model) {
  return [&model](std::int64_t half, const at::Tensor& x_BTD) {
    return run_half(model, half, x_BTD).partial_BTD;
  };
}

std::string half_name(std::int64_t half) {
  return fmt::format("{} of layer {}", kind_of(half) == UnitKind::attention ? "attention" : "MLP",
                     half / 2);
}

std::string tensor_name(const CausalLM& model, std::int64_t half, TensorRole role) {
  for (const TensorSpec& spec : layer_tensors(model.config(), static_cast<int>(half / 2)))
    if (spec.role == role) return fmt::format("'{}'", spec.name);
  throw Error(ExitCode::internal, "a layer has no tensor of a role that was observed in it");
}

void poison(at::Tensor& tensor) {
  tensor = tensor.clone();
  tensor.view(-1).narrow(0, 0, 1).fill_(std::numeric_limits<double>::quiet_NaN());
}

void poison_at(std::string_view point, at::Tensor& tensor) {
  if (fault::hit(point).effect == fault::Effect::nan && tensor.defined() && tensor.numel() > 0)
    poison(tensor);
}

/// Remembers whether values were finite, in the order in which they arose, and so where one first
/// was not: what is made from it is not finite either. Every tensor rank counts the same steps; in
/// each it looks at values of its own. Reads the device when asked, and each value once.
class FiniteWatch {
 public:
  static constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();

  enum class Value { hidden, output, sum, gate_gradient, weight_gradient, input_gradient };
  struct Place {
    Value value = Value::hidden;
    std::int64_t half = -1;  // -1: before or after the layers
    TensorRole role = TensorRole::embedding;
  };

  void next_step() { ++step_; }
  void see(const at::Tensor& value, const Place& place) {
    if (!value.defined() || value.numel() == 0) return;
    flags_.push_back(finite_flag(value));
    seen_.emplace_back(step_, place);
  }

  /// The step of this rank's first value that was not finite.
  std::int64_t first_step() {
    read();
    return first_ ? first_->first : kNever;
  }
  const Place& first_place() const { return first_->second; }

 private:
  void read() {
    if (flags_.empty()) return;
    const at::Tensor finite = at::stack(flags_).to(at::kCPU);
    const bool* begin = finite.const_data_ptr<bool>();
    const auto place =
        static_cast<std::size_t>(std::find(begin, begin + seen_.size(), false) - begin);
    if (!first_ && place < seen_.size()) first_ = seen_[place];
    flags_.clear();
    seen_.clear();
  }

  std::int64_t step_ = 0;
  std::vector<at::Tensor> flags_;
  std::vector<std::pair<std::int64_t, Place>> seen_;
  std::optional<std::pair<std::int64_t, Place>> first_;
};

std::string describe(const CausalLM& model, const FiniteWatch::Place& place) {
  using Value = FiniteWatch::Value;
  const bool attention = place.half >= 0 && kind_of(place.half) == UnitKind::attention;
  const auto reader = [&] {
    return unit_reader(model.config(), kind_of(place.half), static_cast<int>(place.half / 2)).name;
  };
  switch (place.value) {
    case Value::hidden:
      return place.role == TensorRole::embedding
                 ? "the embedding"
                 : fmt::format("the hidden states after layer {}", model.layers() - 1);
    case Value::output:
      return fmt::format("the output of the {} (tensor '{}')", half_name(place.half), reader());
    case Value::sum:
      return fmt::format("the residual after the {}", half_name(place.half));
    case Value::gate_gradient:
      return fmt::format("the gradient at the gate of the {} (input of tensor '{}')",
                         half_name(place.half), reader());
    case Value::weight_gradient:
      return fmt::format("the gradient of tensor {}, {}",
                         tensor_name(model, place.half, place.role), half_name(place.half));
    case Value::input_gradient:
      break;
  }
  if (place.half < 0)
    return fmt::format("the gradient at the input of tensor 'model.norm.weight', after layer {}",
                       model.layers() - 1);
  return fmt::format(
      "the gradient at the input of tensor {}, {}",
      tensor_name(model, place.half, attention ? TensorRole::attention_norm : TensorRole::mlp_norm),
      half_name(place.half));
}

/// Where the first value that is not finite appeared, and on which tensor ranks: the same on all of
/// them. Collective.
Problem non_finite(const CausalLM& model, const TokenBatch& batch, const std::string& what,
                   FiniteWatch& watch, const RankGroup& tensor) {
  const std::int64_t mine = watch.first_step(), first = tensor.control().min(mine);
  const bool guilty = mine == first && first != FiniteWatch::kNever;
  const std::vector<std::string> told =
      tensor.control().gather_text(guilty ? describe(model, watch.first_place()) : std::string());
  std::map<std::string, std::vector<int>> ranks_of;
  for (std::size_t rank = 0; rank < told.size(); ++rank)
    if (!told[rank].empty()) ranks_of[told[rank]].push_back(static_cast<int>(rank));
  std::vector<std::string> places;
  places.reserve(ranks_of.size() + 1);
  for (const auto& [place, ranks] : ranks_of)
    places.push_back(fmt::format("{} on tensor rank{} {}", place, ranks.size() > 1 ? "s" : "",
                                 fmt::join(ranks, ", ")));
  if (places.empty()) places.emplace_back("the output projection or the loss");
  return {ExitCode::bad_content, what,
          fmt::format("the first value that is not finite is in {}", fmt::join(places, " and ")),
          "Use a wider model.dtype (float16 overflows easily), or check the weights of that layer "
          "and the calibration data.",
          batch.origin};
}

/// The losses on the host, and what is wrong with them. Collective.
TokenLosses checked_losses(const CausalLM& model, const TokenBatch& batch, const at::Tensor& nll_N,
                           FiniteWatch& watch, const RankGroup& tensor) {
  tensor.reducer().check();
  TokenLosses losses{nll_N.to(at::kCPU), {}};
  if (!all_finite(losses.nll_N))
    losses.problems.add(non_finite(model, batch, "the loss is NaN or infinite", watch, tensor));
  return losses;
}

/// The power of two by which the coefficients of a micro-batch are multiplied before they meet
/// float16, whose smallest normal number is 2^-14: the largest coefficient becomes 1 to 2. Other
/// types have the range of float32 and need none. A function of the batch alone, so that all ranks
/// choose the same whoever computes it.
class LossScale {
 public:
  LossScale(const TokenBatch& batch, at::ScalarType dtype) : narrow_(dtype == at::kHalf) {
    if (!narrow_ || batch.weights_N.numel() == 0) return;
    const double largest = batch.weights_N.abs().max().item<double>();
    if (largest > 0) exponent_ = std::max(0, -std::ilogb(largest));
  }
  double factor() const { return std::ldexp(1.0, exponent_); }
  /// A gradient may overflow for no other reason than the scale.
  bool may_overflow() const { return narrow_; }
  /// 256 times less, down to the loss itself; false when that is what it was.
  bool lower() {
    if (exponent_ == 0) return false;
    exponent_ = std::max(0, exponent_ - 8);
    return true;
  }

 private:
  bool narrow_;
  int exponent_ = 0;
};

at::Tensor embed(const CausalLM& model, const at::Tensor& tokens_BT, TensorReducer& tensor) {
  at::Tensor x_BTD = model.embed_partial(tokens_BT);
  all_reduce_sum(x_BTD, tensor);
  return x_BTD;
}

/// The hidden states after the last layer; `partial_of(half, x)` gives this rank's part of a half's
/// output. Collective.
template <class F>
at::Tensor through_layers(const CausalLM& model, const at::Tensor& tokens_BT, TensorReducer& tensor,
                          FiniteWatch& watch, F&& partial_of) {
  using Value = FiniteWatch::Value;
  at::Tensor x_BTD = embed(model, tokens_BT, tensor);
  watch.see(x_BTD, {Value::hidden, -1, TensorRole::embedding});
  for (std::int64_t half = 0; half < 2 * model.layers(); ++half) {
    at::Tensor partial_BTD = partial_of(half, x_BTD);
    poison_at("layer.forward", partial_BTD);
    pulse::beat();
    watch.next_step();
    watch.see(partial_BTD, {Value::output, half});
    all_reduce_sum(partial_BTD, tensor);
    x_BTD = x_BTD + partial_BTD;
    watch.next_step();
    watch.see(x_BTD, {Value::sum, half});
  }
  return x_BTD;
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
            const PackedRows* packed, const BackwardObserver& observer)
      : wants_gate_(observer.wants_gate(half / 2, kind_of(half))),
        wants_output_(observer.wants_output(half / 2, kind_of(half))),
        roles_(observer.wants_weights(half / 2, kind_of(half))),
        weights_(model.layer(half / 2), roles_),
        leaf_BTD_(x_BTD.detach().requires_grad_(true)) {
    const c10::AutoGradMode mode(true);
    out_ = run_half(model, half, leaf_BTD_, packed);
  }

  at::Tensor partial_BTD() const { return out_.partial_BTD.detach(); }

  struct Gradients {
    // What the observer wants, if anything, of a rank's units.
    at::Tensor dx_BTD;  // of this rank's part; zero where it holds no unit; undefined if not needed
    std::optional<HalfGradients> observed;
  };

  /// Gradients of the input, where needed, and of what the observer wants. Once only.
  Gradients backward(const at::Tensor& dy_BTD, bool needs_input) {
    Gradients result;
    const bool has_units = out_.partial_BTD.requires_grad();
    // A rank without units takes part where the gate of all ranks is observed.
    if (wants_output_ || (has_units && (wants_gate_ || !roles_.empty())))
      result.observed.emplace().gate = out_.gate.detach();
    if (!has_units) {
      if (needs_input) result.dx_BTD = at::zeros_like(leaf_BTD_);
      return result;
    }
    const c10::AutoGradMode mode(true);
    std::vector<at::Tensor> inputs;
    if (needs_input) inputs.push_back(leaf_BTD_);
    if (wants_gate_) inputs.push_back(out_.gate);
    inputs.insert(inputs.end(), weights_.weights().begin(), weights_.weights().end());
    if (inputs.empty()) return result;
    std::vector<at::Tensor> gradients = torch::autograd::grad({out_.partial_BTD}, inputs, {dy_BTD});

    std::size_t next = 0;
    if (needs_input) result.dx_BTD = gradients[next++];
    if (!result.observed) return result;
    HalfGradients& observed = *result.observed;
    if (wants_gate_) observed.gate_gradient = gradients[next++];
    for (const TensorRole role : roles_)
      observed.weight_gradients.emplace_back(role, gradients[next++]);
    return result;
  }

 private:
  bool wants_gate_;
  bool wants_output_;
  std::vector<TensorRole> roles_;
  GradientScope weights_;
  at::Tensor leaf_BTD_;
  HalfOutput out_;
};

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
    using Value = FiniteWatch::Value;
    watch_.next_step();
    watch_.see(dx_BTD, {Value::input_gradient, -1});
    for (std::int64_t half = 2 * model_.layers() - 1; half >= lowest_; --half) {
      const bool needs_input = half > lowest_;
      HalfGraph::Gradients gradients = tape_.take(half)->backward(dx_BTD, needs_input);
      see(half, gradients);
      if (observer_.wants_output(half / 2, kind_of(half)))
        add_output(half, dx_BTD, *gradients.observed);
      if (gradients.observed) observe(half, *gradients.observed, scale, unobserved);
      if (!needs_input) break;
      all_reduce_sum(gradients.dx_BTD, tensor_.reducer());
      dx_BTD = dx_BTD + gradients.dx_BTD;
      watch_.next_step();
      watch_.see(dx_BTD, {Value::input_gradient, half});
    }
  }

  /// Collective.
  void add_output(std::int64_t half, const at::Tensor& dy_BTD, HalfGradients& observed) {
    observed.whole_gate = gathered_gate(half, observed.gate);
    observed.output_gradient = dy_BTD;
    observed.real_BT = batch_.real_BT;
    if (!row_weights_B_.defined()) row_weights_B_ = row_weights();
    observed.row_weights_B = row_weights_B_;
  }

  at::Tensor gathered_gate(std::int64_t half, const at::Tensor& gate_BTU) const {
    if (tensor_.size() == 1) return gate_BTU;
    std::int64_t before = 0, all = 0;
    for (std::size_t rank = 0; rank < model_.shards().size(); ++rank) {
      const LayerWidths& widths =
          model_.shards()[rank].widths.layers[static_cast<std::size_t>(half / 2)];
      const auto entries =
          kind_of(half) == UnitKind::mlp
              ? static_cast<std::int64_t>(widths.channels.size())
              : static_cast<std::int64_t>(widths.query_heads.size()) * model_.config().head_dim;
      if (static_cast<int>(rank) < model_.tensor_index()) before += entries;
      all += entries;
    }
    at::Tensor whole_BTU = at::zeros({gate_BTU.size(0), gate_BTU.size(1), all}, gate_BTU.options());
    whole_BTU.narrow(2, before, gate_BTU.size(2)).copy_(gate_BTU);
    all_reduce_sum(whole_BTU, tensor_.reducer());
    return whole_BTU;
  }

  at::Tensor row_weights() const {
    const std::int64_t B = batch_.tokens_BT.size(0), T = batch_.tokens_BT.size(1);
    at::Tensor weights_B = at::zeros({B}, batch_.weights_N.options());
    return weights_B.scatter_reduce(0, batch_.positions_N.floor_divide(T), batch_.weights_N.abs(),
                                    "amax");
  }

  void see(std::int64_t half, HalfGraph::Gradients& gradients) {
    using Value = FiniteWatch::Value;
    watch_.next_step();
    if (gradients.observed) {
      watch_.see(gradients.observed->gate_gradient, {Value::gate_gradient, half});
      for (auto& [role, gradient] : gradients.observed->weight_gradients) {
        poison_at("weight.gradient", gradient);
        watch_.see(gradient, {Value::weight_gradient, half, role});
      }
    }
    poison_at("layer.backward", gradients.dx_BTD);
    pulse::beat();
    watch_.see(gradients.dx_BTD, {Value::input_gradient, half});
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
