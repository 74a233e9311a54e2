#include "espalier/pipeline/refit_store.h"

#include <unistd.h>

#include <algorithm>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/core/json.h"
#include "espalier/core/log.h"
#include "espalier/model/tensor_ops.h"
#include "espalier/pipeline/commit.h"
#include "espalier/store/files.h"
#include "sealed_json.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kManifest = "MANIFEST.json";
constexpr const char* kWeights = "model.safetensors";
constexpr const char* kDamaged =
    "Remove the directory: 'espalier resume RUN' solves what is missing.";

/// The manifest of a layer whose files are as it says.
Json checked_manifest(const fs::path& directory) {
  const fs::path path = directory / kManifest;
  Json manifest = unsealed(read_file(path, std::size_t{16} << 20), path.string(), kDamaged);
  for (const fs::path& entry : list_directory(directory))
    if (entry.filename() != kManifest && !manifest.at("files").contains(entry.filename().string()))
      throw Error(ExitCode::bad_content, "a file that the manifest does not name",
                  "a refitted layer holds nothing else", "Move the file elsewhere.",
                  entry.string());
  for (const auto& [name, hash] : manifest.at("files").items())
    if (name != kWeights || sha256_of_file(directory / name) != hash.get<std::string>())
      throw Error(ExitCode::bad_content, "the content does not match its hash", {}, kDamaged,
                  (directory / name).string());
  return manifest;
}

Json manifest_of(const fs::path& directory) {
  try {
    return checked_manifest(directory);
  } catch (const Json::exception& error) {
    throw Error(ExitCode::bad_content, "the manifest is incomplete", error.what(), kDamaged,
                (directory / kManifest).string());
  }
}

std::vector<RefitFacts> facts_of(const Json& manifest) {
  std::vector<RefitFacts> facts;
  for (const Json& entry : manifest.at("halves")) facts.push_back(facts_from(entry));
  return facts;
}

/// Out of sight first: a crash between the two steps leaves only what the next start sweeps.
void discard(const fs::path& path) {
  fs::path trash;
  for (int i = 0; trash.empty() || name_exists(trash); ++i)
    trash = path.parent_path() / fmt::format(".trash-{}-{}", path.filename().string(), i);
  rename_path(path, trash, WriteScope::refit);
  remove_tree(trash, WriteScope::refit);
}

bool is_leftover(const std::string& name) {
  return name.starts_with(".tmp-") || name.starts_with(".trash-");
}

at::Tensor read_matrix(const CheckpointReader& reader, const std::string& name) {
  const TensorInfo& info = *reader.find(name);
  at::Tensor t = at::empty(info.shape, at::TensorOptions().dtype(to_scalar_type(info.dtype)));
  reader.read(name, IndexRuns::all(info.shape[0]), IndexRuns::all(info.shape[1]),
              {static_cast<std::byte*>(t.data_ptr()), static_cast<std::size_t>(t.nbytes())});
  return t;
}

}  // namespace

RefitStore::RefitStore(fs::path directory, std::string key)
    : directory_(std::move(directory)), key_(std::move(key)) {}

std::string RefitStore::layer_name(std::int64_t layer) { return fmt::format("layer-{:06}", layer); }

void RefitStore::prepare() const {
  make_directories(directory_);
  require_writable(directory_);
  for (const fs::path& entry : list_directory(directory_))
    if (is_leftover(entry.filename().string())) remove_tree(entry, WriteScope::refit);
}

std::optional<RefittedLayer> RefitStore::recall(std::int64_t layer) {
  const fs::path path = directory_ / layer_name(layer);
  if (gone_ || !name_exists(path)) {
    gone_ = true;
    return std::nullopt;
  }
  try {
    const Json manifest = manifest_of(path);
    if (manifest.at("key") != key_ || manifest.at("layer") != layer)
      throw Error(ExitCode::bad_content, "the layer is of another refit",
                  "somebody renamed or copied it", kDamaged, path.string());
    RefittedLayer found{layer, facts_of(manifest), {}};
    if (!manifest.at("files").empty()) {
      const CheckpointReader reader = CheckpointReader::open(path);
      for (const auto& [name, info] : reader.tensors())
        found.matrices.emplace(name, read_matrix(reader, name));
    }
    return found;
  } catch (const Error& error) {
    if (!is_damage(error)) throw;
    log::warning("layer {} of the refit is solved anew: {}", layer, error.what());
    discard(path);
    gone_ = true;
    return std::nullopt;
  }
}

