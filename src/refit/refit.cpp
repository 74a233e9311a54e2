#include "espalier/refit/refit.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <utility>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include "espalier/calib/rounds.h"
#include "espalier/core/error.h"
#include "espalier/core/fault.h"
#include "espalier/core/log.h"
#include "espalier/core/pulse.h"
#include "espalier/model/gate.h"
#include "espalier/model/tensor_ops.h"
#include "espalier/prune/tensor_catalog.h"
#include "espalier/prune/unit_tensors.h"
#include "espalier/refit/solve.h"
#include "layer_text.h"
#include "projections.h"
#include "settle.h"
#include "streams.h"

namespace espalier {
namespace {

using refit_detail::FoldTokens;
using refit_detail::MatrixFit;
using refit_detail::settle;
using refit_detail::Streams;

constexpr UnitKind kHalves[] = {UnitKind::attention, UnitKind::mlp};

TensorRole bias_role(UnitKind kind) {
  return kind == UnitKind::attention ? TensorRole::o_bias : TensorRole::down_bias;
}

HalfOutput run_half(const CausalLM& model, std::int64_t layer, UnitKind kind,
                    const at::Tensor& x_BTD) {
  return kind == UnitKind::attention ? model.attention_half(layer, x_BTD)
                                     : model.mlp_half(layer, x_BTD);
}

/// What is summed over the tokens of one half.
struct Sums {
  /// This rank's rows of the kept inputs.
  Range rows;
  Folds folds;
  TargetSums target;
  /// Of the dense stream's inputs, [rows, dense inputs]; undefined unless asked for.
  at::Tensor moments_KA;
};

class Refit {
 public:
  Refit(CausalLM& model, const Calibration& data, const RefitRequest& request,
        const ProcessGrid& grid, const RoundHooks& hooks)
      : model_(model),
        data_(data),
        request_(request),
        grid_(grid),
        hooks_(hooks),
        dense_(unloaded_model(model.config(), request.source.widths, model.options(),
                              grid.tensor_size(), grid.tensor_index())),
        product_(model.options().dtype == at::kDouble ? at::kDouble : at::kFloat) {}

  RefitReport run() {
    const c10::NoGradGuard no_gradient;
    fault::hit("refit.enter");
    embed();
    matrices_ = chosen_matrices(request_.settings.matrices, report_.tokens, model_.config().hidden);
    warn_of_few_tokens();
    for (std::int64_t l = 0; l < model_.layers(); ++l) pass_layer(l);
    fault::hit("refit.exit");
    return std::move(report_);
  }

 private:
  Communicator& world() const { return grid_.world(); }
  TensorReducer& tensor() const { return grid_.tensor().reducer(); }
  at::TensorOptions wide() const {
    return at::TensorOptions(at::kDouble).device(model_.options().device);
  }
  at::Tensor on_device(const at::Tensor& stream) const {
    return stream.to(model_.options().device);
  }

  /// Begins both streams.
  void embed() {
    together(world(), "refit", [&] {
      for (const TensorSpec& spec : tensor_catalog(model_.config()))
        if (spec.role == TensorRole::embedding) load_weight(dense_, request_.source, spec);
    });
    const std::vector<MicroBatch> order = data_.micro_batches();
    count_ = static_cast<std::int64_t>(order.size());
    CalibrationBatch batch;
    Streams streams;
    std::int64_t done = 0;
    deal_rounds(
        grid_, "refit", count_, done,
        [&](std::int64_t j) {
          const MicroBatch& micro_batch = order[static_cast<std::size_t>(j)];
          batch = data_.read(micro_batch, Differentiated::pooled_loss, model_.options().device);
          streams.folds = refit_detail::fold_tokens(data_, micro_batch, batch);
          report_.tokens += batch.real_tokens;
        },
        [&] {
          at::Tensor x_BTD = dense_.embed_partial(batch.batch.tokens_BT);
          all_reduce_sum(x_BTD, tensor());
          tensor().check();
          streams.dense_BTD = streams.pruned_BTD = x_BTD.to(at::kCPU);
          streams_.push_back(streams);
          return Problems();
        },
        hooks_);
    grid_.data().control().all_reduce_sum(std::span<std::int64_t>(&report_.tokens, 1));
    for (const TensorSpec& spec : tensor_catalog(model_.config()))
      if (spec.role == TensorRole::embedding) dense_.tensor(spec) = at::Tensor();
  }

