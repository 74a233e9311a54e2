// fuzz_formats [SECONDS [SEED...]]: plans, scores, token files and paused passes as the program's
// own readers meet them. A valid file is drawn, a few of its objects are changed (hdf5_content.h),
// some plans get the digest of their changed content, and the file is read. Allowed ends are
// success, after which what the header of the reader promises must hold, and
// espalier::Error(bad_content).

#include <stdlib.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <set>

#include <fmt/format.h>

#include "espalier/calib/token_file.h"
#include "espalier/prune/feature_means.h"
#include "espalier/prune/plan_scores.h"
#include "espalier/score/paused_pass.h"
#include "espalier/store/files.h"
#include "fuzz/hdf5_content.h"
#include "fuzz/memory_limit.h"
#include "fuzz/session.h"
#include "unit/prune/sample_models.h"

namespace espalier {
namespace {

using fuzz::Content;
using fuzz::TextMutator;
using fuzz::Trial;

constexpr std::int64_t kVocabulary = 50;

fuzz::Dataset integers(hid_t type, std::vector<hsize_t> shape, std::vector<std::int64_t> values) {
  return {type, std::move(shape), std::move(values), fuzz::Form::ordinary, false};
}
fuzz::Dataset floats(std::vector<hsize_t> shape, std::vector<double> values) {
  return {H5T_IEEE_F64LE, std::move(shape), std::move(values), fuzz::Form::ordinary, false};
}

template <class T>
std::vector<std::int64_t> widened(const std::vector<T>& values) {
  return {values.begin(), values.end()};
}

/// A plan of three iterations in which every third unit or so fell.
PruningPlan drawn_plan(const ModelConfig& config, TextMutator& random) {
  PruningPlan plan = dense_plan(
      config, random.below(2) == 0 ? AttentionUnit::query_head : AttentionUnit::kv_group);
  plan.iteration = 3;
  std::vector<std::pair<std::int32_t*, std::int64_t*>> fallen;
  const auto draw = [&](auto& removed_at, auto& order) {
    for (std::size_t i = 0; i < removed_at.values.size(); ++i)
      if (random.below(3) == 0) fallen.emplace_back(&removed_at.values[i], &order.values[i]);
  };
  draw(plan.attention_removed_at, plan.attention_order);
  draw(plan.mlp_removed_at, plan.mlp_order);
  for (std::size_t i = fallen.size(); i > 1; --i) std::swap(fallen[i - 1], fallen[random.below(i)]);
  for (std::size_t place = 0; place < fallen.size(); ++place) {
    *fallen[place].first = static_cast<std::int32_t>(1 + 3 * place / fallen.size());
    *fallen[place].second = static_cast<std::int64_t>(place);
  }
  return plan;
}

void put_plan(Content& content, const PruningPlan& plan) {
  const auto put = [&](const std::string& name, hid_t type, const auto& matrix) {
    content.datasets[name] =
        integers(type, {static_cast<hsize_t>(matrix.layers), static_cast<hsize_t>(matrix.units)},
                 widened(matrix.values));
  };
  put("/attention/removed_at", H5T_STD_I32LE, plan.attention_removed_at);
  put("/attention/order", H5T_STD_I64LE, plan.attention_order);
  put("/mlp/removed_at", H5T_STD_I32LE, plan.mlp_removed_at);
  put("/mlp/order", H5T_STD_I64LE, plan.mlp_order);
  content.attributes["format"].value = std::string("espalier-plan");
  content.attributes["version"].value = std::int64_t{1};
  content.attributes["digest"].value = plan.digest();
  content.attributes["attention_unit"].value =
      std::string(plan.attention_unit == AttentionUnit::kv_group ? "kv_group" : "query_head");
  content.attributes["iteration"].value = plan.iteration;
  content.attributes["model_config_sha256"].value = plan.model_config_sha256;
}

/// One of the four matrices as it stands in `content`; empty when it is none any more.
template <class T>
UnitMatrix<T> matrix_of(const Content& content, const std::string& name) {
  UnitMatrix<T> matrix;
  const auto found = content.datasets.find(name);
  if (found == content.datasets.end() || found->second.shape.size() != 2) return matrix;
  const auto* values = std::get_if<std::vector<std::int64_t>>(&found->second.values);
  if (values == nullptr) return matrix;
  matrix.layers = static_cast<std::int64_t>(found->second.shape[0]);
  matrix.units = static_cast<std::int64_t>(found->second.shape[1]);
  for (const std::int64_t value : *values) matrix.values.push_back(static_cast<T>(value));
  return matrix;
}

/// The digest of the changed content, so that the checks before it have to find what is wrong.
void seal_plan(Content& content) {
  PruningPlan plan;
  plan.attention_removed_at = matrix_of<std::int32_t>(content, "/attention/removed_at");
  plan.attention_order = matrix_of<std::int64_t>(content, "/attention/order");
  plan.mlp_removed_at = matrix_of<std::int32_t>(content, "/mlp/removed_at");
  plan.mlp_order = matrix_of<std::int64_t>(content, "/mlp/order");
  content.attributes["digest"].value = plan.digest();
}

/// Of every second feature.
FeatureMeans drawn_means(const ModelConfig& config, TextMutator& random) {
  FeatureMeans means = no_feature_means(config);
  for (const UnitKind kind : {UnitKind::attention, UnitKind::mlp})
    for (double& value : means.of(kind).values)
      if (random.below(2) == 0) value = 0.5 - 0.125 * static_cast<double>(random.below(9));
  return means;
}

void put_means(Content& content, const FeatureMeans& means) {
  for (const UnitKind kind : {UnitKind::attention, UnitKind::mlp}) {
    const UnitMatrix<double>& matrix = means.of(kind);
    content.datasets[fmt::format("/means/{}", name_of(kind))] = floats(
        {static_cast<hsize_t>(matrix.layers), static_cast<hsize_t>(matrix.units)}, matrix.values);
  }
  content.attributes["means_digest"].value = means.digest();
}

/// As seal_plan.
void seal_means(Content& content) {
  FeatureMeans means;
  for (const UnitKind kind : {UnitKind::attention, UnitKind::mlp}) {
    const auto found = content.datasets.find(fmt::format("/means/{}", name_of(kind)));
    if (found == content.datasets.end() || found->second.shape.size() != 2) return;
    const auto* values = std::get_if<std::vector<double>>(&found->second.values);
    if (values == nullptr) return;
    means.of(kind) = {static_cast<std::int64_t>(found->second.shape[0]),
                      static_cast<std::int64_t>(found->second.shape[1]), *values};
  }
  content.attributes["means_digest"].value = means.digest();
}

std::string broken_means(const ModelConfig& config, const FeatureMeans& means) {
  const FeatureMeans sizes = no_feature_means(config);
  for (const UnitKind kind : {UnitKind::attention, UnitKind::mlp}) {
    if (means.of(kind).layers != config.layers || means.of(kind).units != sizes.of(kind).units ||
        means.of(kind).values.size() != sizes.of(kind).values.size())
      return "means of another shape";
    for (const double value : means.of(kind).values)
      if (std::isinf(value)) return "a mean that is infinite";
  }
  return "";
}

std::string broken_plan(const ModelConfig& config, const PruningPlan& plan) {
  std::map<std::int64_t, std::int32_t> iteration_of_place;
  for (const auto& [removed_at, order] :
       {std::pair(&plan.attention_removed_at, &plan.attention_order),
        std::pair(&plan.mlp_removed_at, &plan.mlp_order)})
    for (std::size_t i = 0; i < order->values.size(); ++i) {
      const std::int32_t at = removed_at->values.at(i);
      if (at < -1 || at == 0 || at > plan.iteration) return "an iteration that was none";
      if ((at == -1) != (order->values[i] == -1))
        return "removed without a place, or kept with one";
      if (at != -1 && !iteration_of_place.emplace(order->values[i], at).second)
        return "two units in one place";
    }
  std::int64_t place = 0;
  std::int32_t before = 1;
  for (const auto& [found, iteration] : iteration_of_place) {
    if (found != place++) return "a gap in the order";
    if (iteration < before) return "the order runs against the iterations";
    before = iteration;
  }
  const ModelWidths widths = widths_of(config, plan);
  return widths.layers.size() == static_cast<std::size_t>(config.layers) ? "" : "layers are lost";
}

ScoreList drawn_list(const UnitMatrix<std::int32_t>& removed_at, std::size_t rows) {
  ScoreList list;
  for (std::int64_t layer = 0; layer < removed_at.layers; ++layer)
    for (std::int64_t unit = 0; unit < removed_at.units; ++unit) {
      if (removed_at.at(layer, unit) != -1 && removed_at.at(layer, unit) != 3) continue;
      list.layer.push_back(static_cast<std::int32_t>(layer));
      list.unit.push_back(static_cast<std::int32_t>(unit));
      list.score.push_back(0.25 * static_cast<double>(unit));
    }
  list.raw.assign(rows, list.score);
  return list;
}

void put_scores(Content& content, const PruningPlan& plan) {
  const auto put = [&](const std::string& group, const UnitMatrix<std::int32_t>& removed_at) {
    const ScoreList list = drawn_list(removed_at, 2);
    const hsize_t n = list.score.size();
    std::vector<double> raw = list.raw[0];
    raw.insert(raw.end(), list.raw[1].begin(), list.raw[1].end());
    content.datasets[group + "/layer"] = integers(H5T_STD_I32LE, {n}, widened(list.layer));
    content.datasets[group + "/unit"] = integers(H5T_STD_I32LE, {n}, widened(list.unit));
    content.datasets[group + "/score"] = floats({n}, list.score);
    content.datasets[group + "/raw"] = floats({2, n}, raw);
  };
  put("/attention", plan.attention_removed_at);
  put("/mlp", plan.mlp_removed_at);
  content.attributes["criterion"].value = std::string("taylor_gate");
  content.attributes["normalization"].value = std::string("none");
  content.attributes["raw_rows"].value = std::vector<std::string>{"web", "math"};
  content.attributes["domains"].value = std::vector<std::string>{"web", "math"};
  content.attributes["loss"].value = std::vector<double>{2.5, 1.25};
  content.attributes["tokens"].value = std::int64_t{4096};
}

/// Infinite: of a unit that never falls.
bool is_score(double value) { return value > -std::numeric_limits<double>::infinity(); }

std::string broken_list(const ScoreTable& scores, const ScoreList& list) {
  const std::size_t n = list.score.size();
  if (list.layer.size() != n || list.unit.size() != n || list.raw.size() != scores.raw_rows.size())
    return "lists of several lengths";
  for (const std::vector<double>& row : list.raw) {
    if (row.size() != n) return "a short raw row";
    for (const double value : row)
      if (!is_score(value)) return "a raw score that is no number";
  }
  for (std::size_t i = 0; i < n; ++i) {
    if (!is_score(list.score[i])) return "a score that is no number";
    if (i > 0 &&
        std::pair(list.layer[i - 1], list.unit[i - 1]) >= std::pair(list.layer[i], list.unit[i]))
      return "units out of order";
  }
  return {};
}

std::string broken_scores(const ScoreTable& scores) {
  if (scores.tokens < 0) return "a negative number of tokens";
  if (scores.loss.size() != scores.domains.size()) return "not one loss per domain";
  for (const double loss : scores.loss)
    if (!std::isfinite(loss)) return "a loss that is not finite";
  const std::string wrong = broken_list(scores, scores.attention);
  return wrong.empty() ? broken_list(scores, scores.mlp) : wrong;
}

Content drawn_tokens(TextMutator& random) {
  Content content;
  const hsize_t n = 1 + random.below(5);
  const hsize_t S = 2 + random.below(6);
  std::vector<std::int64_t> tokens(n * S), lengths(n), mask(n * S, 1);
  for (std::int64_t& id : tokens) id = static_cast<std::int64_t>(random.below(kVocabulary));
  for (std::int64_t& length : lengths) length = static_cast<std::int64_t>(2 + random.below(S - 1));
  content.datasets["/tokens"] = integers(H5T_STD_I32LE, {n, S}, tokens);
  if (random.below(2) == 0) content.datasets["/length"] = integers(H5T_STD_I32LE, {n}, lengths);
  if (random.below(2) == 0) content.datasets["/loss_mask"] = integers(H5T_STD_U8LE, {n, S}, mask);
  content.attributes["format"].value = std::string("espalier-tokens");
  content.attributes["version"].value = std::int64_t{1};
  content.attributes["vocab_size"].value = kVocabulary;
  return content;
}

/// Tokens with what each row is an option of: items of two or three options, the last one right.
Content drawn_options(TextMutator& random) {
  std::vector<std::int64_t> item, option, correct;
  const std::size_t items = 1 + random.below(3);
  for (std::size_t i = 0; i < items; ++i) {
    const std::size_t options = 2 + random.below(2);
    for (std::size_t k = 0; k < options; ++k) {
      item.push_back(static_cast<std::int64_t>(10 + i));
      option.push_back(static_cast<std::int64_t>(k));
      correct.push_back(k + 1 == options ? 1 : 0);
    }
  }
  const hsize_t n = item.size(), S = 2 + random.below(6);
  Content content;
  content.datasets["/tokens"] =
      integers(H5T_STD_I32LE, {n, S}, std::vector<std::int64_t>(n * S, 7));
  content.datasets["/loss_mask"] =
      integers(H5T_STD_U8LE, {n, S}, std::vector<std::int64_t>(n * S, 1));
  content.datasets["/item"] = integers(H5T_STD_I32LE, {n}, item);
  content.datasets["/option"] = integers(H5T_STD_I16LE, {n}, option);
  content.datasets["/correct"] = integers(H5T_STD_U8LE, {n}, correct);
  if (random.below(2) == 0)
    content.datasets["/normalizer"] =
        integers(H5T_STD_I32LE, {n}, std::vector<std::int64_t>(n, 12));
  content.attributes["format"].value = std::string("espalier-tokens");
  content.attributes["version"].value = std::int64_t{1};
  content.attributes["vocab_size"].value = kVocabulary;
  return content;
}

std::string broken_options(const OptionRows& options, std::size_t rows) {
  if (options.item.size() != rows || options.option.size() != rows ||
      options.correct.size() != rows)
    return "options of another number of rows";
  if (options.first.front() != 0 || options.first.back() != static_cast<std::int64_t>(rows))
    return "rows that are of no item";
  for (std::size_t i = 0; i + 1 < options.first.size(); ++i) {
    std::int64_t right = 0;
    for (std::int64_t row = options.first[i]; row < options.first[i + 1]; ++row)
      right += options.correct[static_cast<std::size_t>(row)];
    if (right < 1 || right >= options.first[i + 1] - options.first[i])
      return "an item without a right or a wrong option";
  }
  for (const std::int32_t characters : options.normalizer)
    if (characters < 1) return "a normaliser below 1";
  return {};
}

std::string broken_rows(const TokenRows& rows, std::size_t n) {
  const auto S = static_cast<std::size_t>(rows.sequence_tokens);
  if (rows.tokens.size() != n * S || rows.length.size() != n || rows.counted.size() != n * S)
    return "rows of several sizes";
  for (const std::int32_t id : rows.tokens)
    if (id < 0 || id >= kVocabulary) return "an id beyond the vocabulary";
  for (std::size_t row = 0; row < n; ++row) {
    if (rows.length[row] < 1 || rows.length[row] > rows.sequence_tokens) return "a length";
    std::size_t counted = 0;
    for (std::size_t t = 0; t < S; ++t) {
      if (rows.counted[row * S + t] == 0) continue;
      if (t == 0 || t >= static_cast<std::size_t>(rows.length[row])) return "a token counts";
      ++counted;
    }
    if (counted == 0) return "a row without a counted token";
  }
  return {};
}

Content drawn_sums(TextMutator& random) {
  Content content;
  const hsize_t rows = random.below(3);
  const hsize_t heads = random.below(5);
  const hsize_t channels = 1 + random.below(5);
  content.datasets["/attention/sums"] =
      floats({rows, heads}, std::vector<double>(rows * heads, 0.5));
  content.datasets["/mlp/sums"] =
      floats({rows, channels}, std::vector<double>(rows * channels, 0.25));
  content.attributes["format"].value = std::string("espalier-sums");
  content.attributes["version"].value = std::int64_t{2};
  content.attributes["work"].value = std::string(64, 'a');
  content.attributes["iteration"].value = std::int64_t{3};
  content.attributes["micro_batches"].value = std::int64_t{17};
  content.attributes["loss"].value = std::vector<double>{2.5, 1.25};
  content.attributes["real_tokens"].value = std::vector<double>{4100, 500};
  content.attributes["tokens"].value = std::int64_t{4096};
  if (random.below(2) == 0) return content;
  content.attributes["version"].value = std::int64_t{3};
  content.attributes["traversals"].value = std::int64_t{1};
  content.attributes["layers"].value = std::int64_t{2};
  for (const char* name : {"alone", "reduced"})
    for (const char* kind : {"attention", "mlp"})
      content.datasets[fmt::format("/{}/{}", kind, name)] =
          floats({rows, heads}, std::vector<double>(rows * heads, 1.5));
  content.datasets["/skipped"] = integers(H5T_STD_I64LE, {3, 3}, {0, 1, 4, 0, 1, 5, 1, 0, 2});
  return content;
}

std::string broken_sums(const PausedPass& pass) {
  if (pass.iteration < 1 || pass.micro_batches < 0 || pass.tokens < 0) return "a negative count";
  if (pass.attention.size() != pass.mlp.size()) return "rows of one kind only";
  if (pass.real_tokens.size() != pass.loss.size()) return "tokens of other domains than losses";
  for (const auto* rows : {&pass.attention, &pass.mlp})
    for (const std::vector<double>& row : *rows) {
      if (row.size() != rows->front().size()) return "rows of several lengths";
      for (const double value : row)
        if (!std::isfinite(value)) return "a sum that is not finite";
    }
  if (!pass.finished) return {};
  if (pass.finished->traversals < 0 || pass.finished->layers < 0) return "a negative count";
  if (pass.finished->alone_attention.size() != pass.finished->alone_mlp.size() ||
      pass.finished->reduced_attention.size() != pass.finished->reduced_mlp.size())
    return "rows of one kind only";
  for (const FinishedLayers::Skipped& skipped : pass.finished->skipped)
    if (skipped.domain >= pass.loss.size() || skipped.rows.empty()) return "rows of no domain";
  return {};
}

class FormatFuzzer final : public fuzz::Fuzzer {
 public:
  explicit FormatFuzzer(std::uint64_t seed) : random_(seed, {""}) {
    if (::mkdtemp(scratch_.data()) == nullptr) throw std::runtime_error("no scratch directory");
    path_ = std::filesystem::path(scratch_) / "file.h5";
  }
  ~FormatFuzzer() override { std::filesystem::remove_all(scratch_); }

