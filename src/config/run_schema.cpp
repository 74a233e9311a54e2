#include "run_schema.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "row_builders.h"

namespace espalier::config_detail {
namespace {

constexpr std::int64_t kMaxIterations = 100000;
constexpr std::int64_t kMaxRanks = 1 << 20;
constexpr std::size_t kNameBytes = 64;
constexpr std::int64_t kMostNewTokens = 1 << 20;
constexpr double kMaxRate = 50.0;  // e^50 still leaves every step of a schedule representable

bool is_at_least_one(double x) { return x >= 1.0; }
bool is_weight(double x) { return x >= 0.0; }
bool is_damping(double x) { return x > 0.0 && x <= 1.0; }
bool is_ridge(double x) { return x > 0.0; }
bool is_share(double x) { return x > 0.0 && x < 1.0; }
bool is_rate(double x) { return x != 0.0 && std::abs(x) <= kMaxRate; }

Rows<DomainConfig> domain_rows() {
  using D = DomainConfig;
  return {
      required(text_row<D>(
                   "name", [](auto& d) -> auto& { return d.name; }, kNameBytes,
                   "How the domain is called in logs, metrics and reports."),
               "web"),
      required(path_row<D>(
                   "tokens", [](auto& d) -> auto& { return d.tokens; }, true,
                   "HDF5 token file, written by launch/tokenize.py. Its row length is the sequence "
                   "length."),
               "data/web.h5"),
      integer_or_word_row<D>(
          "sequences", [](auto& d) -> auto& { return d.sequences; }, "all", {.min = 1},
          "Rows used, drawn without replacement by (seed, domain name)."),
      number_row<D>(
          "weight", [](auto& d) -> auto& { return d.weight; }, is_weight,
          "a number of at least 0 is needed",
          "Weight w of the domain. Its number of sequences does not weigh."),
      choice_row<D, Objective>(
          "objective", [](auto& d) -> auto& { return d.objective; }, objective_names(),
          "causal_lm: cross-entropy of every next token; sft: of the answer's tokens only (the "
          "file's loss mask); margin: that of right options minus that of wrong ones (a file of "
          "options; sequences counts items)."),
  };
}

/// Of an evaluation that is a name and a file.
Rows<NamedTokens> evaluation_rows(const char* file, const char* example) {
  using N = NamedTokens;
  return {
      required(text_row<N>(
                   "name", [](auto& n) -> auto& { return n.name; }, kNameBytes,
                   "How the evaluation is called in logs, metrics and reports."),
               example),
      required(path_row<N>(
                   "tokens", [](auto& n) -> auto& { return n.tokens; }, true, file),
               fmt::format("data/{}.h5", example)),
  };
}

Rows<ExactMatchConfig> exact_match_rows() {
  using E = ExactMatchConfig;
  return {
      required(text_row<E>(
                   "name", [](auto& e) -> auto& { return e.name; }, kNameBytes,
                   "How the evaluation is called in logs, metrics and reports."),
               "gsm8k"),
      required(path_row<E>(
                   "tokens", [](auto& e) -> auto& { return e.tokens; }, true,
                   "HDF5 token file of prompts with answers and the tokenizer's pieces."),
               "data/gsm8k.h5"),
      integer_row<E>(
          "max_new_tokens", [](auto& e) -> auto& { return e.max_new_tokens; },
          {.min = 1, .max = kMostNewTokens},
          "Tokens generated for an answer at most, unless a stop text or an end token comes "
          "first."),
  };
}

Rows<ExportConfig> export_rows() {
  using X = ExportConfig;
  return {
      required(choice_row<X, ExportFormat>(
                   "format", [](auto& x) -> auto& { return x.format; },
                   {{"exact", ExportFormat::exact}, {"uniform", ExportFormat::uniform}},
                   "exact: the true widths of every layer, loads with trust_remote_code; uniform: "
                   "a plain "
                   "checkpoint, where all layers have the same widths."),
               "exact"),
      required(path_row<X>(
                   "path", [](auto& x) -> auto& { return x.path; }, false,
                   "Directory to write, relative to the run directory. It must not exist."),
               "export/exact"),
      trivial_row<X>("schema", {"own"}),
  };
}

Row<RunConfig> kinds_row() {
  Row<RunConfig> row;
  row.key = "prune.kinds";
  row.type = "list of strings";
  row.values = {"attention", "mlp"};
  row.meaning = "What may be removed. Only the listed kinds count in ratios.";
  row.parse = [values = row.values](Walk& walk, const YamlNode& node, const std::string& at,
                                    RunConfig& out) {
    if (node.kind != YamlNode::Kind::list || node.items.empty())
      return walk.wrong(
          node, at, fmt::format("a list of one or more of {} is needed", fmt::join(values, ", ")));
    bool seen[2] = {false, false};
    for (std::size_t i = 0; i < node.items.size(); ++i) {
      const std::string place = fmt::format("{}[{}]", at, i);
      const auto index = read_choice(walk, node.items[i], place, values);
      if (index && seen[*index]) walk.wrong(node.items[i], place, "it is in the list already");
      if (index) seen[*index] = true;
    }
    out.prune.attention = seen[0];
    out.prune.mlp = seen[1];
  };
  row.print = [](const RunConfig& c) -> std::optional<std::string> {
    if (c.prune.attention && c.prune.mlp) return "[attention, mlp]";
    return c.prune.attention ? "[attention]" : "[mlp]";
  };
  return row;
}

using C = RunConfig;

Rows<C> machine_rows() {
  return {
      required(
          path_row<C>(
              "model.path", [](auto& c) -> auto& { return c.model_path; }, true,
              "Hugging Face model directory: config.json and safetensors of Llama 2/3, Mistral, "
              "Qwen2/2.5 or Qwen3, or an exact export of espalier."),
          "models/my-model"),
      choice_row<C, std::optional<DType>>(
          "model.dtype", [](auto& c) -> auto& { return c.dtype; },
          {{"as_stored", std::nullopt},
           {"float64", DType::f64},
           {"float32", DType::f32},
           {"bfloat16", DType::bf16},
           {"float16", DType::f16}},
          "Dtype of the weights while scoring. Exports keep the stored dtype. "
          "float64 is for checking."),
      free_at_resume(choice_row<C, DeviceChoice>(
          "device", [](auto& c) -> auto& { return c.device; },
          {{"auto", DeviceChoice::automatic},
           {"cpu", DeviceChoice::cpu},
           {"cuda", DeviceChoice::cuda}},
          "auto: cuda where a GPU is usable, else cpu.")),
      free_at_resume(integer_row<C>(
          "parallel.tensor", [](auto& c) -> auto& { return c.tensor; },
          {.min = 1, .max = kMaxRanks},
          "Ranks that share one copy of the model. The number of ranks must be a "
          "multiple; data ranks = ranks / tensor.")),
      free_at_resume(number_row<C>(
          "parallel.rebalance", [](auto& c) -> auto& { return c.rebalance; }, is_at_least_one,
          "a number of at least 1 is needed",
          "Shards are cut anew when the widest rank is this many times the mean.")),
  };
}

Rows<C> calibration_rows() {
  return {
      required(list_row<C, DomainConfig>(
                   "calibration.domains", [](auto& c) -> auto& { return c.calibration.domains; },
                   domain_rows(),
                   "What the scores are measured on: one or more domains "
                   "(arXiv 2601.02674)."),
               "[{name: web, tokens: data/web.h5}]"),
      choice_row<C, Combine>(
          "calibration.combine", [](auto& c) -> auto& { return c.calibration.combine; },
          {{"pooled", Combine::pooled},
           {"weighted_mean", Combine::weighted_mean},
           {"max", Combine::max},
           {"rank_mean", Combine::rank_mean},
           {"worst_domain", Combine::worst_domain}},
          "pooled: scores of the weighted mean of the domains' losses, or of all their tokens. The "
          "others score every domain and combine the normalised scores: weighted_mean; max: the "
          "highest; rank_mean: the weighted mean of a unit's ranks; worst_domain: the highest "
          "relative to the domain's mean."),
      boolean_row<C>(
          "calibration.resample", [](auto& c) -> auto& { return c.calibration.resample; },
          "true: every iteration draws other sequences, none again before its file is used up."),
      choice_row<C, Adapt>(
          "calibration.adapt", [](auto& c) -> auto& { return c.calibration.adapt; },
          {{"none", Adapt::none}, {"loss_gap", Adapt::loss_gap}},
          "loss_gap: a domain's weight is multiplied by the factor by which its perplexity has "
          "risen since the first iteration, at least 1."),
      free_at_resume(integers_row<C>(
          "calibration.overlap", [](auto& c) -> auto& { return c.calibration.overlap; },
          {.min = 1, .max = kMaxIterations},
          "Iterations in which overlap.json records how much of what the domains alone would "
          "remove is the same. With criterion taylor and combine pooled each costs one more "
          "pass.")),
      free_at_resume(integer_row<C>(
          "calibration.micro_batch_tokens",
          [](auto& c) -> auto& { return c.calibration.micro_batch_tokens; }, {.min = 1},
          "Tokens per data rank and micro-batch, in whole sequences and at least "
          "one: bounds the memory of activations.")),
      choice_row<C, NonFinite>(
          "calibration.non_finite", [](auto& c) -> auto& { return c.calibration.non_finite; },
          {{"fail", NonFinite::fail}, {"skip-batch", NonFinite::skip_batch}},
          "When a loss or a gradient is NaN or infinite. fail: the run ends (exit 65). skip-batch: "
          "the iteration is done as if the micro-batch's sequences had not been drawn; they are "
          "named in the log and in metrics.jsonl."),
      integer_row<C>(
          "calibration.max_skipped", [](auto& c) -> auto& { return c.calibration.max_skipped; },
          {.min = 1},
          "With skip-batch: micro-batches of one iteration; more end the run (exit 65)."),
      integer_row<C>(
          "calibration.seed", [](auto& c) -> auto& { return c.calibration.seed; }, {.min = 0},
          "Seed of the draw of sequences and of criterion random."),
  };
}

Rows<C> importance_rows() {
  return {
      choice_row<C, Criterion>(
          "importance.criterion", [](auto& c) -> auto& { return c.importance.criterion; },
          criterion_names(),
          "taylor: sum of |w . g| over the unit's weights, g the mean gradient (GISP, "
          "arXiv 2510.18030); taylor_gate: |sum of h . dL/dh| at the unit's gate, without "
          "weight gradients; taylor_gate_sample: the same per sequence; wanda_sp: column norms of "
          "the unit's reader times norms of its inputs; flap: fluctuation of its inputs (arXiv "
          "2312.11983; use it with normalization none); obs: the loss that is left when the "
          "weights "
          "reading the other units are updated in closed form (one pass: prune.iterations is 1, "
          "normalization cost unless given); magnitude: sum of |w|; random: a seeded draw."),
      choice_row<C, Normalization>(
          "importance.normalization", [](auto& c) -> auto& { return c.importance.normalization; },
          normalization_names(),
          "What makes heads and channels comparable. gisp: divided by 4 x head_dim x hidden and by "
          "3 x intermediate_size (as released with arXiv 2510.18030); param_mean: by the number of "
          "weights summed; cost: by the parameters that fall with the unit, a query head with its "
          "part of the KV head; block_*: by mean, L2 norm, or mean and deviation of the layer's "
          "units "
          "of the kind."),
      choice_row<C, Reduction>(
          "importance.reduction", [](auto& c) -> auto& { return c.importance.reduction; },
          {{"gradients", Reduction::gradients}, {"scores", Reduction::scores}},
          "Of taylor: gradients are summed over ranks before the absolute value (exact), "
          "or every rank's scores are (less traffic, depends on the layout)."),
      choice_row<C, Accumulate>(
          "importance.accumulate", [](auto& c) -> auto& { return c.importance.accumulate; },
          {{"auto", Accumulate::automatic},
           {"float32", Accumulate::float32},
           {"float64", Accumulate::float64},
           {"bfloat16", Accumulate::bfloat16}},
          "Dtype of the accumulated gradients. auto: float32, and float64 under "
          "model.dtype float64."),
      number_row<C>(
          "importance.damping", [](auto& c) -> auto& { return c.importance.damping; }, is_damping,
          "a number above 0 and up to 1 is needed",
          "Of obs: added to the power of each input, relative to it."),
      choice_row<C, Curvature>(
          "importance.curvature", [](auto& c) -> auto& { return c.importance.curvature; },
          {{"auto", Curvature::automatic},
           {"full", Curvature::full},
           {"scalar", Curvature::scalar}},
          "Of obs: the matrix of output gradients of every sublayer, or its trace alone (no "
          "memory). "
          "auto: full where the memory forecast says that it fits."),
      trivial_row<C>("importance.exact_reduction", {"false"}),
  };
}

Rows<C> prune_rows() {
  return {
      kinds_row(),
      choice_row<C, AttentionUnit>(
          "prune.attention_unit", [](auto& c) -> auto& { return c.prune.attention_unit; },
          {{"query_head", AttentionUnit::query_head},
           {"equal_per_group", AttentionUnit::equal_per_group},
           {"kv_group", AttentionUnit::kv_group}},
          "query_head: single query heads fall, keys and values with their last reader; "
          "equal_per_group: every group of a layer loses the same number of query heads; "
          "kv_group: a key/value head falls with all its query heads."),
      choice_row<C, Ranking>(
          "prune.ranking", [](auto& c) -> auto& { return c.prune.ranking; },
          {{"global", Ranking::global},
           {"global_by_kind", Ranking::global_by_kind},
           {"local", Ranking::local}},
          "One list over all layers and kinds, one per kind, or one per layer and kind (every "
          "layer loses the same share)."),
      required(number_row<C>(
                   "prune.target", [](auto& c) -> auto& { return c.prune.target; }, is_share,
                   "a number above 0 and below 1 is needed",
                   "Share to remove in all, in the unit of prune.measure."),
               "0.5"),
      choice_row<C, Measure>(
          "prune.measure", [](auto& c) -> auto& { return c.prune.measure; },
          {{"structures", Measure::structures},
           {"parameters", Measure::parameters},
           {"total_parameters", Measure::total_parameters}},
          "structures: removed units / all units, protected ones included; parameters: of the "
          "decoder layers; total_parameters: of the whole model."),
      integer_row<C>(
          "prune.iterations", [](auto& c) -> auto& { return c.prune.iterations; },
          {.min = 1, .max = kMaxIterations},
          "Steps to the target, each scored anew. 1 is one-shot."),
      choice_row<C, ScheduleShape>(
          "prune.shape", [](auto& c) -> auto& { return c.prune.shape; },
          {{"linear", ScheduleShape::linear},
           {"gisp", ScheduleShape::gisp},
           {"cosine", ScheduleShape::cosine},
           {"exponential", ScheduleShape::exponential},
           {"geometric", ScheduleShape::geometric}},
          "Share of the target after step i of n, x = i/n. linear: x; gisp: (i-1)/(n-1); "
          "cosine: (1 - cos(pi x))/2; exponential: (e^(ax) - 1)/(e^a - 1), a = prune.rate; "
          "geometric: the kept share falls by one factor per step."),
      number_row<C>(
          "prune.rate", [](auto& c) -> auto& { return c.prune.rate; }, is_rate,
          fmt::format("a number from -{0} to {0} other than 0 is needed", kMaxRate),
          "a of shape exponential; negative = fast at first."),
      integer_or_word_row<C>(
          "prune.protect.first_layers",
          [](auto& c) -> auto& { return c.prune.protect.first_layers; }, "auto",
          {.min = 0, .max = 1000}, "First layers that lose nothing. auto: int(0.1 x layers)."),
      integer_row<C>(
          "prune.protect.last_layers", [](auto& c) -> auto& { return c.prune.protect.last_layers; },
          {.min = 0, .max = 1000}, "Last layers that lose nothing."),
      integers_row<C>(
          "prune.protect.layers", [](auto& c) -> auto& { return c.prune.protect.layers; },
          {.min = 0, .max = 999}, "Further layers that lose nothing, counted from 0."),
      integer_row<C>(
          "prune.protect.min_heads", [](auto& c) -> auto& { return c.prune.protect.min_heads; },
          {.min = 0}, "Query heads that every layer keeps."),
      integer_row<C>(
          "prune.protect.min_channels",
          [](auto& c) -> auto& { return c.prune.protect.min_channels; }, {.min = 0},
          "MLP channels that every layer keeps."),
      choice_row<C, Compensation>(
          "prune.compensation", [](auto& c) -> auto& { return c.prune.compensation; },
          {{"none", Compensation::none}, {"mean", Compensation::mean}},
          "What removed units leave in exports. mean: what they gave on average over the "
          "calibration data of their iteration, as biases of o_proj and down_proj (FLAP, arXiv "
          "2312.11983; needs criterion flap). The run itself goes on without them."),
      integer_row<C>(
          "prune.width_multiple", [](auto& c) -> auto& { return c.prune.width_multiple; },
          {.min = 1},
          "Every layer keeps a multiple of this many MLP channels: matrix products of 64 or 128 "
          "are "
          "fast on tensor cores, ragged ones are not. Channels fall in blocks of so many; the "
          "model "
          "ends below the target by less than one block, and shards are cut at multiples. Divides "
          "the model's intermediate_size; 1 = single channels."),
  };
}

Rows<C> refit_rows() {
  return {
      free_at_resume(boolean_row<C>(
          "refit.enabled", [](auto& c) -> auto& { return c.refit.enabled; },
          "true: after the last iteration every o_proj and down_proj is solved anew by least "
          "squares, so that the pruned model's residual stream follows the dense model's. The "
          "matrices are in the exports.")),
      free_at_resume(choice_row<C, RefitMatrices>(
          "refit.matrices", [](auto& c) -> auto& { return c.refit.matrices; },
          refit_matrices_names(),
          "What is solved anew. outputs: o_proj and down_proj; all: before each of these also the "
          "q, k, v, gate and up of its half, towards what they give in the dense model; auto: all "
          "where there are at least 64 tokens for each hidden input, else outputs.")),
      free_at_resume(list_or_word_row<C, DomainConfig>(
          "refit.domains", [](auto& c) -> auto& { return c.refit.domains; }, domain_rows(),
          "calibration",
          "What the matrices are fitted on: the calibration's domains, or a list of its own. A "
          "domain's sequences, where it has the key, goes before refit.sequences; weights are "
          "those "
          "of tokens.")),
      free_at_resume(integer_or_word_row<C>(
          "refit.sequences", [](auto& c) -> auto& { return c.refit.sequences; }, "all", {.min = 1},
          "Rows of each domain, none that the scores were taken on while a file has others. More "
          "help up to 200 tokens per input that a matrix keeps.")),
      free_at_resume(number_or_word_row<C>(
          "refit.ridge", [](auto& c) -> auto& { return c.refit.ridge; }, "auto", is_ridge,
          "a number above 0 or auto is needed",
          "Penalty on the change of a matrix, as a share of each input's power. auto: for each "
          "matrix that of 1e-5, 1e-4 ... 10 with the least error between two halves of the "
          "sequences.")),
      free_at_resume(choice_row<C, ShrinkTo>(
          "refit.shrink_to", [](auto& c) -> auto& { return c.refit.shrink_to; }, shrink_to_names(),
          "What a matrix is drawn towards, and what it stays if the fit does not pay. dense: the "
          "dense model's columns; obs: these with what fell distributed over them (Optimal Brain "
          "Surgeon), which helps below 50 tokens per kept input.")),
  };
}

Rows<C> remaining_rows() {
  return {
      free_at_resume(choice_row<C, Order>(
          "execution.order", [](auto& c) -> auto& { return c.order; }, order_names(),
          "Order of layers and micro-batches. sample_major: each micro-batch goes through all "
          "layers, which are all in memory. layer_major: all micro-batches go through a layer "
          "before the next, and two layers are in memory at a time. auto: sample_major where the "
          "forecast says that it fits. The scores are the same.")),
      free_at_resume(choice_row<C, BoundaryStore>(
          "execution.boundaries", [](auto& c) -> auto& { return c.boundaries; },
          {{"auto", BoundaryStore::automatic},
           {"memory", BoundaryStore::memory},
           {"files", BoundaryStore::files}},
          "Where hidden states are between layers under layer_major. memory: of the host; files: "
          "without a name in execution.scratch; auto: memory where the forecast says that it "
          "fits.")),
      free_at_resume(path_or_word_row<C>(
          "execution.scratch", [](auto& c) -> auto& { return c.scratch; }, "run_directory",
          "Directory for files that end with the process, on every node: a fast local disk. score "
          "and eval have no run directory and use TMPDIR.")),
      free_at_resume(choice_row<C, Recompute>(
          "execution.recompute", [](auto& c) -> auto& { return c.recompute; },
          {{"auto", Recompute::automatic}, {"all", Recompute::all}},
          "Half layers that run forward a second time in the backward pass. auto: as few as memory "
          "allows, each rank by itself; all: every one, which needs the least memory. Both give "
          "the same bits.")),
      free_at_resume(boolean_row<C>(
          "execution.share_prompts", [](auto& c) -> auto& { return c.share_prompts; },
          "true: under objective margin the options of an item share the computation of their "
          "prompt, for the criteria that work with gradients. The scores are the same up to "
          "rounding.")),
      free_at_resume(choice_row<C, AttentionBackend>(
          "execution.attention", [](auto& c) -> auto& { return c.attention; },
          {{"auto", AttentionBackend::automatic},
           {"flash", AttentionBackend::flash},
           {"math", AttentionBackend::math}},
          "Attention kernel. auto: flash where dtype, device and mask allow it, else math.")),
      free_at_resume(choice_row<C, Collectives>(
          "execution.collectives", [](auto& c) -> auto& { return c.collectives; },
          {{"auto", Collectives::automatic},
           {"nccl", Collectives::nccl},
           {"mpi", Collectives::mpi}},
          "What sums tensors over ranks. nccl: in GPU memory, bfloat16 activations as they are; "
          "mpi: "
          "through host memory, in float32 or wider; auto: nccl where the build has it and every "
          "rank has a GPU of its own, else mpi.")),
      integer_row<C>(
          "evaluation.every", [](auto& c) -> auto& { return c.evaluation.every; }, {.min = 1},
          "Evaluations run on the dense model, every this many iterations, and at the end."),
      list_row<C, NamedTokens>(
          "evaluation.perplexity", [](auto& c) -> auto& { return c.evaluation.perplexity; },
          evaluation_rows("HDF5 token file; its row length is the window of the perplexity.",
                          "wikitext2"),
          "Perplexity on token files: exp(sum of nll / counted tokens)."),
      list_row<C, NamedTokens>(
          "evaluation.multiple_choice",
          [](auto& c) -> auto& { return c.evaluation.multiple_choice; },
          evaluation_rows("HDF5 token file of options, written by launch/tokenize.py.", "arc_easy"),
          "Accuracy on questions with options: right where the option of the highest likelihood is "
          "(acc), or of the highest log likelihood per character (acc_norm), as "
          "lm-evaluation-harness."),
      list_row<C, ExactMatchConfig>(
          "evaluation.exact_match", [](auto& c) -> auto& { return c.evaluation.exact_match; },
          exact_match_rows(),
          "Answers generated greedily and compared as lm-evaluation-harness does for GSM8K: strict "
          "(after ####) and flexible (the last number). Prompts go through the model in groups of "
          "calibration.micro_batch_tokens, their answers included."),
      free_at_resume(integer_row<C>(
          "checkpoint.keep_last", [](auto& c) -> auto& { return c.keep_last; }, {.min = 1},
          "Newest commits that are kept.")),
      free_at_resume(integer_row<C>(
          "checkpoint.keep_every", [](auto& c) -> auto& { return c.keep_every; }, {.min = 0},
          "Every this many iterations a commit is kept for good. 0 = none.")),
      list_row<C, ExportConfig>(
          "export", [](auto& c) -> auto& { return c.exports; }, export_rows(),
          "Checkpoints written at the end of the run."),
  };
}

}  // namespace

const Rows<RunConfig>& run_schema() {
  static const Rows<RunConfig> schema = [] {
    Rows<RunConfig> all;
    for (Rows<RunConfig> part : {machine_rows(), calibration_rows(), importance_rows(),
                                 prune_rows(), refit_rows(), remaining_rows()})
      std::move(part.begin(), part.end(), std::back_inserter(all));
    return all;
  }();
  return schema;
}

const std::vector<std::string>& known_keys() {
  static const std::vector<std::string> keys = [] {
    std::vector<std::string> all;
    for (const Row<RunConfig>& row : run_schema()) {
      if (row.trivial) continue;
      all.push_back(row.key);
      for (const auto& element : row.element_rows) all.push_back(row.key + "[]." + element.key);
    }
    return all;
  }();
  return keys;
}

}  // namespace espalier::config_detail
