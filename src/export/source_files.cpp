#include <algorithm>
#include <array>
#include <cctype>
#include <string>
#include <string_view>
#include <system_error>

#include <fmt/format.h>

#include "espalier/core/error.h"
#include "export_parts.h"

namespace espalier::export_detail {
namespace {

namespace fs = std::filesystem;

constexpr int kMaxDepth = 8;

constexpr std::array<std::string_view, 19> kWeightEndings{
    ".safetensors", ".bin",  ".pt",   ".pth",       ".gguf",      ".ggml", ".h5",
    ".msgpack",     ".ot",   ".onnx", ".onnx_data", ".ckpt",      ".npz",  ".tflite",
    ".distcp",      ".nemo", ".pkl",  ".mlmodel",   ".index.json"};

constexpr std::array<std::string_view, 5> kWrittenByUs{kConfigFile, kCardFile, kPlanFile,
                                                       kProvenanceFile, kModelingFile};

/// A directory with one of these is a model or a run of its own.
constexpr std::array<const char*, 4> kOwnMarks{"config.json", "adapter_config.json", "status.json",
                                               "owner.json"};

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

bool is_copied(const std::string& name) {
  if (std::find(kWrittenByUs.begin(), kWrittenByUs.end(), name) != kWrittenByUs.end()) return false;
  const std::string small = lower(name);
  return std::none_of(kWeightEndings.begin(), kWeightEndings.end(),
                      [&](std::string_view ending) { return small.ends_with(ending); });
}

bool is_entered(const fs::path& directory) {
  const std::string name = directory.filename().string();
  if (name.starts_with(".") || name == "original" || name == "onnx" || name == "__pycache__")
    return false;
  return std::none_of(kOwnMarks.begin(), kOwnMarks.end(), [&](const char* mark) {
    std::error_code failure;
    return fs::exists(directory / mark, failure);
  });
}

void collect(const fs::path& root, const fs::path& relative, int depth,
             std::vector<fs::path>& files) {
  std::error_code failure;
  fs::directory_iterator at(root / relative, failure);
  for (; !failure && at != fs::directory_iterator(); at.increment(failure)) {
    const fs::path name = at->path().filename();
    std::error_code unreadable;
    // Links to files are followed (hub caches consist of them), links to directories are not.
    if (at->is_regular_file(unreadable)) {
      if (is_copied(name.string())) files.push_back(relative / name);
    } else if (fs::is_directory(at->symlink_status(unreadable)) && depth < kMaxDepth &&
               is_entered(at->path())) {
      collect(root, relative / name, depth + 1, files);
    }
  }
  if (failure)
    throw Error(
        failure == std::errc::permission_denied ? ExitCode::permission : ExitCode::missing_input,
        fmt::format("cannot list {}", (root / relative).string()), failure.message());
}

}  // namespace

std::vector<fs::path> files_to_copy(const fs::path& source) {
  std::vector<fs::path> files;
  collect(source, {}, 0, files);
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace espalier::export_detail