  std::string once(Trial& trial) override {
    switch (random_.below(5)) {
      case 0:
        return plan(trial);
      case 1:
        return scores(trial);
      case 2:
        return tokens(trial);
      case 3:
        return options(trial);
      default:
        return sums(trial);
    }
  }

 private:
  bool write(Content& content, Trial& trial) {
    const bool changed = random_.below(8) != 0;
    if (changed) fuzz::change(content, random_);
    return put(content, trial), changed;
  }
  void put(const Content& content, Trial& trial) {
    fuzz::write(content, path_.string(), random_);
    bytes_ = read_file(path_);
    trial.input(bytes_);
  }

  /// What was not changed must be accepted.
  static std::string read(Trial& trial, bool changed, const char* format,
                          const std::function<std::string()>& reading) {
    const std::uint64_t before = trial.times_accepted();
    std::string wrong = fuzz::outcome(trial, reading, {ExitCode::bad_content});
    if (wrong.empty() && !changed && trial.times_accepted() == before)
      wrong = "a valid file is refused";
    return wrong.empty() ? wrong : fmt::format("{}: {}", format, wrong);
  }

  Hdf5Reader reader() {
    return random_.below(2) == 0 ? Hdf5Reader::open(path_)
                                 : Hdf5Reader::from_image(std::as_bytes(std::span(bytes_)), "fuzz");
  }

