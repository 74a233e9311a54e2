#include "weight_files.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <string_view>
#include <vector>

#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/core/json.h"
#include "espalier/core/placeholder.h"
#include "espalier/core/remedy.h"
#include "espalier/store/files.h"
#include "posix.h"

namespace espalier {
namespace {

using posix::shown;

constexpr std::size_t kPlaceholderBytes = 1024;
constexpr const char* kPartial = ".incomplete";  // what huggingface_hub calls a file under way

bool is_present(const std::filesystem::path& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) == 0) return true;
  if (errno == ENOENT || errno == ENOTDIR) return false;
  posix::fail("stat", path, errno, posix::Access::read);
}

void require_directory(const std::filesystem::path& directory) {
  struct stat info {};
  if (::stat(directory.c_str(), &info) != 0)
    posix::fail("stat", directory, errno, posix::Access::read);
  if (!S_ISDIR(info.st_mode))
    throw Error(ExitCode::missing_input,
                fmt::format("{} is not a directory", shown(directory.string())),
                "a checkpoint is a directory", "Name the directory of a Hugging Face checkpoint.");
}

std::vector<std::string> names_in(const std::filesystem::path& directory) {
  std::error_code failure;
  std::vector<std::string> names;
  for (std::filesystem::directory_iterator at(directory, failure), end; !failure && at != end;
       at.increment(failure))
    names.push_back(at->path().filename().string());
  if (failure) posix::fail("readdir", directory, failure.value(), posix::Access::read);
  std::sort(names.begin(), names.end());
  return names;
}

/// Files that stand where the weights should be, and what to do about them; the first that matches
/// speaks for the directory.
struct Lookalike {
  std::string_view begin, end;
  const char* remedy;
};
constexpr Lookalike kLookalikes[] = {
    {"model", ".safetensors.incomplete", "A download did not end: download the checkpoint again."},
    {"model-", ".safetensors",
     "These are shards without their index: download model.safetensors.index.json again."},
    {"adapter_model", "",
     "This is an adapter alone: merge it into its base model (peft: merge_and_unload, then "
     "save_pretrained)."},
    {"consolidated", "",
     "These are weights in their maker's own form: download those for transformers "
     "(model*.safetensors), or convert them."},
    {"", ".safetensors",
     "Rename it to model.safetensors if it holds the whole model under transformers' names."},
    {"", ".bin",
     "Convert them to safetensors: load the model with transformers and call "
     "save_pretrained(directory, safe_serialization=True)."},
    {"", ".pt", "Convert them to safetensors with transformers' save_pretrained."},
    {"", ".pth", "Convert them to safetensors with transformers' save_pretrained."},
    {"", ".gguf", "Use the checkpoint that it was made from: GGUF files are not read."},
};

/// Four times that of the largest models that are published, which have 90,000 tensors; reading
/// takes several times as much memory.
constexpr std::size_t kIndexBytes = std::size_t{32} << 20;

/// The message for a directory without weights; says what there is instead.
[[noreturn]] void refuse_directory(const std::filesystem::path& directory) {
  std::string found;
  const char* remedy = "Name the directory of a Hugging Face checkpoint.";
  const std::vector<std::string> names = names_in(directory);
  for (const Lookalike& row : kLookalikes) {
    const auto name = std::find_if(names.begin(), names.end(), [&](const std::string& candidate) {
      return candidate.starts_with(row.begin) && candidate.ends_with(row.end);
    });
    if (name == names.end()) continue;
    found = fmt::format(", found {}", shown(*name));
    remedy = row.remedy;
    break;
  }
  throw Error(ExitCode::missing_input, fmt::format("no weights in {}", shown(directory.string())),
              fmt::format("looked for {} and {}{}", kSingleFile, kIndexFile, found), remedy);
}

/// A shard lies beside the index: anything that could lead elsewhere is refused.
bool is_plain_name(const std::string& name) {
  const bool control = std::any_of(name.begin(), name.end(),
                                   [](char c) { return static_cast<unsigned char>(c) < 0x20; });
  return !name.empty() && name != "." && !control && name.size() <= 255 &&
         name.find_first_of("/\\") == std::string::npos && name.find("..") == std::string::npos;
}

void read_map(const nlohmann::ordered_json& weight_map, const std::string& origin,
              WeightFiles& files) {
  std::set<std::string> refused;
  Problems problems;
  for (const auto& [tensor, file] : weight_map.items()) {
    if (!file.is_string()) {
      problems.add(ExitCode::bad_content,
                   fmt::format("weight_map of {} is not a string", shown(tensor)), {}, {}, origin);
      continue;
    }
    const auto& name = file.get_ref<const std::string&>();
    if (is_plain_name(name))
      files.placed[tensor] = name;
    else if (refused.insert(name).second)
      problems.add(ExitCode::bad_content,
                   fmt::format("weight_map places {} in {}", shown(tensor), shown(name)),
                   "files must have plain names inside the checkpoint directory",
                   "Move the shards beside the index and name them so in it.", origin);
  }
  problems.throw_if_any();
}

WeightFiles read_index(const std::filesystem::path& path) {
  const std::string origin = path.string();
  const std::string text = read_file(path, kIndexBytes);
  refuse_placeholder(std::string_view(text).substr(0, kPlaceholderBytes), text.size(), origin);
  const auto root = parse_json(text, origin);
  if (!root.is_object() || !root.contains("weight_map") || !root["weight_map"].is_object())
    throw Error(ExitCode::bad_content, "no weight_map in the index",
                "it maps every tensor to its file", {}, origin);
  WeightFiles files;
  read_map(root["weight_map"], origin, files);
  if (files.placed.empty())
    throw Error(ExitCode::bad_content, "the weight_map is empty", {}, {}, origin);
  for (const auto& [tensor, file] : files.placed) files.names.insert(file);
  return files;
}

}  // namespace

WeightFiles find_weight_files(const std::filesystem::path& directory) {
  require_directory(directory);
  if (is_present(directory / kSingleFile)) return {{kSingleFile}, {}};
  if (!is_present(directory / kIndexFile)) refuse_directory(directory);
  return with_remedy("Download the index again.",
                     [&] { return read_index(directory / kIndexFile); });
}

std::string download_remedy(const std::filesystem::path& file) {
  std::filesystem::path partial = file;
  partial += kPartial;
  std::error_code failure;
  return std::filesystem::exists(partial, failure)
             ? fmt::format("{} is there: that download did not end. Download the checkpoint again.",
                           shown(partial.filename().string()))
             : "Download the checkpoint again.";
}

}  // namespace espalier
