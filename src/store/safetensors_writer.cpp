#include <limits>
#include <set>

#include <fmt/format.h>

#include "espalier/core/json.h"
#include "espalier/store/files.h"
#include "espalier/store/safetensors.h"
#include "posix.h"
#include "safetensors_format.h"

namespace espalier {
namespace {

using Json = nlohmann::ordered_json;

std::uint64_t bytes_of(const SafetensorsWriter::Entry& entry) {
  std::uint64_t bytes = size_of(entry.dtype);
  for (const std::int64_t extent : entry.shape) {
    ESPALIER_CHECK(
        extent >= 0 && !__builtin_mul_overflow(bytes, static_cast<std::uint64_t>(extent), &bytes),
        fmt::format("extent {} of tensor {}", extent, posix::shown(entry.name)));
  }
  return bytes;
}

/// Length field and JSON, padded with spaces so that the data begins at a multiple of 8 bytes.
std::string layout_header(const std::vector<SafetensorsWriter::Entry>& entries,
                          const std::map<std::string, std::string>& metadata) {
  Json root = Json::object();
  if (!metadata.empty()) root["__metadata__"] = metadata;
  auto& object = root.get_ref<Json::object_t&>();
  auto& items = static_cast<std::vector<std::pair<const std::string, Json>>&>(object);
  std::set<std::string> names{"__metadata__"};
  std::uint64_t at = 0;
  for (const SafetensorsWriter::Entry& entry : entries) {
    ESPALIER_CHECK(names.insert(entry.name).second,
                   fmt::format("tensor {} is given twice", posix::shown(entry.name)));
    const std::uint64_t end = at + bytes_of(entry);
    // Appended without the ordered map's linear search: there may be tens of thousands.
    items.emplace_back(entry.name, Json{{"dtype", safetensors_name(entry.dtype)},
                                        {"shape", entry.shape},
                                        {"data_offsets", {at, end}}});
    at = end;
  }
  std::string text = json_text(root);
  text.append((8 - text.size() % 8) % 8, ' ');
  ESPALIER_CHECK(text.size() <= kSafetensorsHeaderLimit,
                 fmt::format("a header of {} bytes", text.size()));
  std::string header(kSafetensorsPrefix, '\0');
  for (std::size_t i = 0; i < header.size(); ++i)
    header[i] = static_cast<char>((text.size() >> (8 * i)) & 0xffU);
  return header + text;
}

}  // namespace

struct SafetensorsWriter::State {
  State(const std::filesystem::path& path, std::vector<Entry> list, const std::string& header,
        std::uint64_t data_bytes, WriteScope scope)
      : entries(std::move(list)), file(path, scope, header.size() + data_bytes) {
    file.write(std::as_bytes(std::span(header)));
    open_current();
  }
  bool done() const { return current == entries.size(); }
  /// Takes up the next tensor that has bytes.
  void open_current() {
    while (!done() && (left = bytes_of(entries[current])) == 0) ++current;
  }

  std::vector<Entry> entries;
  std::size_t current = 0;  // the tensor that bytes are expected for
  std::uint64_t left = 0;   // bytes of it still to come
  posix::OutputFile file;
};

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path, std::vector<Entry> entries,
                                     const std::map<std::string, std::string>& metadata,
                                     WriteScope scope) {
  std::uint64_t data_bytes = 0;
  for (const Entry& entry : entries) data_bytes += bytes_of(entry);
  const std::string header = layout_header(entries, metadata);
  require_free_space(path.has_parent_path() ? path.parent_path() : ".", header.size() + data_bytes);
  state_ = std::make_unique<State>(path, std::move(entries), header, data_bytes, scope);
}

SafetensorsWriter::~SafetensorsWriter() = default;

void SafetensorsWriter::write(std::string_view name, std::span<const std::byte> bytes) {
  State& s = *state_;
  if (bytes.empty()) return;
  ESPALIER_CHECK(!s.done(), fmt::format("bytes of {} after the last tensor", posix::shown(name)));
  const Entry& entry = s.entries[s.current];
  ESPALIER_CHECK(entry.name == name, fmt::format("bytes of {} where {} is due", posix::shown(name),
                                                 posix::shown(entry.name)));
  ESPALIER_CHECK(bytes.size() <= s.left, fmt::format("{} bytes of {} where {} are left",
                                                     bytes.size(), posix::shown(name), s.left));
  s.file.write(bytes);
  s.left -= bytes.size();
  if (s.left == 0) {
    ++s.current;
    s.open_current();
  }
}

std::string SafetensorsWriter::finish() {
  State& s = *state_;
  ESPALIER_CHECK(s.done(), fmt::format("{} bytes of {} are missing", s.left,
                                       posix::shown(s.done() ? "" : s.entries[s.current].name)));
  return s.file.finish();
}

}  // namespace espalier