  std::string plan(Trial& trial) {
    Content content;
    const PruningPlan drawn = drawn_plan(config_, random_);
    put_plan(content, drawn);
    const FeatureMeans means = drawn_means(config_, random_);
    const bool has_means = random_.below(2) == 0;
    if (has_means) put_means(content, means);
    const bool changed = random_.below(8) != 0;
    if (changed) fuzz::change(content, random_);
    if (random_.below(4) != 0) seal_plan(content);
    if (has_means && random_.below(4) != 0) seal_means(content);
    put(content, trial);
    return read(trial, changed, "plan", [&] {
      const std::optional<FeatureMeans> found = read_feature_means(reader(), "", config_);
      if (!changed && found.has_value() != has_means) return std::string("means come or go");
      if (!changed && found && found->digest() != means.digest())
        return std::string("other means than were written");
      if (found)
        if (const std::string wrong = broken_means(config_, *found); !wrong.empty()) return wrong;
      const PruningPlan plan = read_plan(reader(), "", config_);
      if (!changed && !(plan == drawn)) return std::string("another plan than was written");
      return broken_plan(config_, plan);
    });
  }

  std::string scores(Trial& trial) {
    const PruningPlan plan = drawn_plan(config_, random_);
    Content content;
    put_scores(content, plan);
    const bool changed = write(content, trial);
    return read(trial, changed, "scores", [&] {
      const ScoreTable scores = read_scores(reader(), "");
      std::string wrong = broken_scores(scores);
      if (wrong.empty()) require_scores_of(plan, scores);
      return wrong;
    });
  }

