#include <algorithm>
#include <array>
#include <future>
#include <memory>
#include <numeric>
#include <set>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "espalier/core/background.h"
#include "espalier/core/error.h"
#include "espalier/core/hash.h"
#include "espalier/core/json.h"
#include "espalier/store/files.h"
#include "export_parts.h"

namespace espalier::export_detail {
namespace {

std::uint64_t elements_of(const std::vector<std::int64_t>& shape) {
  return std::accumulate(
      shape.begin(), shape.end(), std::uint64_t{1},
      [](std::uint64_t n, std::int64_t size) { return n * static_cast<std::uint64_t>(size); });
}

/// The unit lists that export code relies on.
void check_widths(const ModelConfig& dense, const ModelWidths& widths) {
  ESPALIER_CHECK(
      static_cast<std::int64_t>(widths.layers.size()) == dense.layers,
      fmt::format("widths of {} layers for a model of {}", widths.layers.size(), dense.layers));
  for (std::size_t i = 0; i < widths.layers.size(); ++i)
    ESPALIER_CHECK(widths.layers[i].kv_heads == kept_kv_heads(dense, widths.layers[i].query_heads),
                   fmt::format("layer {} keeps other KV heads than its query heads read", i));
}

/// Checks one tensor of the source against the widths it should have.
const TensorInfo* checked_info(const CheckpointReader& source, const TensorSpec& spec,
                               const std::vector<std::int64_t>& expected, Problems& problems) {
  const TensorInfo* info = source.find(spec.name);
  if (info == nullptr && has_no_elements(expected)) return nullptr;
  if (info == nullptr) {
    problems.add(ExitCode::bad_content, spec.name + " is missing", "config.json asks for it",
                 "Use a complete checkpoint.", source.directory().string());
    return nullptr;
  }
  if (info->shape != expected) {
    problems.add(ExitCode::bad_content,
                 fmt::format("{} has the shape {}", spec.name, list_text(info->shape)),
                 fmt::format("config.json asks for {}", list_text(expected)),
                 "Use the config.json that belongs to the weights.",
                 (source.directory() / info->file).string());
    return nullptr;
  }
  return info;
}

/// The first few names, and how many more there are.
std::vector<std::string> first_of(std::vector<std::string> names) {
  constexpr std::size_t kShown = 3;
  if (names.size() > kShown + 1) {
    const std::string rest = fmt::format("and {} more", names.size() - kShown);
    names.resize(kShown);
    names.push_back(rest);
  }
  return names;
}

void note_unread(const CheckpointReader& source, const ModelConfig& dense,
                 const std::set<std::string>& read, std::vector<std::string>& notes) {
  std::vector<std::string> others;
  for (const auto& [name, info] : source.tensors()) {
    if (read.contains(name)) continue;
    if (dense.tied_embeddings && name == "lm_head.weight")
      notes.push_back(
          fmt::format("{} is left out: the embeddings are tied, so it is never read.", name));
    else
      others.push_back(name);
  }
  if (others.size() == 1)
    notes.push_back(
        fmt::format("{} is left out: it is no tensor of this architecture.", others.front()));
  else if (!others.empty())
    notes.push_back(fmt::format("{} tensors are left out, which are none of this architecture: {}",
                                others.size(), fmt::join(first_of(others), ", ")));
}

/// Consecutive jobs [begin, end) of one file.
std::vector<Range> shards_of(const std::vector<TensorJob>& jobs, std::uint64_t max_bytes) {
  std::vector<Range> shards;
  Range current;
  std::uint64_t bytes = 0;
  for (const TensorJob& job : jobs) {
    if (current.size() > 0 && bytes + job.bytes > max_bytes) {
      shards.push_back(current);
      current = {current.end, current.end};
      bytes = 0;
    }
    ++current.end;
    bytes += job.bytes;
  }
  if (current.size() > 0) shards.push_back(current);
  return shards;
}

std::string shard_name(std::size_t index, std::size_t count) {
  if (count == 1) return "model.safetensors";
  return fmt::format("model-{:05}-of-{:05}.safetensors", index + 1, count);
}

/// Rows of one tensor that are read, and then written, at once.
struct Part {
  const TensorJob* job;
  IndexRuns rows;
  std::size_t bytes;
};

/// The rows of the jobs of `range` in parts of at most `most` bytes (or one row), in order.
std::vector<Part> parts_of(const std::vector<TensorJob>& jobs, Range range, std::size_t most) {
  std::vector<Part> parts;
  for (std::int64_t j = range.begin; j < range.end; ++j) {
    const TensorJob& job = jobs[static_cast<std::size_t>(j)];
    if (job.bytes == 0) continue;
    const auto row_bytes = static_cast<std::size_t>(job.slice.columns.size()) * size_of(job.dtype);
    // A row of a bias is made from one of a matrix, which is what has to fit.
    const std::size_t read_bytes =
        std::max(row_bytes, job.made ? job.made->means.size() * sizeof(double) : 0);
    const std::vector<std::int64_t> wanted = job.slice.rows.indices();
    const std::vector<std::int32_t> rows(wanted.begin(), wanted.end());
    const std::size_t step = std::max<std::size_t>(1, most / read_bytes);
    for (std::size_t begin = 0; begin < rows.size(); begin += step) {
      const std::span part = std::span(rows).subspan(begin, std::min(step, rows.size() - begin));
      parts.push_back({&job, IndexRuns::of_units(part, 1), part.size() * row_bytes});
    }
  }
  return parts;
}

/// Copies the parts in order; the next is read while one is written.
void copy_parts(const CheckpointReader& source, const std::vector<Part>& parts,
                SafetensorsWriter& writer, const std::function<void()>& between_parts) {
  if (parts.empty()) return;
  const std::size_t most = std::ranges::max(parts, {}, &Part::bytes).bytes;
  const std::array buffers{std::make_unique_for_overwrite<std::byte[]>(most),
                           std::make_unique_for_overwrite<std::byte[]>(most)};
  const auto buffer_of = [&](std::size_t i) {
    return std::span(buffers[i % 2].get(), parts[i].bytes);
  };
  const auto start_reading = [&](std::size_t i) {
    return in_background([&source, &part = parts[i], buffer = buffer_of(i)] {
      if (part.job->made)
        make_bias(source, *part.job, part.rows, buffer);
      else if (part.job->replacement != nullptr)
        part.job->replacement->read(part.job->spec.name, part.rows,
                                    IndexRuns::all(part.job->shape.back()), buffer);
      else
        source.read(part.job->spec.name, part.rows, part.job->slice.columns, buffer);
    });
  };
  std::future<void> reading = start_reading(0);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (between_parts) between_parts();
    reading.get();
    if (i + 1 < parts.size()) reading = start_reading(i + 1);
    writer.write(parts[i].job->spec.name, buffer_of(i));
  }
}

void write_index(const std::vector<TensorJob>& jobs, const std::vector<Range>& shards,
                 const std::filesystem::path& directory,
                 std::map<std::string, std::string>& sha256) {
  nlohmann::ordered_json map = nlohmann::ordered_json::object();
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < shards.size(); ++i)
    for (std::int64_t j = shards[i].begin; j < shards[i].end; ++j) {
      const TensorJob& job = jobs[static_cast<std::size_t>(j)];
      map[job.spec.name] = shard_name(i, shards.size());
      total += job.bytes;
    }
  const nlohmann::ordered_json index = {{"metadata", {{"total_size", total}}}, {"weight_map", map}};
  const std::string text = json_text(index, 2) + "\n";
  const std::string name = "model.safetensors.index.json";
  write_new_file(directory / name, text, WriteScope::export_model);
  sha256[name] = sha256_hex(std::string_view(text));
}

}  // namespace

