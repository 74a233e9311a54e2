#include <algorithm>
#include <array>
#include <charconv>
#include <optional>
#include <string_view>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "espalier/core/error.h"
#include "espalier/model/load.h"
#include "espalier/model/tensor_ops.h"
#include "espalier/prune/tensor_catalog.h"

namespace espalier {
namespace {

// Names of a file, each with every one that is missing.
constexpr std::size_t kMostProblems = 20;  // an incomplete checkpoint lacks hundreds of tensors
constexpr std::size_t kMostCompared = 10000;
constexpr std::int64_t kComparedElements = std::int64_t{1} << 22;
constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kHead = "lm_head.weight";
constexpr const char* kIncomplete = "Use a complete checkpoint: download it again.";
constexpr const char* kQuantized =
    "Quantized checkpoints cannot be pruned: use the one that was quantized.";

/// Buffers that transformers computes itself and older versions saved.
constexpr std::array<std::string_view, 4> kBuffers{".rotary_emb.inv_freq", ".rotary_emb.cos_cached",
                                                   ".rotary_emb.sin_cached",
                                                   ".self_attn.masked_bias"};

/// What quantization tools put beside or in the place of a weight.
constexpr std::array<std::string_view, 12> kQuantizationParts{
    ".weight_scale",  ".weight_scale_inv",
    ".weight_packed", ".weight_zero_point",
    ".input_scale",   ".qweight",
    ".qzeros",        ".scales",
    ".g_idx",         ".SCB",
    ".absmax",        ".quant_map"};

/// Names of a model inside something, and how to get it out.
struct Wrapping {
  std::string_view prefix;
  const char* remedy;
};
constexpr std::array<Wrapping, 4> kWrappings{{
    {"base_model.", "Merge the adapter into the model (peft: merge_and_unload) and save that."},
    {"module.", "Save the model inside the parallel one: model.module.save_pretrained(directory)."},
    {"_orig_mod.", "Save the model that was compiled: model._orig_mod.save_pretrained(directory)."},
    {"",
     "Load the model with transformers and save its language model alone with save_pretrained, or "
     "rename the tensors of the safetensors files."},
}};

std::string shape_text(const std::vector<std::int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

template <std::size_t N>
bool ends_with_any(std::string_view name, const std::array<std::string_view, N>& endings) {
  return std::any_of(endings.begin(), endings.end(),
                     [&](std::string_view ending) { return name.ends_with(ending); });
}

/// The number in "model.layers.<number>.".
std::optional<std::int64_t> layer_of(std::string_view name) {
  constexpr std::string_view kLayers = "model.layers.";
  if (!name.starts_with(kLayers)) return std::nullopt;
  const char* begin = name.data() + kLayers.size();
  std::int64_t number = 0;
  const auto [end, failure] = std::from_chars(begin, name.data() + name.size(), number);
  if (failure != std::errc() || end == name.data() + name.size() || *end != '.')
    return std::nullopt;
  return number;
}

/// Whether a tensor without a place would change what the decoder computes: it belongs to a layer,
/// to the head, or stands beside the embedding and the last norm.
bool changes_arithmetic(std::string_view name, std::int64_t layers) {
  if (ends_with_any(name, kBuffers)) return false;
  if (const auto layer = layer_of(name)) return *layer < layers;
  if (name.starts_with("lm_head.")) return true;
  constexpr std::string_view kModel = "model.";
  return name.starts_with(kModel) && std::count(name.begin(), name.end(), '.') == 2;
}

/// Rows [begin, end) of a stored matrix.
at::Tensor rows_of(const CheckpointReader& reader, const std::string& name, Range rows) {
  const TensorInfo& info = *reader.find(name);
  at::Tensor t = at::empty({rows.size(), info.shape[1]},
                           at::TensorOptions().dtype(to_scalar_type(info.dtype)));
  reader.read(name, IndexRuns::of(rows), IndexRuns::all(info.shape[1]),
              {static_cast<std::byte*>(t.data_ptr()), static_cast<std::size_t>(t.nbytes())});
  return t;
}

/// Whether two stored matrices hold the same numbers, in whatever dtypes.
bool same_values(const CheckpointReader& reader, const std::string& a, const std::string& b) {
  const TensorInfo &left = *reader.find(a), &right = *reader.find(b);
  if (left.shape != right.shape || left.shape.size() != 2) return false;
  if (!is_floating(left.dtype) || !is_floating(right.dtype)) return false;
  const std::int64_t step = std::max<std::int64_t>(1, kComparedElements / left.shape[1]);
  for (std::int64_t begin = 0; begin < left.shape[0]; begin += step) {
    const Range rows{begin, std::min(begin + step, left.shape[0])};
    at::Tensor x = rows_of(reader, a, rows), y = rows_of(reader, b, rows);
    if (x.scalar_type() != y.scalar_type()) x = x.to(at::kDouble), y = y.to(at::kDouble);
    if (!at::equal(x, y)) return false;
  }
  return true;
}

/// Compares one checkpoint with its config.json.
class Check {
 public:
  Check(const ModelConfig& config, const WeightSource& source)
      : config_(config), source_(source), where_(source.reader->directory().string()) {
    for (const TensorSpec& spec : tensor_catalog(config)) expected_.push_back(spec.name);
    std::sort(expected_.begin(), expected_.end());
    // Only a tensor that has no place of its own can be the missing one under another name.
    for (const auto& [name, info] : source.reader->tensors())
      if (!std::binary_search(expected_.begin(), expected_.end(), name)) unused_.push_back(name);
  }

  CheckpointRemarks run() {
    refuse_wrapped_names();
    for (const TensorSpec& spec : tensor_catalog(config_)) require(spec);
    for (const std::string& name : unused_) judge(name);
    finish();
    remarks_.notes = source_.reader->notes();
    add_counted(remarks_.notes, "tensors of the checkpoint that transformers computes itself",
                buffers_);
    add_counted(remarks_.warnings, "tensors of the checkpoint are not used", left_out_);
    add_unfound();
    return std::move(remarks_);
  }

 private:
  void add(ExitCode code, std::string what, std::string why, std::string remedy) {
    if (problems_.list().size() < kMostProblems)
      problems_.add(code, std::move(what), std::move(why), std::move(remedy), where_);
    else
      ++more_;
  }
  void bad(std::string what, std::string why, std::string remedy) {
    add(ExitCode::bad_content, std::move(what), std::move(why), std::move(remedy));
  }

  /// One message for a whole model under other names, instead of one for each tensor.
  void refuse_wrapped_names() const {
    constexpr std::string_view kLast = "embed_tokens.weight";
    if (source_.reader->find(kEmbedding) != nullptr) return;
    const auto found = std::find_if(unused_.begin(), unused_.end(), [&](const std::string& name) {
      return name.ends_with("." + std::string(kLast)) || name == kLast;
    });
    if (found == unused_.end()) return;
    const std::string prefix = found->substr(0, found->size() - kLast.size());
    const auto wrapping = std::find_if(kWrappings.begin(), kWrappings.end(), [&](const auto& row) {
      return prefix.starts_with(row.prefix);
    });
    throw Error(ExitCode::bad_content,
                fmt::format("the tensors are named '{}...', a {} has 'model...'", prefix,
                            name_of(config_.family)),
                fmt::format("'{}' stands for '{}'", *found, kEmbedding), wrapping->remedy, where_);
  }

  void require(const TensorSpec& spec) {
    const TensorInfo* info = source_.reader->find(spec.name);
    const std::vector<std::int64_t> shape = shape_with(spec, config_, source_.widths);
    if (info == nullptr) {
      if (!has_no_elements(shape)) add_missing(spec, shape);
      return;
    }
    if (info->shape != shape)
      bad(fmt::format("tensor '{}' has shape {}, config.json promises {}", spec.name,
                      shape_text(info->shape), shape_text(shape)),
          {}, "Use the config.json that belongs to these weights.");
    if (!is_floating(info->dtype))
      bad(fmt::format("tensor '{}' is stored as {}", spec.name, safetensors_name(info->dtype)),
          "weights must be F16, BF16, F32 or F64", kQuantized);
  }

  void add_missing(const TensorSpec& spec, const std::vector<std::int64_t>& shape) {
    const std::string what = fmt::format("tensor '{}' {} is missing", spec.name, shape_text(shape));
    const auto& unfound = source_.reader->unfound();
    if (const auto place = unfound.find(spec.name); place != unfound.end())
      return add(ExitCode::missing_input, what,
                 fmt::format("the index places it in '{}', which does not hold it", place->second),
                 "Download the checkpoint again.");
    if (spec.name == kHead)
      return bad(what, "the embeddings are not tied",
                 "Set tie_word_embeddings: true in config.json if the head is the embedding; if "
                 "not, use a complete checkpoint.");
    if (spec.name == kEmbedding && config_.tied_embeddings &&
        source_.reader->find(kHead) != nullptr)
      return bad(what, "the embeddings are tied",
                 fmt::format("Rename {} of the file to {}.", kHead, kEmbedding));
    const std::string near =
        unused_.size() > kMostCompared ? std::string() : nearest_name(spec.name, unused_);
    bad(what, {},
        near.empty()
            ? kIncomplete
            : fmt::format("The nearest name in the checkpoint is '{}'. {}", near,
                          ends_with_any(near, kQuantizationParts) ? kQuantized : kIncomplete));
  }

  /// A tensor that the catalog does not know.
  void judge(const std::string& name) {
    if (name == kHead) return judge_tied_head();
    if (!changes_arithmetic(name, config_.layers)) {
      (ends_with_any(name, kBuffers) ? buffers_ : left_out_).push_back(name);
      return;
    }
    const bool quantized = ends_with_any(name, kQuantizationParts);
    bad(fmt::format("tensor '{}' {} has no place in a {}", name,
                    shape_text(source_.reader->find(name)->shape), name_of(config_.family)),
        "the weights were trained with it, and it would not be computed with",
        quantized ? kQuantized
                  : "Use a checkpoint that is only what its model_type says; if the tensor is left "
                    "over from something else, save the model without it.");
  }

  /// transformers 4 overwrites such a head with the embedding, transformers 5 keeps it when it
  /// differs: only equal ones mean the same to both.
  void judge_tied_head() {
    if (source_.reader->find(kEmbedding) == nullptr) return;  // reported
    if (same_values(*source_.reader, kEmbedding, kHead)) {
      remarks_.notes.emplace_back(
          "the embeddings are tied: lm_head.weight of the file, which is the same, is not used");
      return;
    }
    bad("tie_word_embeddings = true, and lm_head.weight of the file is not the embedding",
        "transformers 4 computes with the embedding, transformers 5 with lm_head.weight",
        "Set tie_word_embeddings: false in config.json to use lm_head.weight, or save the model "
        "without it.");
  }

  void finish() {
    if (more_ > 0)
      problems_.add(ExitCode::bad_content, fmt::format("{} more problems of this kind", more_), {},
                    kIncomplete, where_);
    problems_.throw_if_any();
  }

  static void add_counted(std::vector<std::string>& to, const char* what,
                          const std::vector<std::string>& names) {
    if (!names.empty())
      to.push_back(fmt::format("{} {} (the first: {})", names.size(), what, names.front()));
  }

  void add_unfound() {
    const auto& unfound = source_.reader->unfound();
    if (!unfound.empty())
      remarks_.notes.push_back(
          fmt::format("the index lists {} tensors that no shard holds and the model does not need "
                      "(the first: {})",
                      unfound.size(), unfound.begin()->first));
  }

  const ModelConfig& config_;
  const WeightSource& source_;
  const std::string where_;
  std::vector<std::string> expected_, unused_;  // ascending
  std::vector<std::string> buffers_, left_out_;
  Problems problems_;
  std::size_t more_ = 0;
  CheckpointRemarks remarks_;
};

}  // namespace

CheckpointRemarks check_checkpoint(const ModelConfig& config, const WeightSource& source) {
  return Check(config, source).run();
}

}  // namespace espalier