void RefitStore::keep(const RefittedLayer& layer) const {
  const fs::path path = directory_ / layer_name(layer.layer);
  const fs::path temporary = directory_ / fmt::format(".tmp-{}", layer_name(layer.layer));
  if (name_exists(temporary)) remove_tree(temporary, WriteScope::refit);
  make_directory(temporary);
  Json manifest{{"schema", 1},
                {"layer", layer.layer},
                {"key", key_},
                {"halves", Json::array()},
                {"files", Json::object()}};
  for (const RefitFacts& facts : layer.facts) manifest["halves"].push_back(to_json(facts));
  if (!layer.matrices.empty()) {
    std::vector<SafetensorsWriter::Entry> entries;
    for (const auto& [name, matrix] : layer.matrices)
      entries.push_back({name, to_dtype(matrix.scalar_type()), {matrix.size(0), matrix.size(1)}});
    SafetensorsWriter writer(temporary / kWeights, std::move(entries), {{"format", "pt"}},
                             WriteScope::refit);
    for (const auto& [name, matrix] : layer.matrices)
      writer.write(name, {static_cast<const std::byte*>(matrix.const_data_ptr()),
                          static_cast<std::size_t>(matrix.nbytes())});
    manifest["files"][kWeights] = writer.finish();
  }
  write_new_file(temporary / kManifest, sealed(std::move(manifest)), WriteScope::refit);
  fsync_directory(temporary, WriteScope::refit);
  if (name_exists(path)) discard(path);
  rename_path(temporary, path, WriteScope::refit);
  fsync_directory(directory_, WriteScope::refit);
}

RefitParts open_refit(const fs::path& directory, const std::string& key, std::int64_t layers) {
  RefitParts parts;
  for (std::int64_t l = 0; l < layers; ++l) {
    const fs::path path = directory / RefitStore::layer_name(l);
    if (!name_exists(path))
      throw Error(ExitCode::missing_input, fmt::format("layer {} of the refit is missing", l), {},
                  kDamaged, path.string());
    const Json manifest = manifest_of(path);
    if (manifest.at("key") != key || manifest.at("layer") != l)
      throw Error(ExitCode::bad_content, "the layer is of another refit",
                  "somebody renamed or copied it", kDamaged, path.string());
    for (RefitFacts& facts : facts_of(manifest)) parts.facts.push_back(facts);
    if (manifest.at("files").empty()) continue;
    parts.readers.push_back(std::make_unique<CheckpointReader>(CheckpointReader::open(path)));
    for (const auto& [name, info] : parts.readers.back()->tensors())
      parts.matrices[name] = parts.readers.back().get();
  }
  return parts;
}

std::int64_t check_refit_layers(const fs::path& directory) {
  Problems problems;
  std::int64_t count = 0;
  for (const fs::path& entry : list_directory(directory)) {
    const std::string name = entry.filename().string();
    if (!name.starts_with("layer-")) continue;
    problems.add(problems_of([&] {
      const Json manifest = manifest_of(entry);
      if (name != RefitStore::layer_name(manifest.at("layer").get<std::int64_t>()))
        throw Error(ExitCode::bad_content, "the layer is another one", "somebody renamed it",
                    kDamaged, entry.string());
      if (!manifest.at("files").empty()) CheckpointReader::open(entry);
      ++count;
    }));
  }
  problems.throw_if_any();
  return count;
}

void sweep_refits(const fs::path& root, const std::string& kept) {
  if (!name_exists(root)) return;
  for (const fs::path& entry : list_directory(root)) {
    const std::string name = entry.filename().string();
    if (name == kept) continue;
    if (is_leftover(name))
      remove_tree(entry, WriteScope::refit);
    else
      discard(entry);
  }
}

}  // namespace espalier
