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
#include "espalier/prune/unit_tensors.h"
#include "espalier/refit/solve.h"
#include "layer_text.h"
#include "streams.h"

namespace espalier {
namespace {

using refit_detail::FoldTokens;
using refit_detail::Streams;

constexpr UnitKind kHalves[] = {UnitKind::attention, UnitKind::mlp};

TensorRole reader_role(UnitKind kind) {
  return kind == UnitKind::attention ? TensorRole::o : TensorRole::down;
}
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
    std::int64_t halves = 0, few = 0, widest = 0;
    for (std::int64_t l = 0; l < model_.layers(); ++l)
      for (const UnitKind kind : kHalves) {
        const std::int64_t width = gate_place(model_, l, kind).all;
        halves += width > 0 ? 1 : 0;
        few += report_.tokens < kEnough * width ? 1 : 0;
        widest = std::max(widest, width);
      }
    if (few == 0 || world().rank() != 0) return;
    log::warning(
        "refit    {} of {} matrices have fewer than {} tokens for each input that they keep "
        "({} tokens, up to {} inputs): more rows in refit.sequences or refit.domains would help, "
        "up to 200 tokens for each",
        few, halves, kEnough, report_.tokens, widest);
  }

  void tell(const RefittedLayer& layer) const {
    if (world().rank() != 0) return;
    for (const RefitFacts& facts : layer.facts)
      if (facts.outcome != RefitOutcome::empty)
        log::info(
            "refit    layer {} {}: {} inputs, {:.1f} tokens for each, ridge {:g}, held-out error "
            "{:.4f} -> {:.4f}: {}",
            facts.layer, name_of(facts.kind), facts.width, facts.tokens_per_width, facts.ridge,
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
      together(world(), "refit", [&] { install(model_, layer); });
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

  /// Sums, solves and installs one half, and moves both streams past it.
  void fit(RefittedLayer& layer, UnitKind kind) {
    const std::int64_t l = layer.layer;
    RefitFacts facts;
    facts.layer = l;
    facts.kind = kind;
    facts.width = gate_place(model_, l, kind).all;
    if (facts.width == 0) {
      advance(dense_, l, kind, &Streams::dense_BTD);
    } else {
      facts.tokens_per_width =
          static_cast<double>(report_.tokens) / static_cast<double>(facts.width);
      Sums sums = sum_up(l, kind);
      reduce(sums, l, kind);
      solve(layer, facts, sums);
      together(world(), "refit", [&] { install(model_, layer); });
    }
    layer.facts.push_back(facts);
    advance(model_, l, kind, &Streams::pruned_BTD);
  }

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

  /// Over data ranks, and whole on every tensor rank. Collective.
  void reduce(Sums& sums, std::int64_t l, UnitKind kind) {
    std::vector<at::Tensor*> rows{&sums.folds[0].h_KK, &sums.folds[0].c_KD, &sums.folds[1].h_KK,
                                  &sums.folds[1].c_KD};
    if (wants_moments()) rows.push_back(&sums.moments_KA);
    TensorReducer& data = grid_.data().reducer();
    for (at::Tensor* part : rows) all_reduce_sum(*part, data);
    all_reduce_sum(sums.target.y_D, data);
    all_reduce_sum(sums.target.square_D, data);
    data.check();
    grid_.data().control().all_reduce_sum(std::span<double>(&sums.target.weight, 1));
    Problems problems;
    for (const at::Tensor* part : rows)
      if (problems.empty() && !all_finite(*part)) problems.add(not_finite(l, kind));
    if (problems.empty() && !all_finite(sums.target.square_D)) problems.add(not_finite(l, kind));
    agree(world(), "refit", problems);
    const std::int64_t all = gate_place(model_, l, kind).all;
    for (at::Tensor* part : rows) *part = espalier::gathered(*part, 0, sums.rows, all, tensor());
    tensor().check();
  }

  Problem not_finite(std::int64_t l, UnitKind kind) const {
    return {ExitCode::bad_content, "the sums of the refit are NaN or infinite",
            fmt::format("inputs or targets of tensor '{}' are not finite",
                        unit_reader(model_.config(), kind, static_cast<int>(l)).name),
            "Use a wider model.dtype (float16 overflows easily), or look at the weights of that "
            "layer and at the refit's data.",
            fmt::format("{} of layer {}", name_of(kind), l)};
  }

  /// The matrix to start from, [K, D], from the rank that solves the layer. Collective.
  at::Tensor starting_weights(std::int64_t l, UnitKind kind, const Sums& sums) {
    const std::int64_t D = model_.config().hidden;
    at::Tensor v0_KD = at::empty({sums.folds[0].h_KK.size(0), D}, at::kDouble);
    together(world(), "refit", [&] {
      if (world().rank() != solver(l)) return;
      const TensorSpec spec = unit_reader(model_.config(), kind, static_cast<int>(l));
      const ModelWidths& widths = wants_moments() ? request_.source.widths : request_.kept;
      const at::Tensor w_DA = read_weight(model_.config(), request_.source, spec, widths);
      at::Tensor w_AD = on_device(w_DA).to(at::kDouble).t();
      if (wants_moments()) w_AD = obs_weights(sums.moments_KA, kept_places(l, kind), w_AD);
      v0_KD.copy_(w_AD);
    });
    world().broadcast({v0_KD.data_ptr(), static_cast<std::size_t>(v0_KD.numel()), DType::f64},
                      solver(l));
    return on_device(v0_KD);
  }

  /// The ridge of least held-out error; every rank tries its share of them. Collective.
  std::pair<double, double> best_ridge(const Folds& folds, const std::array<at::Tensor, 2>& q_KD,
                                       const TargetSums& target) {
    const std::vector<double> ridges = request_.settings.ridge
                                           ? std::vector<double>{*request_.settings.ridge}
                                           : ridge_candidates();
    std::vector<double> changes(ridges.size(), 0.0);
    together(world(), "refit", [&] {
      for (std::size_t i = 0; i < ridges.size(); ++i) {
        if (static_cast<int>(i % static_cast<std::size_t>(world().size())) != world().rank())
          continue;
        changes[i] = held_out_change(folds, q_KD, target, ridges[i]);
        pulse::beat();
      }
    });
    world().all_reduce_sum(std::span<double>(changes));
    const auto best = std::min_element(changes.begin(), changes.end());
    return {ridges[static_cast<std::size_t>(best - changes.begin())], *best};
  }

  /// Adds the half's new matrix, if it gets one, to the layer. Collective.
  void solve(RefittedLayer& layer, RefitFacts& facts, Sums& sums) {
    fault::hit("refit.solve");
    const TensorSpec spec = unit_reader(model_.config(), facts.kind, static_cast<int>(layer.layer));
    at::Tensor v_KD = starting_weights(layer.layer, facts.kind, sums);
    std::array<at::Tensor, 2> q_KD;
    together(world(), "refit", [&] {
      q_KD = residuals(sums.folds, v_KD);
      facts.error_before = relative_error(sums.folds, sums.target, v_KD);
    });
    double change = 0;
    std::tie(facts.ridge, change) = best_ridge(sums.folds, q_KD, sums.target);
    facts.error_after = facts.error_before + change;
    const DType stored = request_.source.reader->find(spec.name)->dtype;
    at::Tensor w_DK = at::empty({v_KD.size(1), v_KD.size(0)}, to_scalar_type(stored));
    auto outcome = static_cast<std::int64_t>(RefitOutcome::dense);
    together(world(), "refit", [&] {
      if (world().rank() != solver(layer.layer)) return;
      const auto take = [&](RefitOutcome what, const at::Tensor& taken_KD) {
        if (rounds_to(w_DK, taken_KD, spec.name)) outcome = static_cast<std::int64_t>(what);
      };
      if (wants_moments()) take(RefitOutcome::obs, v_KD);
      if (!(change < 0)) return;
      const NormalEquations both{sums.folds[0].h_KK + sums.folds[1].h_KK, at::Tensor()};
      if (const auto d_KD = ridge_solution(both, q_KD[0] + q_KD[1], facts.ridge))
        take(RefitOutcome::refitted, v_KD + *d_KD);
    });
    world().broadcast({&outcome, 1, DType::i64}, solver(layer.layer));
    facts.outcome = static_cast<RefitOutcome>(outcome);
    if (facts.outcome == RefitOutcome::dense) return;
    broadcast(w_DK, solver(layer.layer));
    layer.matrices.insert_or_assign(spec.name, w_DK);
  }

  /// Rounds to the stored dtype; false where that does not hold the numbers.
  static bool rounds_to(at::Tensor& w_DK, const at::Tensor& v_KD, const std::string& name) {
    const at::Tensor rounded_DK = v_KD.t().to(at::kCPU).contiguous().to(w_DK.scalar_type());
    if (!all_finite(rounded_DK)) {
      log::warning("{} is not refitted: its new values leave the range of the stored dtype", name);
      return false;
    }
    w_DK.copy_(rounded_DK);
    return true;
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

RefitReport refit(CausalLM& model, const Calibration& data, const RefitRequest& request,
                  const ProcessGrid& grid, const RoundHooks& hooks) {
  return Refit(model, data, request, grid, hooks).run();
}

void install(CausalLM& model, const RefittedLayer& layer) {
  for (const UnitKind kind : kHalves) {
    const TensorSpec spec = unit_reader(model.config(), kind, static_cast<int>(layer.layer));
    const auto found = layer.matrices.find(spec.name);
    if (found == layer.matrices.end()) continue;
    const GatePlace place = gate_place(model, layer.layer, kind);
    ESPALIER_CHECK(found->second.size(1) == place.all,
                   fmt::format("a refitted {} of {} inputs for a model of {}", spec.name,
                               found->second.size(1), place.all));
    model.layer(layer.layer).by_role(reader_role(kind)) =
        found->second.narrow(1, place.mine.begin, place.mine.size())
            .contiguous()
            .to(model.options().device, model.options().dtype);
  }
}

}  // namespace espalier
