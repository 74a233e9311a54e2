#include "espalier/calib/generation_file.h"

#include <algorithm>
#include <functional>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "espalier/core/error.h"
#include "espalier/core/json.h"
#include "espalier/core/remedy.h"
#include "espalier/core/text.h"

namespace espalier {
namespace {

constexpr const char* kRemedy =
    "Write the file with launch/tokenize.py and its form for exact match.";

[[noreturn]] void bad(const std::filesystem::path& path, const std::string& what,
                      const std::string& why = {}) {
  throw Error(ExitCode::bad_content, what, why, kRemedy, path.string());
}

std::vector<std::string> stop_texts(const std::string& json, const std::filesystem::path& path) {
  const nlohmann::ordered_json list = parse_json(json, path.string() + ": attribute stop");
  if (!list.is_array())
    bad(path, "attribute stop is no list", "a JSON list of texts at which an answer ends");
  std::vector<std::string> texts;
  for (const auto& text : list) {
    if (!text.is_string() || text.get_ref<const std::string&>().empty())
      bad(path, fmt::format("entry {} of attribute stop is no text, or an empty one", texts.size()),
          "a JSON list of texts at which an answer ends");
    texts.push_back(text.get<std::string>());
  }
  return texts;
}

}  // namespace

GenerationFile GenerationFile::open(const std::filesystem::path& path, std::int64_t vocabulary) {
  GenerationFile file(TokenFile::open(path, vocabulary, Counting::nothing));
  const Hdf5Reader reader = Hdf5Reader::open(path);
  Problems problems;
  const auto collect = [&](const std::function<void()>& work) {
    problems.add(problems_of([&] { with_remedy(kRemedy, work); }));
  };
  collect([&] {
    if (!reader.has_attribute("/", "task") || reader.attribute_string("/", "task") != "exact_match")
      bad(path, "this file holds no prompts with answers", "attribute task is not 'exact_match'");
  });
  collect([&] { file.prompt_tokens_ = file.prompts_.lengths(); });
  collect([&] { file.read_answers(reader); });
  collect([&] { file.read_pieces(reader); });
  collect([&] { file.read_ends(reader, vocabulary); });
  problems.throw_if_any();
  return file;
}

void GenerationFile::read_answers(const Hdf5Reader& reader) {
  answers_ = reader.read_texts("/answer");
  const std::filesystem::path& path = prompts_.path();
  if (static_cast<std::int64_t>(answers_.size()) != items())
    bad(path, fmt::format("/answer has {}", counted(answers_.size(), "entry", "entries")),
        fmt::format("there are {}", counted(items(), "prompt")));
  const auto empty = std::find(answers_.begin(), answers_.end(), std::string());
  if (empty != answers_.end())
    bad(path, fmt::format("/answer[{}] is empty", empty - answers_.begin()),
        "there is nothing to compare with");
}

void GenerationFile::read_pieces(const Hdf5Reader& reader) {
  const std::filesystem::path& path = prompts_.path();
  for (const char* name : {"/piece_bytes", "/piece_ends"})
    if (reader.shape(name).size() != 1)
      bad(path, fmt::format("{} has shape [{}], expected one axis", name,
                            fmt::join(reader.shape(name), ", ")));
  piece_bytes_ = reader.read_u8("/piece_bytes").values;
  piece_ends_ = reader.read_i64("/piece_ends").values;
  const auto bytes = static_cast<std::int64_t>(piece_bytes_.size());
  std::int64_t end = 0;
  for (std::size_t i = 0; i < piece_ends_.size(); end = piece_ends_[i++])
    if (piece_ends_[i] < end || piece_ends_[i] > bytes)
      bad(path, fmt::format("/piece_ends[{}] = {}", i, piece_ends_[i]),
          fmt::format("between {}, where the piece begins, and the {} of /piece_bytes", end,
                      counted(bytes, "byte")));
  if (end != bytes)
    bad(path, fmt::format("/piece_ends ends at {}", end),
        fmt::format("/piece_bytes has {}", counted(bytes, "byte")));
  // A model may have rows for more tokens than its tokenizer knows, a file not.
  const std::int64_t written_for = prompts_.origin().vocabulary.value_or(1);
  if (pieces() < written_for)
    bad(path, fmt::format("/piece_ends has {}", counted(pieces(), "entry", "entries")),
        fmt::format("the file's vocabulary has {}", counted(written_for, "token")));
}

void GenerationFile::read_ends(const Hdf5Reader& reader, std::int64_t vocabulary) {
  const std::filesystem::path& path = prompts_.path();
  if (reader.has_attribute("/", "stop"))
    stop_ = stop_texts(reader.attribute_string("/", "stop"), path);
  if (reader.has_attribute("/", "eos_ids")) eos_ids_ = reader.attribute_i64s("/", "eos_ids");
  std::sort(eos_ids_.begin(), eos_ids_.end());
  for (const std::int64_t id : eos_ids_)
    if (id < 0 || id >= vocabulary)
      bad(path, fmt::format("attribute eos_ids holds {}", id),
          fmt::format("the model's vocabulary has {}", counted(vocabulary, "token")));
}

std::string_view GenerationFile::piece(std::int64_t token) const {
  if (token < 0 || token >= pieces()) return {};
  const auto at = static_cast<std::size_t>(token);
  const std::int64_t begin = token == 0 ? 0 : piece_ends_[at - 1];
  return {reinterpret_cast<const char*>(piece_bytes_.data()) + begin,
          static_cast<std::size_t>(piece_ends_[at] - begin)};
}

bool GenerationFile::is_end(std::int64_t token) const {
  return std::binary_search(eos_ids_.begin(), eos_ids_.end(), token);
}

}  // namespace espalier