  /// Said before the work that it makes doubtful.
  void warn_of_few_tokens() const {
    constexpr std::int64_t kEnough = 10;
    std::int64_t matrices = 0, few = 0, widest = 0;
    const auto count = [&](std::int64_t width) {
      matrices += width > 0 ? 1 : 0;
      few += report_.tokens < kEnough * width ? 1 : 0;
      widest = std::max(widest, width);
    };
    for (std::int64_t l = 0; l < model_.layers(); ++l)
      for (const UnitKind kind : kHalves) {
        count(gate_place(model_, l, kind).all);
        for (std::size_t i = 0; i < wanted_projections(l, kind).size(); ++i)
          count(model_.config().hidden);
      }
    if (few == 0 || world().rank() != 0) return;
    log::warning(
        "refit    {} of {} matrices have fewer than {} tokens for each input that they keep "
        "({} tokens, up to {} inputs): more rows in refit.sequences or refit.domains would help, "
        "up to 200 tokens for each",
        few, matrices, kEnough, report_.tokens, widest);
  }

  void tell(const RefittedLayer& layer) const {
    if (world().rank() != 0) return;
    for (const MatrixFacts& facts : each_matrix(layer.facts))
      if (facts.outcome != RefitOutcome::empty)
        log::info(
            "refit    layer {} {}: {} inputs, {:.1f} tokens for each, ridge {:g}, held-out error "
            "{:.4f} -> {:.4f}: {}",
            facts.layer, matrix_name(facts.role), facts.width, facts.tokens_per_width, facts.ridge,
            facts.error_before, facts.error_after,
            facts.outcome == RefitOutcome::refitted ? "refitted" : "kept");
  }

  void pass_layer(std::int64_t l) {
    const std::optional<RefittedLayer> before = recalled(l);
    together(world(), "refit", [&] {
      for (const TensorSpec& spec : layer_tensors(model_.config(), static_cast<int>(l)))
        load_weight(dense_, request_.source, spec);
      if (request_.steps.enter) request_.steps.enter(l);
    });
    RefittedLayer layer{l, {}, {}};
    if (before) {
      layer = *before;
      together(world(), "refit", [&] { install(model_, layer, request_.kept); });
      for (const UnitKind kind : kHalves) {
        advance(dense_, l, kind, &Streams::dense_BTD);
        advance(model_, l, kind, &Streams::pruned_BTD);
      }
      ++report_.recalled;
    } else {
      for (const UnitKind kind : kHalves) fit(layer, kind);
      together(world(), "refit", [&] {
        if (world().rank() == solver(l) && request_.keeper.keep) request_.keeper.keep(layer);
      });
      fault::hit("refit.kept");
    }
    tell(layer);
    report_.facts.insert(report_.facts.end(), layer.facts.begin(), layer.facts.end());
    dense_.layer(l) = LayerWeights();
    if (request_.steps.leave) together(world(), "refit", [&] { request_.steps.leave(layer); });
  }

  int solver(std::int64_t layer) const {
    return request_.keeper.everywhere ? static_cast<int>(layer % world().size()) : 0;
  }

  /// What rank 0 has of the layer, on every rank.
  std::optional<RefittedLayer> recalled(std::int64_t l) {
    std::optional<RefittedLayer> layer;
    together(world(), "refit", [&] {
      if (world().rank() == 0 && request_.keeper.recall) layer = request_.keeper.recall(l);
    });
    const std::string text =
        world().broadcast_text(layer ? refit_detail::layer_text(*layer) : std::string(), 0);
    if (text.empty()) return std::nullopt;
    if (!layer) layer = refit_detail::layer_from(text);
    for (auto& [name, matrix] : layer->matrices) broadcast(matrix, 0);
    return layer;
  }

  void broadcast(at::Tensor& host, int root) {
    world().broadcast({host.data_ptr(), host.nbytes(), DType::u8}, root);
  }

  /// A pass over this rank's micro-batches.
  void each_micro_batch(const std::function<Problems(Streams&)>& work) {
    std::int64_t done = 0;
    std::size_t current = 0;
    deal_rounds(
        grid_, "refit", count_, done,
        [&](std::int64_t j) { current = static_cast<std::size_t>(j / grid_.data_size()); },
        [&] {
          pulse::beat();
          return work(streams_[current]);
        },
        hooks_);
  }

  /// One half of one of the models, on its stream.
  void advance(const CausalLM& model, std::int64_t l, UnitKind kind, at::Tensor Streams::*stream) {
    each_micro_batch([&](Streams& streams) {
      step(model, l, kind, streams.*stream);
      return Problems();
    });
  }

