#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>

#include <fmt/format.h>

#include "espalier/core/placeholder.h"
#include "espalier/core/remedy.h"
#include "espalier/store/files.h"
#include "espalier/store/safetensors.h"
#include "posix.h"
#include "safetensors_format.h"
#include "slice_reader.h"
#include "weight_files.h"

namespace espalier {
namespace {

using posix::shown;

constexpr std::size_t kComparedBytes = std::size_t{4} << 20;

struct Shard {
  std::filesystem::path path;
  posix::Descriptor file;
  SafetensorsHeader header;
};

/// Enough of a file to recognise what is no safetensors file.
constexpr std::size_t kFirstBytes = 1024;

/// TensorFlow and Flax store other names and transposed matrices. A file that says nothing is taken
/// for PyTorch's, as the others are by transformers.
void refuse_other_framework(const SafetensorsHeader& header, const std::string& origin) {
  const auto format = header.metadata.find("format");
  if (format == header.metadata.end() || (format->second != "tf" && format->second != "flax"))
    return;
  throw Error(ExitCode::bad_content,
              fmt::format("the metadata says format = {}", shown(format->second)),
              "weights are read in the layout of PyTorch",
              "Load the model with transformers and save it with save_pretrained.", origin);
}

Shard open_shard(const std::filesystem::path& path) {
  Shard shard{path, posix::open_regular(path), {}};
  const std::string origin = path.string();
  const std::uint64_t size = posix::size_of_file(shard.file, path);
  std::vector<std::byte> head(kFirstBytes);
  head.resize(posix::read_at(shard.file, path, 0, head));
  refuse_placeholder({reinterpret_cast<const char*>(head.data()), head.size()}, size, origin);
  const std::uint64_t length = safetensors_header_bytes(head, size, origin);
  head.resize(static_cast<std::size_t>(kSafetensorsPrefix + length));
  const std::size_t got = posix::read_at(shard.file, path, kSafetensorsPrefix,
                                         std::span(head).subspan(kSafetensorsPrefix));
  if (got != length)
    throw Error(ExitCode::bad_content, "the file ended inside its header",
                fmt::format("{} of {} bytes", got, length), {}, origin);
  shard.header = parse_safetensors_header(head, size, origin);
  refuse_other_framework(shard.header, origin);
  return shard;
}

/// Whether two stored tensors are the same to the byte.
bool are_equal(const Shard& a, const TensorInfo& in_a, const Shard& b, const TensorInfo& in_b) {
  if (in_a.dtype != in_b.dtype || in_a.shape != in_b.shape) return false;
  std::vector<std::byte> left, right;
  for (std::uint64_t at = 0, size = in_a.end - in_a.begin; at < size; at += kComparedBytes) {
    left.resize(static_cast<std::size_t>(std::min<std::uint64_t>(kComparedBytes, size - at)));
    right.resize(left.size());
    if (posix::read_at(a.file, a.path, in_a.begin + at, left) != left.size() ||
        posix::read_at(b.file, b.path, in_b.begin + at, right) != right.size() || left != right)
      return false;
  }
  return true;
}

/// Whether a name is one of the module inside the model with a head.
bool is_inner(const std::string& name) {
  for (const char* part : {"embed_tokens.", "layers.", "norm.", "rotary_emb."})
    if (name.starts_with(part)) return true;
  return false;
}

}  // namespace

struct CheckpointReader::State {
  std::filesystem::path directory;
  std::map<std::string, Shard> shards;  // by plain file name
  std::map<std::string, TensorInfo> tensors;
  std::map<std::string, std::string> unfound;  // of the index: tensor -> file that lacks it
  std::vector<std::string> notes;

  void open_shards(const std::set<std::string>& names, Problems& problems);
  void merge(Problems& problems);
  void check_index(const std::map<std::string, std::string>& placed, Problems& problems);
  void add_prefix();
};

void CheckpointReader::State::open_shards(const std::set<std::string>& names, Problems& problems) {
  for (const std::string& name : names) {
    try {
      const auto path = directory / name;
      if (!path_exists(path))
        throw Error(ExitCode::missing_input, fmt::format("cannot read {}", shown(path.string())),
                    fmt::format("open: {}", std::strerror(ENOENT)), download_remedy(path));
      shards.emplace(name, with_remedy(download_remedy(path), [&] { return open_shard(path); }));
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
      if (added) continue;
      const TensorInfo& before = place->second;
      if (are_equal(shards.at(before.file), before, shard, info))
        notes.push_back(fmt::format("tensor {} is in {} and, the same, in {}", shown(name),
                                    shown(before.file), shown(file)));
      else
        problems.add(ExitCode::bad_content,
                     fmt::format("tensor {} is in {} and in {}", shown(name),
                                 shown(place->second.file), shown(file)),
                     "with different contents: which one counts is not known",
                     "Take one of them out, or download the checkpoint again.", directory.string());
    }
  }
}

void CheckpointReader::State::check_index(const std::map<std::string, std::string>& placed,
                                          Problems& problems) {
  const std::string origin = (directory / kIndexFile).string();
  for (const auto& [name, file] : placed) {
    if (!shards.contains(file)) continue;  // reported when it could not be opened
    const auto found = tensors.find(name);
    if (found == tensors.end())
      unfound[name] = file;  // whoever needs it will say so
    else if (found->second.file != file && !shards.at(file).header.tensors.contains(name))
      problems.add(ExitCode::bad_content,
                   fmt::format("tensor {} is in {}, not in {}", shown(name),
                               shown(found->second.file), shown(file)),
                   "the index places it in the latter", "Download the checkpoint again.", origin);
  }
}

/// A model saved without its head has the names of the module inside; transformers 5 puts the
/// prefix before each of them, and leaves a head's name as it is.
void CheckpointReader::State::add_prefix() {
  std::vector<std::string> inner;
  for (const auto& [name, info] : tensors)
    if (is_inner(name) && !tensors.contains("model." + name)) inner.push_back(name);
  if (inner.empty()) return;
  for (const std::string& name : inner) {
    auto node = tensors.extract(name);
    node.key() = "model." + name;
    tensors.insert(std::move(node));
  }
  notes.push_back(
      fmt::format("{} tensors have names of a model without a head (the first: {}): they are read "
                  "with 'model.' before them",
                  inner.size(), shown(inner.front())));
}

CheckpointReader CheckpointReader::open(const std::filesystem::path& directory) {
  const WeightFiles files = find_weight_files(directory);
  auto state = std::make_unique<State>();
  state->directory = directory;
  Problems problems;
  state->open_shards(files.names, problems);
  state->merge(problems);
  state->check_index(files.placed, problems);
  problems.throw_if_any();
  for (auto& [name, shard] : state->shards) shard.header = {};
  state->add_prefix();
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

const std::map<std::string, std::string>& CheckpointReader::unfound() const {
  return state_->unfound;
}

const std::vector<std::string>& CheckpointReader::notes() const { return state_->notes; }

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