  std::string tokens(Trial& trial) {
    Content content = drawn_tokens(random_);
    const bool masked = content.datasets.contains("/loss_mask");
    const bool changed = write(content, trial);
    const Counting countings[] = {Counting::every_token, Counting::loss_mask_if_present,
                                  Counting::loss_mask};
    const Counting counting = countings[random_.below(masked ? 3 : 2)];
    return read(trial, changed, "tokens", [&]() -> std::string {
      const TokenFile file = TokenFile::open(path_, kVocabulary, counting);
      if (file.rows() < 1 || file.sequence_tokens() < 2) return "a file without predictions";
      std::vector<std::int64_t> numbers;
      for (std::int64_t i = 0; i < std::min<std::int64_t>(file.rows(), 5); ++i)
        numbers.push_back(file.rows() - 1 - i);
      return broken_rows(file.read(numbers), numbers.size());
    });
  }

  std::string options(Trial& trial) {
    Content content = drawn_options(random_);
    const bool changed = write(content, trial);
    return read(trial, changed, "options", [&] {
      const TokenFile file = TokenFile::open(path_, kVocabulary, Counting::options);
      return broken_options(file.options(), static_cast<std::size_t>(file.rows()));
    });
  }

  std::string sums(Trial& trial) {
    Content content = drawn_sums(random_);
    const bool changed = write(content, trial);
    return read(trial, changed, "sums", [&] { return broken_sums(read_sums(reader())); });
  }

  TextMutator random_;
  ModelConfig config_ = testing::small_gqa();
  std::string scratch_ = (std::filesystem::temp_directory_path() / "espalier-fuzz-XXXXXX").string();
  std::filesystem::path path_;
  std::string bytes_;
};

}  // namespace
}  // namespace espalier

int main(int argc, char** argv) {
  espalier::fuzz::limit_memory(std::uint64_t{2} << 30);
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  return espalier::fuzz::run(argc, argv, "fuzz_formats", "h5", [](std::uint64_t seed) {
    return std::make_unique<espalier::FormatFuzzer>(seed);
  });
}