  /// Returns the half's gate. Collective over the tensor group.
  at::Tensor step(const CausalLM& model, std::int64_t l, UnitKind kind, at::Tensor& stream) {
    const at::Tensor x_BTD = on_device(stream);
    HalfOutput out = run_half(model, l, kind, x_BTD);
    all_reduce_sum(out.partial_BTD, tensor());
    tensor().check();
    stream = (x_BTD + out.partial_BTD).to(at::kCPU);
    return out.gate;
  }

  /// The inputs of all tensor ranks, [tokens, all]. Collective over the tensor group.
  at::Tensor gathered(const CausalLM& model, std::int64_t l, UnitKind kind,
                      const at::Tensor& gate) {
    return gathered_gate(model, l, kind, gate, tensor()).flatten(0, 1);
  }

  /// Sums, solves and installs the matrices of one half, and moves both streams past it.
  void fit(RefittedLayer& layer, UnitKind kind) {
    const std::int64_t l = layer.layer;
    RefitFacts facts;
    facts.kind = kind;
    identify(facts, l, unit_reader(model_.config(), kind, static_cast<int>(l)).role,
             gate_place(model_, l, kind).all);
    if (facts.width == 0) {
      advance(dense_, l, kind, &Streams::dense_BTD);
    } else {
      fit_projections(layer, facts);
      Sums sums = sum_up(l, kind);
      reduce(sums, l, kind);
      solve(layer, facts, sums);
      together(world(), "refit", [&] { install(model_, layer, request_.kept); });
    }
    layer.facts.push_back(facts);
    advance(model_, l, kind, &Streams::pruned_BTD);
  }

  void identify(MatrixFacts& facts, std::int64_t l, TensorRole role, std::int64_t width) const {
    facts.layer = l;
    facts.role = role;
    facts.width = width;
    facts.tokens_per_width =
        width == 0 ? 0 : static_cast<double>(report_.tokens) / static_cast<double>(width);
  }

  // ---- projections of a half's input ------------------------------------------------------------

  std::vector<TensorSpec> wanted_projections(std::int64_t l, UnitKind kind) const {
    if (matrices_ == RefitMatrices::outputs) return {};
    return refitted_projections(model_.config(), request_.kept, static_cast<std::size_t>(l), kind);
  }

  void fit_projections(RefittedLayer& layer, RefitFacts& facts) {
    const std::vector<TensorSpec> specs = wanted_projections(layer.layer, facts.kind);
    if (specs.empty()) return;
    InputSums sums = sum_inputs(layer.layer, facts.kind);
    reduce(sums, not_finite(specs.front(), facts.kind));
    for (const TensorSpec& spec : specs) solve(layer, facts.projections.emplace_back(), spec, sums);
    together(world(), "refit", [&] { install(model_, layer, request_.kept); });
  }

  Range input_rows() const {
    return even_cut(model_.config().hidden, grid_.tensor_size(), grid_.tensor_index());
  }

  InputSums sum_inputs(std::int64_t l, UnitKind kind) {
    const std::int64_t D = model_.config().hidden;
    const Range rows = input_rows();
    const auto zeros = [&] { return at::zeros({rows.size(), D}, wide()); };
    InputSums sums;
    for (NormalEquations& fold : sums.folds) fold = {zeros(), zeros()};
    sums.difference_KK = zeros();
    sums.dense_K = at::zeros({D}, wide());
    each_micro_batch([&](Streams& streams) {
      const at::Tensor x_NK = input(model_, l, kind, streams.pruned_BTD);
      const at::Tensor e_NK = input(dense_, l, kind, streams.dense_BTD) - x_NK;
      for (std::size_t f = 0; f < streams.folds.size(); ++f) {
        const FoldTokens& tokens = streams.folds[f];
        if (tokens.places_N.numel() == 0) continue;
        add_inputs(sums, f, rows, x_NK.index_select(0, tokens.places_N),
                   e_NK.index_select(0, tokens.places_N),
                   tokens.weights_N.unsqueeze(1).to(product_));
      }
      return Problems();
    });
    return sums;
  }

  /// What the projections of a half read, [tokens, D].
  at::Tensor input(const CausalLM& model, std::int64_t l, UnitKind kind,
                   const at::Tensor& stream) const {
    return model.half_input(l, kind, on_device(stream)).to(product_).flatten(0, 1);
  }

