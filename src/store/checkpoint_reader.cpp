#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>

#include <fmt/format.h>

#include "espalier/core/json.h"
#include "espalier/store/files.h"
#include "espalier/store/safetensors.h"
#include "posix.h"
#include "safetensors_format.h"
#include "slice_reader.h"

namespace espalier {
namespace {

using posix::shown;
using WeightMap = std::map<std::string, std::string>;  // tensor name -> file name

constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

bool is_present(const std::filesystem::path& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) == 0) return true;
  if (errno == ENOENT || errno == ENOTDIR) return false;
  posix::fail("stat", path, errno, posix::Access::read);
}

/// The message for a directory without safetensors; says what there is instead.
[[noreturn]] void refuse_directory(const std::filesystem::path& directory) {
  std::error_code failure;
  std::string other;
  for (std::filesystem::directory_iterator at(directory, failure), end; !failure && at != end;
       at.increment(failure)) {
    const std::string extension = at->path().extension().string();
    if (extension == ".bin" || extension == ".pt" || extension == ".pth") other = extension;
  }
  if (failure) posix::fail("readdir", directory, failure.value(), posix::Access::read);
  throw Error(ExitCode::missing_input, fmt::format("no weights in {}", shown(directory.string())),
              fmt::format("looked for {} and {}{}", kSingle, kIndex,
                          other.empty() ? "" : fmt::format(", found {} files only", other)),
              other.empty()
                  ? "Name the directory of a Hugging Face checkpoint."
                  : "Convert them to safetensors: load the model with transformers and call "
                    "save_pretrained(directory, safe_serialization=True).");
}

void require_directory(const std::filesystem::path& directory) {
  struct stat info {};
  if (::stat(directory.c_str(), &info) != 0)
    posix::fail("stat", directory, errno, posix::Access::read);
  if (!S_ISDIR(info.st_mode))
    throw Error(ExitCode::missing_input,
                fmt::format("{} is not a directory", shown(directory.string())),
                "a checkpoint is a directory");
}

/// A shard lies beside the index: anything that could lead elsewhere is refused.
bool is_plain_name(const std::string& name) {
  const bool control = std::any_of(name.begin(), name.end(),
                                   [](char c) { return static_cast<unsigned char>(c) < 0x20; });
  return !name.empty() && name != "." && !control && name.size() <= 255 &&
         name.find_first_of("/\\") == std::string::npos && name.find("..") == std::string::npos;
}

WeightMap read_index(const std::filesystem::path& path) {
  const std::string origin = path.string();
  const auto root = parse_json(read_file(path, std::size_t{256} << 20), origin);
  if (!root.is_object() || !root.contains("weight_map") || !root["weight_map"].is_object())
    throw Error(ExitCode::bad_content, "no weight_map in the index",
                "it maps every tensor to its file", {}, origin);
  WeightMap map;
  std::set<std::string> refused;
  Problems problems;
  for (const auto& [tensor, file] : root["weight_map"].items()) {
    if (!file.is_string()) {
      problems.add(ExitCode::bad_content,
                   fmt::format("weight_map of {} is not a string", shown(tensor)), {}, {}, origin);
      continue;
    }
    const auto& name = file.get_ref<const std::string&>();
    if (is_plain_name(name))
      map[tensor] = name;
    else if (refused.insert(name).second)
      problems.add(ExitCode::bad_content,
                   fmt::format("weight_map places {} in {}", shown(tensor), shown(name)),
                   "files must have plain names inside the checkpoint directory", {}, origin);
  }
  problems.throw_if_any();
  if (map.empty()) throw Error(ExitCode::bad_content, "the weight_map is empty", {}, {}, origin);
  return map;
}

struct Shard {
  std::filesystem::path path;
  posix::Descriptor file;
  SafetensorsHeader header;
};

Shard open_shard(const std::filesystem::path& path) {
  Shard shard{path, posix::open_regular(path), {}};
  const std::string origin = path.string();
  const std::uint64_t size = posix::size_of_file(shard.file, path);
  std::vector<std::byte> head(kSafetensorsPrefix);
  head.resize(posix::read_at(shard.file, path, 0, head));
  const std::uint64_t length = safetensors_header_bytes(head, size, origin);
  head.resize(static_cast<std::size_t>(kSafetensorsPrefix + length));
  const std::size_t got = posix::read_at(shard.file, path, kSafetensorsPrefix,
                                         std::span(head).subspan(kSafetensorsPrefix));
  if (got != length)
    throw Error(ExitCode::bad_content, "the file ended inside its header",
                fmt::format("{} of {} bytes", got, length), {}, origin);
  shard.header = parse_safetensors_header(head, size, origin);
  return shard;
}

}  // namespace

