#pragma once

#include <cstdint>
#include <filesystem>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "espalier/model/causal_lm.h"
#include "espalier/store/safetensors.h"
#include "espalier/store/scratch_file.h"

namespace espalier {

/// Where weights come from: a checkpoint and the widths that its tensors have (dense, or those of
/// one of our `exact` exports), in the dense model's numbers.
struct WeightSource {
  const CheckpointReader* reader = nullptr;
  ModelWidths widths;
};

/// What a good checkpoint holds besides the model.
struct CheckpointRemarks {
  /// Nothing to do about.
  std::vector<std::string> notes;
  /// Tensors that are left out and may have meant something.
  std::vector<std::string> warnings;
};

/// Compares names, shapes and dtypes of the checkpoint with what config.json promises; lists
/// everything that is wrong at once (bad_content), with the nearest names. A tensor without
/// elements may be absent. Refused as well are tensors without a place that would change the
/// arithmetic (biases that the family does not have, scales of quantized weights), and a tied
/// lm_head.weight that differs from the embedding.
CheckpointRemarks check_checkpoint(const ModelConfig& config, const WeightSource& source);

/// The dtype that `as_stored` means: that of the embedding in the file.
at::ScalarType stored_type(const WeightSource& source);

/// Reads this rank's shard step by step, so that ranks can agree, stop and show progress in
/// between: a step is one decoder layer, or what lies outside the layers. Every rank has the same
/// steps. Not collective.
class ModelLoader {
 public:
  ModelLoader(const ModelConfig& config, const ModelWidths& widths, const WeightSource& source,
              const ComputeOptions& options, int tensor_size, int tensor_index);

  std::int64_t steps() const { return model_.layers() + 1; }
  /// Reads the slices of one step, casts them to options.dtype and moves them to options.device.
  /// Every weight must be finite: otherwise Error(bad_content) naming tensor, layer and tensor
  /// rank.
  void load(std::int64_t step);
  /// The model, once every step was loaded.
  CausalLM take() { return std::move(model_); }

 private:
  CausalLM model_;
  WeightSource source_;
};

/// The rows and columns of `spec` that `want` keeps, whole on this rank: in the stored dtype, on
/// the host. Throws Error(bad_content) where a value is not finite. Not collective.
at::Tensor read_weight(const ModelConfig& config, const WeightSource& source,
                       const TensorSpec& spec, const ModelWidths& want);

/// A model of which nothing is loaded, cut as ModelLoader cuts it; and the shard of one of its
/// tensors, as ModelLoader::load reads it: for passes that hold a layer at a time. Not collective.
CausalLM unloaded_model(const ModelConfig& config, const ModelWidths& widths,
                        const ComputeOptions& options, int tensor_size, int tensor_index);
void load_weight(CausalLM& model, const WeightSource& source, const TensorSpec& spec);

/// Decoder layers that are read when a pass comes to them: the layer at hand and the next one are
/// here, no others. Not collective; what reading throws is as ModelLoader::load says.
class StreamedLayers {
 public:
  /// `model` has what lies outside the layers, and outlives this.
  StreamedLayers(CausalLM& model, WeightSource source);
  ~StreamedLayers() { wait(); }
  StreamedLayers(const StreamedLayers&) = delete;
  StreamedLayers& operator=(const StreamedLayers&) = delete;

  /// Afterwards the layer is here; `next` is read in the background while it is worked on.
  void hold(std::int64_t layer, std::optional<std::int64_t> next = std::nullopt);
  /// For work that needs the whole model: every layer is here until the next hold() or let_go(),
  /// or for good where neither follows.
  void hold_all();
  /// Afterwards no layer is here. Before the model's widths change.
  void let_go();
  /// What hold() took so far: reading that did not go on beside other work, and what is done with
  /// weights that were read.
  double seconds() const { return seconds_; }

  /// From here on lay_over() is there, and what was laid over before is forgotten: it lies in a
  /// file without a name in `directory`. Throws as store/files.h says.
  void begin_overlay(const std::filesystem::path& directory);
  /// The layer, which is here, is read as it is now in these roles, in place of the source's
  /// tensors or beside them, for as long as its widths stay. Throws as store/files.h says.
  void lay_over(std::int64_t layer, const std::vector<TensorRole>& roles);

 private:
  /// Where a tensor that is laid over lies in the file: as this rank holds it, in its dtype.
  struct Laid {
    std::uint64_t offset = 0;
    std::vector<std::int64_t> shape;
  };
  /// A tensor that is read: of the source, or laid over it.
  struct Part {
    TensorRole role = TensorRole::q;
    const TensorSpec* spec = nullptr;
    TensorSlice slice{};
    const Laid* laid = nullptr;
    at::Tensor values{};
  };

  std::vector<Part> parts_of(std::int64_t layer) const;
  void make_room(Part& part) const;
  void fill(const Part& part) const;
  void take(std::int64_t layer, const Part& part);
  /// After which the layer is here.
  void bring(std::int64_t layer);
  void begin_reading(std::int64_t layer);
  void read(std::int64_t layer);
  void wait();

  CausalLM& model_;
  WeightSource source_;
  std::vector<std::vector<TensorSpec>> specs_;    // of each layer
  std::vector<std::map<TensorRole, Laid>> laid_;  // of each layer
  std::unique_ptr<ScratchFile> overlay_;
  std::uint64_t overlay_bytes_ = 0;
  std::int64_t coming_layer_ = -1;
  std::vector<Part> coming_;  // of the next layer, which is being read
  std::future<void> reading_;
  double seconds_ = 0;
};

/// All steps at once. Not collective; wrap in `together`.
CausalLM load_causal_lm(const ModelConfig& config, const ModelWidths& widths,
                        const WeightSource& source, const ComputeOptions& options, int tensor_size,
                        int tensor_index);

/// Cuts the model between tensor ranks as loading it would, and reads the layers whose shard
/// changed from the source. Not collective, the same on every rank.
void recut(CausalLM& model, const WeightSource& source);

/// When the widest rank carries more than `limit` times the mean, cuts anew and reads the layers
/// whose shard changed from the source; returns true if it did. Not collective, the same decision
/// on every rank.
bool rebalance(CausalLM& model, const WeightSource& source, double limit);

}  // namespace espalier