  /// Collective.
  void reduce(InputSums& sums, const Problem& otherwise) {
    add_up({&sums.dense_K}, sums.weight);
    whole({&sums.folds[0].h_KK, &sums.folds[0].c_KD, &sums.folds[1].h_KK, &sums.folds[1].c_KD,
           &sums.difference_KK},
          input_rows(), model_.config().hidden, otherwise);
  }

  /// Adds a projection's new matrix, if it gets one, to the layer. Collective.
  void solve(RefittedLayer& layer, MatrixFacts& facts, const TensorSpec& spec,
             const InputSums& sums) {
    fault::hit("refit.solve");
    identify(facts, layer.layer, spec.role, model_.config().hidden);
    MatrixFit fit{.name = spec.name, .stored = stored_type(spec), .folds = sums.folds};
    fit.v0_KD = from_solver(layer.layer, {sums.dense_K.size(0), shape_of(spec)[0]}, [&] {
      return transposed(read_weight(model_.config(), request_.source, spec, request_.kept));
    });
    together(world(), "refit", [&] {
      fit.target = target_of(sums, fit.v0_KD);
      fit.q_KD = residuals(sums, fit.v0_KD);
      facts.error_before = relative_error(sums, fit.target, fit.v0_KD);
    });
    take_over(layer, spec, settle(world(), solver(layer.layer), request_.settings, fit, facts));
  }

  // ---- output matrices --------------------------------------------------------------------------

  bool wants_moments() const { return request_.settings.shrink_to == ShrinkTo::obs; }

  Sums zero_sums(std::int64_t l, UnitKind kind) {
    const std::int64_t all = gate_place(model_, l, kind).all;
    Sums sums;
    sums.rows = even_cut(all, grid_.tensor_size(), grid_.tensor_index());
    const std::int64_t D = model_.config().hidden;
    for (NormalEquations& fold : sums.folds)
      fold = {at::zeros({sums.rows.size(), all}, wide()), at::zeros({sums.rows.size(), D}, wide())};
    sums.target = {at::zeros({D}, wide()), at::zeros({D}, wide()), 0};
    if (wants_moments())
      sums.moments_KA = at::zeros({sums.rows.size(), gate_place(dense_, l, kind).all}, wide());
    return sums;
  }

  /// Moves the dense stream past the half, and sums what its kept inputs and targets come to.
  Sums sum_up(std::int64_t l, UnitKind kind) {
    Sums sums = zero_sums(l, kind);
    const at::Tensor bias_D = model_.layer(l).by_role(bias_role(kind));
    const at::Tensor kept_K = wants_moments() ? kept_places(l, kind) : at::Tensor();
    each_micro_batch([&](Streams& streams) {
      const at::Tensor dense_gate = step(dense_, l, kind, streams.dense_BTD);
      const at::Tensor x_BTD = on_device(streams.pruned_BTD);
      const at::Tensor x_NK = gathered(model_, l, kind, run_half(model_, l, kind, x_BTD).gate);
      at::Tensor y_NK = (on_device(streams.dense_BTD).to(product_) - x_BTD.to(product_))
                            .reshape({-1, model_.config().hidden});
      if (bias_D.defined()) y_NK -= bias_D.to(product_);
      at::Tensor moments_NA;
      if (wants_moments()) moments_NA = gathered(dense_, l, kind, dense_gate);
      for (std::size_t f = 0; f < sums.folds.size(); ++f)
        add(sums, f, streams.folds[f], x_NK, y_NK, moments_NA, kept_K);
      return Problems();
    });
    return sums;
  }

  void add(Sums& sums, std::size_t f, const FoldTokens& tokens, const at::Tensor& x_NK,
           const at::Tensor& y_ND, const at::Tensor& moments_NA, const at::Tensor& kept_K) {
    if (tokens.places_N.numel() == 0) return;
    const at::Tensor w_N1 = tokens.weights_N.unsqueeze(1);
    const at::Tensor x = x_NK.index_select(0, tokens.places_N).to(product_);
    const at::Tensor y = y_ND.index_select(0, tokens.places_N);
    add_tokens(sums.folds[f], sums.rows, x, y, w_N1.to(product_));
    const at::Tensor y_wide = y.to(at::kDouble);
    sums.target.y_D += (w_N1 * y_wide).sum(0);
    sums.target.square_D += (w_N1 * y_wide * y_wide).sum(0);
    sums.target.weight += tokens.weights_N.sum().item<double>();
    if (!moments_NA.defined()) return;
    const at::Tensor a = moments_NA.index_select(0, tokens.places_N).to(product_);
    const at::Tensor kept_NK =
        a.index_select(1, kept_K.narrow(0, sums.rows.begin, sums.rows.size()));
    sums.moments_KA += at::matmul((kept_NK * w_N1.to(product_)).t(), a);
  }