struct CheckpointReader::State {
  std::filesystem::path directory;
  std::map<std::string, Shard> shards;  // by plain file name
  std::map<std::string, TensorInfo> tensors;

  void open_shards(const std::set<std::string>& names, Problems& problems);
  void merge(Problems& problems);
  void check_index(const WeightMap& map, Problems& problems) const;
};

void CheckpointReader::State::open_shards(const std::set<std::string>& names, Problems& problems) {
  for (const std::string& name : names) {
    try {
      shards.emplace(name, open_shard(directory / name));
    } catch (const Error& error) {
      for (const Problem& problem : error.problems()) problems.add(problem);
    }
  }
}

void CheckpointReader::State::merge(Problems& problems) {
  for (auto& [file, shard] : shards) {
    for (auto& [name, info] : shard.header.tensors) {
      info.file = file;
      const auto [place, added] = tensors.emplace(name, info);
      if (!added)
        problems.add(ExitCode::bad_content,
                     fmt::format("tensor {} is in {} and in {}", shown(name),
                                 shown(place->second.file), shown(file)),
                     "a tensor may be stored once", {}, directory.string());
    }
    shard.header = {};
  }
}

void CheckpointReader::State::check_index(const WeightMap& map, Problems& problems) const {
  const std::string origin = (directory / kIndex).string();
  for (const auto& [name, file] : map) {
    if (!shards.contains(file)) continue;  // reported when it could not be opened
    const auto found = tensors.find(name);
    if (found == tensors.end())
      problems.add(ExitCode::missing_input,
                   fmt::format("tensor {} is not in {}", shown(name), shown(file)),
                   "the index places it there", "Download the checkpoint again.", origin);
    else if (found->second.file != file)
      problems.add(ExitCode::bad_content,
                   fmt::format("tensor {} is in {}, not in {}", shown(name),
                               shown(found->second.file), shown(file)),
                   "the index places it in the latter", "Download the checkpoint again.", origin);
  }
}

CheckpointReader CheckpointReader::open(const std::filesystem::path& directory) {
  require_directory(directory);
  auto state = std::make_unique<State>();
  state->directory = directory;
  WeightMap map;
  std::set<std::string> names;
  // As transformers does, a single file goes before an index.
  if (is_present(directory / kSingle)) {
    names.insert(kSingle);
  } else if (is_present(directory / kIndex)) {
    map = read_index(directory / kIndex);
    for (const auto& [tensor, file] : map) names.insert(file);
  } else {
    refuse_directory(directory);
  }
  Problems problems;
  state->open_shards(names, problems);
  state->merge(problems);
  state->check_index(map, problems);
  problems.throw_if_any();
  return CheckpointReader(std::move(state));
}

CheckpointReader::CheckpointReader(std::unique_ptr<State> state) : state_(std::move(state)) {}
CheckpointReader::CheckpointReader(CheckpointReader&&) noexcept = default;
CheckpointReader& CheckpointReader::operator=(CheckpointReader&&) noexcept = default;
CheckpointReader::~CheckpointReader() = default;

const std::filesystem::path& CheckpointReader::directory() const { return state_->directory; }
const std::map<std::string, TensorInfo>& CheckpointReader::tensors() const {
  return state_->tensors;
}

const TensorInfo* CheckpointReader::find(const std::string& name) const {
  const auto found = state_->tensors.find(name);
  return found == state_->tensors.end() ? nullptr : &found->second;
}

std::vector<std::string> CheckpointReader::files() const {
  std::vector<std::string> names;
  for (const auto& [name, shard] : state_->shards) names.push_back(name);
  return names;
}

void CheckpointReader::read(const std::string& name, const IndexRuns& rows,
                            const IndexRuns& columns, std::span<std::byte> out) const {
  const TensorInfo* info = find(name);
  ESPALIER_CHECK(info != nullptr, fmt::format("no tensor {}", shown(name)));
  const Shard& shard = state_->shards.at(info->file);
  read_slice(shard.file, shard.path, *info, name, rows, columns, out);
}

}  // namespace espalier