std::vector<TensorJob> tensor_jobs(const CheckpointReader& source, const ModelConfig& dense,
                                   const ModelWidths& held, const ModelWidths& kept,
                                   AddedBiases biases, const FeatureMeans* means,
                                   std::vector<std::string>& notes) {
  check_widths(dense, held);
  check_widths(dense, kept);
  ModelConfig written = dense;
  written.output_bias = biases != AddedBiases::none;
  const Range vocabulary{0, dense.vocabulary};
  Problems problems;
  std::vector<TensorJob> jobs;
  std::set<std::string> read;
  std::map<TensorRole, TensorJob> weights;  // of the layer at hand
  for (TensorSpec& spec : tensor_catalog(written)) {
    read.insert(spec.name);
    if (is_output_bias(spec.role)) {
      if (dense.output_bias) checked_info(source, spec, spec.shape, problems);
      const auto weight =
          weights.find(spec.role == TensorRole::o_bias ? TensorRole::o : TensorRole::down);
      if (weight != weights.end())
        jobs.push_back(
            output_bias_job(source, dense, held, kept, std::move(spec), weight->second, means));
      continue;
    }
    const TensorInfo* info = checked_info(source, spec, shape_with(spec, dense, held), problems);
    TensorJob job;
    job.shape = shape_with(spec, dense, kept);
    if (info == nullptr && !has_no_elements(job.shape)) continue;  // reported already
    job.dtype = info == nullptr ? dense.dtype : info->dtype;
    job.slice = slice_of(spec, dense, held, vocabulary, kept, vocabulary);
    job.bytes = elements_of(job.shape) * size_of(job.dtype);
    job.spec = std::move(spec);
    if (written.output_bias && job.spec.layer >= 0) weights.insert_or_assign(job.spec.role, job);
    jobs.push_back(std::move(job));
    if (biases == AddedBiases::all && is_input_projection(jobs.back().spec.role))
      jobs.push_back(zero_bias_job(jobs.back()));
  }
  problems.throw_if_any();
  note_unread(source, dense, read, notes);
  return jobs;
}