  /// The places of the kept inputs among the dense half's.
  at::Tensor kept_places(std::int64_t l, UnitKind kind) const {
    const Range vocabulary{0, model_.config().vocabulary};
    const TensorSpec spec = unit_reader(model_.config(), kind, static_cast<int>(l));
    const TensorSlice slice = slice_of(spec, model_.config(), request_.source.widths, vocabulary,
                                       request_.kept, vocabulary);
    return at::tensor(slice.columns.indices(), at::kLong).to(model_.options().device);
  }

  /// Collective.
  void reduce(Sums& sums, std::int64_t l, UnitKind kind) {
    add_up({&sums.target.y_D, &sums.target.square_D}, sums.target.weight);
    std::vector<at::Tensor*> rows{&sums.folds[0].h_KK, &sums.folds[0].c_KD, &sums.folds[1].h_KK,
                                  &sums.folds[1].c_KD};
    if (wants_moments()) rows.push_back(&sums.moments_KA);
    const Problem otherwise =
        not_finite(unit_reader(model_.config(), kind, static_cast<int>(l)), kind);
    Problems problems;
    if (!all_finite(sums.target.square_D)) problems.add(otherwise);
    agree(world(), "refit", problems);
    whole(rows, sums.rows, gate_place(model_, l, kind).all, otherwise);
  }

  /// Sums of which every tensor rank has all, over data ranks. Collective.
  void add_up(const std::vector<at::Tensor*>& sums, double& weight) {
    TensorReducer& data = grid_.data().reducer();
    for (at::Tensor* sum : sums) all_reduce_sum(*sum, data);
    data.check();
    grid_.data().control().all_reduce_sum(std::span<double>(&weight, 1));
  }

  /// This tensor rank's rows of sums, over data ranks and then whole. Collective.
  void whole(const std::vector<at::Tensor*>& parts, const Range& rows, std::int64_t all,
             const Problem& otherwise) {
    TensorReducer& data = grid_.data().reducer();
    for (at::Tensor* part : parts) all_reduce_sum(*part, data);
    data.check();
    Problems problems;
    for (const at::Tensor* part : parts)
      if (problems.empty() && !all_finite(*part)) problems.add(otherwise);
    agree(world(), "refit", problems);
    for (at::Tensor* part : parts) *part = espalier::gathered(*part, 0, rows, all, tensor());
    tensor().check();
  }

  /// `matrix`: the first of those that are solved from the sums.
  static Problem not_finite(const TensorSpec& matrix, UnitKind kind) {
    return {ExitCode::bad_content, "the sums of the refit are NaN or infinite",
            fmt::format("inputs or targets of tensor '{}' are not finite", matrix.name),
            "Use a wider model.dtype (float16 overflows easily), or look at the weights of that "
            "layer and at the refit's data.",
            fmt::format("{} of layer {}", name_of(kind), matrix.layer)};
  }

  DType stored_type(const TensorSpec& spec) const {
    return request_.source.reader->find(spec.name)->dtype;
  }
  /// What is left of it, whole.
  std::vector<std::int64_t> shape_of(const TensorSpec& spec) const {
    return shape_with(spec, model_.config(), request_.kept);
  }
  at::Tensor transposed(const at::Tensor& w) const { return on_device(w).to(at::kDouble).t(); }

  /// What the rank that solves the layer makes, [sizes] in float64, on every rank. Collective.
  at::Tensor from_solver(std::int64_t l, at::IntArrayRef sizes,
                         const std::function<at::Tensor()>& make) {
    at::Tensor values = at::empty(sizes, at::kDouble);
    together(world(), "refit", [&] {
      if (world().rank() == solver(l)) values.copy_(make());
    });
    world().broadcast({values.data_ptr(), static_cast<std::size_t>(values.numel()), DType::f64},
                      solver(l));
    return on_device(values);
  }

  /// The output matrix to start from, [K, D].
  at::Tensor starting_weights(std::int64_t l, UnitKind kind, const TensorSpec& spec,
                              const Sums& sums) const {
    if (!wants_moments())
      return transposed(read_weight(model_.config(), request_.source, spec, request_.kept));
    return obs_weights(
        sums.moments_KA, kept_places(l, kind),
        transposed(read_weight(model_.config(), request_.source, spec, request_.source.widths)));
  }

