#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <nlohmann/json.hpp>

#include "espalier/calib/calibration.h"
#include "espalier/comm/agreement.h"
#include "espalier/comm/process_grid.h"
#include "espalier/config/run_config.h"
#include "espalier/model/causal_lm.h"
#include "espalier/model/load.h"
#include "espalier/prune/score_table.h"
#include "espalier/prune/tensor_catalog.h"

namespace espalier {

/// What became of one matrix.
enum class RefitOutcome {
  /// V0 + D.
  refitted,
  /// The guard kept V0, which is what is left of the dense model's matrix.
  dense,
  /// The guard kept V0, which are the OBS-updated weights.
  obs,
  /// No input is left.
  empty
};
const char* name_of(RefitOutcome outcome);

struct MatrixFacts {
  std::int64_t layer = 0;
  TensorRole role = TensorRole::o;
  RefitOutcome outcome = RefitOutcome::empty;
  /// Kept inputs.
  std::int64_t width = 0;
  /// Tokens / width.
  double tokens_per_width = 0;
  /// The one with the least held-out error, whether or not the guard kept V0.
  double ridge = 0;
  /// relative_error() of V0 and, held out, of V0 + D at that ridge.
  double error_before = 0;
  double error_after = 0;
};

/// A half: of its o_proj or down_proj, and of the projections of its input that were solved before.
struct RefitFacts : MatrixFacts {
  UnitKind kind = UnitKind::attention;
  std::vector<MatrixFacts> projections;
};
/// Of all matrices, in the order in which they were solved.
std::vector<MatrixFacts> each_matrix(const std::vector<RefitFacts>& halves);
/// "down_proj", as its name in a checkpoint has it.
const char* matrix_name(TensorRole role);

nlohmann::ordered_json to_json(const RefitFacts& facts);
/// Throws nlohmann::json::exception for what to_json does not write.
RefitFacts facts_from(const nlohmann::ordered_json& json);

/// One layer: the matrices that differ from the source's, whole, in the stored dtype, on the host,
/// by their names in the checkpoint.
struct RefittedLayer {
  std::int64_t layer = 0;
  /// Attention, MLP.
  std::vector<RefitFacts> facts;
  std::map<std::string, at::Tensor> matrices;
};

/// What is kept of a refit, so that finished layers are not solved again.
struct RefitKeeper {
  /// A finished layer; called by rank 0 alone. Empty = none is kept.
  std::function<std::optional<RefittedLayer>(std::int64_t layer)> recall;
  /// Called by the one rank that solved the layer, before the next begins. May throw.
  std::function<void(const RefittedLayer&)> keep;
  /// Every rank can keep: layers are solved by the ranks in turn. Otherwise rank 0 solves all.
  bool everywhere = true;
};

/// Called on every rank around the work on each layer, from the bottom up. Not collective; may
/// throw. Empty = nothing happens there.
struct RefitSteps {
  /// Afterwards layer l of the pruned model is here, its biases with it.
  std::function<void(std::int64_t layer)> enter;
  /// The layer has its matrices in the model, and is not looked at again.
  std::function<void(const RefittedLayer& layer)> leave;
};

/// What settings.matrices `auto` comes to: all where there are so many real tokens for each hidden
/// input, outputs where there are fewer. Another choice stays.
inline constexpr std::int64_t kTokensForProjections = 64;
RefitMatrices chosen_matrices(RefitMatrices wanted, std::int64_t tokens, std::int64_t hidden);

struct RefitRequest {
  RefitConfig settings;
  /// The model as it was before its units fell.
  WeightSource source;
  /// What is left of it: the widths of the model that is refitted.
  ModelWidths kept;
  RefitKeeper keeper;
  RefitSteps steps{};
};

struct RefitReport {
  std::vector<RefitFacts> facts;
  /// Real tokens that the normal equations were summed over.
  std::int64_t tokens = 0;
  /// Layers that an earlier process had solved.
  std::int64_t recalled = 0;
};

/// Refits every o_proj and down_proj of `model` in closed form, from the bottom up, so that its
/// residual stream follows the dense model's; with chosen_matrices() = all, before each of them the
/// q, k, v, gate and up of its half. Two streams begin at the embedding, x_d of the dense
/// model and x_p of the pruned one. For each half layer, with X the kept inputs of its output
/// matrix computed from x_p, y_d the dense half's output on x_d, and b the pruned half's bias:
///
///   Y = x_d + y_d - x_p - b,   V = V0 + (H + l diag(H))^-1 (C - H V0),   H = X^T W X, C = X^T W Y
///
/// V0 the kept columns of the dense matrix (or, with shrink_to obs, those updated by Optimal Brain
/// Surgeon), W the tokens' weights, l the ridge of least error between two folds of the sequences
/// (refit/solve.h); where that error is not below V0's own, V0 stays. Then x_p += X V + b and
/// x_d += y_d.
///
/// A projection of the half's input is solved by the same V, with X = norm(x_p), Y = norm(x_d) V0
/// and V0 the rows of the dense matrix that are left, transposed: its bias is in both models and
/// falls out. Those of the first half are left as they are: both streams are the embedding there.
///
/// The target is that of asymmetric calibration (GPTAQ, arXiv 2504.02692), the ridge
/// and the guard are this program's.
///
/// A token weighs w_d / (sum of w x sequences of domain d x its sequence's tokens), as in the
/// pooled loss, but every token that is no padding counts, whether or not its prediction does. The
/// folds alternate over what is drawn as a whole: sequences, or items of options.
///
/// H and C are summed in float64, from products in float32 or, under model.dtype float64, float64.
/// Tensor ranks gather X and hold H's rows in shares; then every rank gets H whole, and the ridges
/// are dealt to all ranks. `model` is changed in place: V is rounded to the stored dtype first. Of
/// its layers only the one at hand must be here, its biases with it, from steps.enter to
/// steps.leave. Of the dense model one layer is held at a time, of the data both streams of this
/// rank's micro-batches, on the host.
///
/// Collective over grid.world(). Throws AgreedError: bad_content naming the half where a stream is
/// not finite; what the keeper and the steps throw. Throws stop::Stopped between micro-batches and
/// layers.
RefitReport refit(CausalLM& model, const Calibration& data, const RefitRequest& request,
                  const ProcessGrid& grid, const RoundHooks& hooks);

/// Puts what this rank holds of the layer's matrices, which have the widths `kept`, into the model.
/// Not collective.
void install(CausalLM& model, const RefittedLayer& layer, const ModelWidths& kept);

}  // namespace espalier
