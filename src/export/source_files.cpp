#include <algorithm>
#include <array>
#include <cctype>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>

#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/core/placeholder.h"
#include "export_parts.h"

namespace espalier::export_detail {
namespace {

namespace fs = std::filesystem;

constexpr int kMaxDepth = 8;

constexpr std::array<std::string_view, 22> kWeightEndings{
    ".safetensors", ".bin",       ".pt",         ".pth",       ".gguf",    ".ggml",
    ".h5",          ".msgpack",   ".ot",         ".onnx",      ".ckpt",    ".npz",
    ".tflite",      ".distcp",    ".nemo",       ".pkl",       ".mlmodel", ".data",
    ".engine",      ".onnx_data", ".incomplete", ".index.json"};

/// Files by which a loader would take the export for something else than it is.
struct Misleading {
  std::string_view begin, end;
  const char* reason;
};
constexpr const char* kSaysQuantized = "it says that the weights are quantized";
constexpr const char* kNeedsModules =
    "sentence-transformers would look for modules that the export does not have";
constexpr const char* kForeignCode = "config.json of the export does not name this code";
constexpr std::array<Misleading, 10> kMisleading{{
    {"adapter_config.json", "", "peft would load an adapter that the export does not have"},
    {"quantize_config.json", "", kSaysQuantized},
    {"quant_config.json", "", kSaysQuantized},
    {"hf_quant_config.json", "", kSaysQuantized},
    {"modules.json", "", kNeedsModules},
    {"sentence_bert_config.json", "", kNeedsModules},
    {"config_sentence_transformers.json", "", kNeedsModules},
    {"params.json", "", "it describes the unpruned model to loaders of its maker's form"},
    {"modeling_", ".py", kForeignCode},
    {"configuration_", ".py", kForeignCode},
}};

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

/// The index of any variant of the weights: model.safetensors.index.fp16.json.
bool is_index(const std::string& small) {
  return small.find(".index.") != std::string::npos && small.ends_with(".json");
}

bool is_copied(const std::string& name) {
  if (std::find(kWrittenByUs.begin(), kWrittenByUs.end(), name) != kWrittenByUs.end()) return false;
  const std::string small = lower(name);
  // No loader reads a hidden file, and some hold what is nobody else's business.
  return !small.starts_with(".") && !is_index(small) &&
         std::none_of(kWeightEndings.begin(), kWeightEndings.end(),
                      [&](std::string_view ending) { return small.ends_with(ending); });
}

/// Why a file of the source's own directory must not stand beside the export's weights, or null.
const char* misleading_reason(const std::string& name, bool code_is_used) {
  for (const Misleading& row : kMisleading) {
    const bool matches = row.end.empty() ? name == row.begin
                                         : name.starts_with(row.begin) && name.ends_with(row.end);
    if (matches && !(code_is_used && row.reason == kForeignCode)) return row.reason;
  }
  return nullptr;
}

std::string first_bytes(const fs::path& file, std::size_t most) {
  std::ifstream stream(file, std::ios::binary);
  std::string head(most, '\0');
  stream.read(head.data(), static_cast<std::streamsize>(most));
  head.resize(static_cast<std::size_t>(stream.gcount()));
  return head;
}

/// What stands in the place of a file, when it is surely not the file: a page is no JSON.
std::optional<Placeholder> placeholder_at(const fs::path& file) {
  std::error_code failure;
  const std::uintmax_t size = fs::file_size(file, failure);
  if (failure || size == 0) return std::nullopt;
  auto found = find_placeholder(first_bytes(file, 1024), size);
  if (found && found->kind == Placeholder::Kind::page && file.extension() != ".json")
    return std::nullopt;
  return found;
}

/// Whether the tokenizer brings code of its own, which may import any other file of code.
bool tokenizer_has_code(const fs::path& source) {
  return first_bytes(source / "tokenizer_config.json", std::size_t{16} << 20)
             .find("\"auto_map\"") != std::string::npos;
}

bool is_entered(const fs::path& directory) {
  const std::string name = directory.filename().string();
  if (name.starts_with(".") || name == "original" || name == "onnx" || name == "openvino" ||
      name == "coreml" || name == "__pycache__")
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

std::vector<fs::path> files_to_copy(const fs::path& source, std::vector<std::string>& notes) {
  std::vector<fs::path> files, kept;
  collect(source, {}, 0, files);
  std::sort(files.begin(), files.end());
  const bool code_is_used = tokenizer_has_code(source);
  for (const fs::path& file : files) {
    const char* reason =
        file.has_parent_path() ? nullptr : misleading_reason(file.string(), code_is_used);
    const auto placeholder = placeholder_at(source / file);
    if (reason != nullptr)
      notes.push_back(fmt::format("{} is left out: {}.", file.string(), reason));
    else if (placeholder)
      notes.push_back(fmt::format("{} is left out: {}. {} Then copy it into the export.",
                                  file.string(), placeholder->what, placeholder->remedy));
    else
      kept.push_back(file);
  }
  return kept;
}

}  // namespace espalier::export_detail