  /// Adds the half's new output matrix, if it gets one, to the layer. Collective.
  void solve(RefittedLayer& layer, RefitFacts& facts, const Sums& sums) {
    fault::hit("refit.solve");
    const std::int64_t l = layer.layer;
    const TensorSpec spec = unit_reader(model_.config(), facts.kind, static_cast<int>(l));
    MatrixFit fit{.name = spec.name,
                  .stored = stored_type(spec),
                  .folds = sums.folds,
                  .target = sums.target,
                  .updated = wants_moments()};
    fit.v0_KD = from_solver(l, {facts.width, model_.config().hidden},
                            [&] { return starting_weights(l, facts.kind, spec, sums); });
    together(world(), "refit", [&] {
      fit.q_KD = residuals(sums.folds, fit.v0_KD);
      facts.error_before = relative_error(sums.folds, sums.target, fit.v0_KD);
    });
    take_over(layer, spec, settle(world(), solver(l), request_.settings, fit, facts));
  }

  static void take_over(RefittedLayer& layer, const TensorSpec& spec,
                        const std::optional<at::Tensor>& matrix) {
    if (matrix) layer.matrices.insert_or_assign(spec.name, *matrix);
  }

  CausalLM& model_;
  const Calibration& data_;
  const RefitRequest& request_;
  const ProcessGrid& grid_;
  const RoundHooks& hooks_;
  CausalLM dense_;  // one layer at a time
  at::ScalarType product_;
  std::int64_t count_ = 0;
  std::vector<Streams> streams_;
  RefitReport report_;
  RefitMatrices matrices_ = RefitMatrices::outputs;
};

}  // namespace

const char* name_of(RefitOutcome outcome) {
  switch (outcome) {
    case RefitOutcome::refitted:
      return "refitted";
    case RefitOutcome::dense:
      return "dense";
    case RefitOutcome::obs:
      return "obs";
    case RefitOutcome::empty:
      break;
  }
  return "empty";
}

const char* matrix_name(TensorRole role) {
  switch (role) {
    case TensorRole::q:
      return "q_proj";
    case TensorRole::k:
      return "k_proj";
    case TensorRole::v:
      return "v_proj";
    case TensorRole::o:
      return "o_proj";
    case TensorRole::gate:
      return "gate_proj";
    case TensorRole::up:
      return "up_proj";
    case TensorRole::down:
      return "down_proj";
    default:
      break;
  }
  throw Error(ExitCode::internal, "a refit of a tensor that is no linear map");
}

RefitMatrices chosen_matrices(RefitMatrices wanted, std::int64_t tokens, std::int64_t hidden) {
  if (wanted != RefitMatrices::automatic) return wanted;
  return tokens >= kTokensForProjections * hidden ? RefitMatrices::all : RefitMatrices::outputs;
}

std::vector<MatrixFacts> each_matrix(const std::vector<RefitFacts>& halves) {
  std::vector<MatrixFacts> all;
  for (const RefitFacts& half : halves) {
    all.insert(all.end(), half.projections.begin(), half.projections.end());
    all.push_back(half);
  }
  return all;
}

RefitReport refit(CausalLM& model, const Calibration& data, const RefitRequest& request,
                  const ProcessGrid& grid, const RoundHooks& hooks) {
  return Refit(model, data, request, grid, hooks).run();
}

void install(CausalLM& model, const RefittedLayer& layer, const ModelWidths& kept) {
  const Range vocabulary{0, model.config().vocabulary};
  for (const TensorSpec& spec : layer_tensors(model.config(), static_cast<int>(layer.layer))) {
    const auto found = layer.matrices.find(spec.name);
    if (found == layer.matrices.end()) continue;
    const std::vector<std::int64_t> wanted = shape_with(spec, model.config(), kept);
    ESPALIER_CHECK(found->second.sizes() == at::IntArrayRef(wanted),
                   fmt::format("a refitted {} of {} x {} for a model of {} x {}", spec.name,
                               found->second.size(0), found->second.size(1), wanted[0], wanted[1]));
    const TensorSlice mine = slice_of(spec, model.config(), kept, vocabulary, model.shard().widths,
                                      model.shard().vocabulary);
    model.tensor(spec) = take(take(found->second, 0, mine.rows), 1, mine.columns)
                             .contiguous()
                             .to(model.options().device, model.options().dtype);
  }
}

}  // namespace espalier