void replace_matrices(std::vector<TensorJob>& jobs,
                      const std::map<std::string, const CheckpointReader*>& replaced) {
  Problems problems;
  std::map<std::string, const CheckpointReader*> left = replaced;
  for (TensorJob& job : jobs) {
    const auto found = left.find(job.spec.name);
    if (found == left.end()) continue;
    const TensorInfo* info = found->second->find(job.spec.name);
    if (info == nullptr || info->dtype != job.dtype || info->shape != job.shape)
      problems.add(
          ExitCode::bad_content,
          fmt::format("{} is not the matrix that the export wants", job.spec.name),
          fmt::format("{} {} is needed", safetensors_name(job.dtype), list_text(job.shape)),
          "Have the refit made anew.", found->second->directory().string());
    job.replacement = found->second;
    job.slice.rows = IndexRuns::all(job.shape.front());
    left.erase(found);
  }
  for (const auto& [name, reader] : left)
    problems.add(ExitCode::bad_content, fmt::format("{} is no tensor of the export", name), {},
                 "Have the refit made anew.", reader->directory().string());
  problems.throw_if_any();
}

std::map<std::string, std::string> write_weights(const CheckpointReader& source,
                                                 const std::vector<TensorJob>& jobs,
                                                 const std::filesystem::path& directory,
                                                 const ExportOptions& options) {
  std::map<std::string, std::string> sha256;
  const std::vector<Range> shards = shards_of(jobs, options.max_shard_bytes);
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const auto first = jobs.begin() + shards[i].begin;
    const auto last = jobs.begin() + shards[i].end;
    std::vector<SafetensorsWriter::Entry> entries;
    for (auto job = first; job != last; ++job)
      entries.push_back({job->spec.name, job->dtype, job->shape});
    const std::string name = shard_name(i, shards.size());
    SafetensorsWriter writer(directory / name, std::move(entries), {{"format", "pt"}});
    copy_parts(source, parts_of(jobs, shards[i], options.part_bytes), writer,
               options.between_tensors);
    sha256[name] = writer.finish();
  }
  if (shards.size() > 1) write_index(jobs, shards, directory, sha256);
  return sha256;
}

}  // namespace espalier::export_detail
