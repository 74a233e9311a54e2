#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <optional>

#include <fmt/format.h>

#include "espalier/core/json.h"
#include "espalier/store/safetensors.h"
#include "posix.h"
#include "safetensors_format.h"

namespace espalier {
namespace {

using Json = nlohmann::ordered_json;
using posix::shown;

constexpr std::size_t kMostProblems = 20;
constexpr const char* kRemedy = "Download or export the checkpoint again.";

/// Collects what is wrong with one file; a hostile one must not produce a million lines.
class Complaints {
 public:
  explicit Complaints(std::string_view origin) : origin_(origin) {}

  void add(std::string what, std::string why) {
    if (count_++ < kMostProblems)
      problems_.add(ExitCode::bad_content, std::move(what), std::move(why), kRemedy, origin_);
  }
  void throw_if_any() {
    if (count_ > kMostProblems)
      problems_.add(ExitCode::bad_content, fmt::format("{} more problems", count_ - kMostProblems),
                    {}, {}, origin_);
    problems_.throw_if_any();
  }

 private:
  std::string origin_;
  Problems problems_;
  std::size_t count_ = 0;
};

[[noreturn]] void refuse(std::string_view origin, std::string what, std::string why) {
  throw Error(ExitCode::bad_content, std::move(what), std::move(why), kRemedy, std::string(origin));
}

std::optional<std::uint64_t> unsigned_of(const Json& value) {
  if (!value.is_number_integer()) return std::nullopt;
  if (value.is_number_unsigned()) return value.get<std::uint64_t>();
  if (value.get<std::int64_t>() < 0) return std::nullopt;
  return static_cast<std::uint64_t>(value.get<std::int64_t>());
}

/// Bytes of a tensor, or nothing when the product does not fit into 63 bits. Zero extents are left
/// out of the check, so that later products of any of the extents are safe as well.
std::optional<std::uint64_t> bytes_of(const TensorInfo& info) {
  std::uint64_t bytes = size_of(info.dtype);
  bool empty = false;
  for (const std::int64_t extent : info.shape) {
    empty = empty || extent == 0;
    const auto factor = static_cast<std::uint64_t>(std::max<std::int64_t>(extent, 1));
    if (__builtin_mul_overflow(bytes, factor, &bytes)) return std::nullopt;
  }
  if (bytes > std::numeric_limits<std::int64_t>::max()) return std::nullopt;
  return empty ? 0 : bytes;
}

std::string known_dtypes() {
  std::string list;
  for (int i = 0; i <= static_cast<int>(DType::f8_e5m2); ++i)
    list += (list.empty() ? "" : ", ") + std::string(safetensors_name(static_cast<DType>(i)));
  return list;
}

bool read_dtype(const Json& entry, const std::string& label, Complaints& complaints,
                TensorInfo& info) {
  const auto found = entry.find("dtype");
  if (found == entry.end() || !found->is_string()) {
    complaints.add(fmt::format("tensor {} has no dtype", label), "dtype must be a string");
    return false;
  }
  const auto dtype = dtype_from_safetensors(found->get_ref<const std::string&>());
  if (!dtype) {
    complaints.add(fmt::format("tensor {} has the unknown dtype {}", label,
                               shown(found->get_ref<const std::string&>())),
                   "known are " + known_dtypes());
    return false;
  }
  info.dtype = *dtype;
  return true;
}

bool read_shape(const Json& entry, const std::string& label, Complaints& complaints,
                TensorInfo& info) {
  const auto found = entry.find("shape");
  if (found == entry.end() || !found->is_array()) {
    complaints.add(fmt::format("tensor {} has no shape", label), "shape must be a list");
    return false;
  }
  for (const Json& extent : *found) {
    const auto value = unsigned_of(extent);
    if (!value || *value > std::numeric_limits<std::int64_t>::max()) {
      complaints.add(
          fmt::format("tensor {} has the extent {} in its shape", label, shown(json_text(extent))),
          "extents are integers from 0 to 2^63 - 1");
      return false;
    }
    info.shape.push_back(static_cast<std::int64_t>(*value));
  }
  return true;
}

bool read_offsets(const Json& entry, const std::string& label, std::uint64_t data_bytes,
                  Complaints& complaints, TensorInfo& info) {
  const auto found = entry.find("data_offsets");
  const bool pair = found != entry.end() && found->is_array() && found->size() == 2;
  const auto begin = pair ? unsigned_of((*found)[0]) : std::nullopt;
  const auto end = pair ? unsigned_of((*found)[1]) : std::nullopt;
  if (!begin || !end) {
    complaints.add(fmt::format("tensor {} has no data_offsets", label),
                   "data_offsets must be two non-negative integers");
    return false;
  }
  if (*begin > *end || *end > data_bytes) {
    complaints.add(fmt::format("tensor {} has data_offsets [{}, {}]", label, *begin, *end),
                   fmt::format("begin <= end <= {} bytes of data", data_bytes));
    return false;
  }
  info.begin = *begin;
  info.end = *end;
  return true;
}

bool read_tensor(const Json& entry, const std::string& name, std::uint64_t data_bytes,
                 Complaints& complaints, TensorInfo& info) {
  const std::string label = shown(name);
  if (!entry.is_object()) {
    complaints.add(fmt::format("tensor {} is not described by an object", label), "");
    return false;
  }
  // All three are read even after a failure, so that every problem is named.
  const bool dtype = read_dtype(entry, label, complaints, info);
  const bool shape = read_shape(entry, label, complaints, info);
  const bool offsets = read_offsets(entry, label, data_bytes, complaints, info);
  if (!dtype || !shape || !offsets) return false;
  const auto bytes = bytes_of(info);
  if (bytes && *bytes == info.end - info.begin) return true;
  complaints.add(fmt::format("tensor {} has {} bytes of data", label, info.end - info.begin),
                 bytes ? fmt::format("its dtype and shape need {}", *bytes)
                       : "the product of its shape and item size does not fit into 63 bits");
  return false;
}

void read_metadata(const Json& entry, Complaints& complaints,
                   std::map<std::string, std::string>& metadata) {
  if (!entry.is_object()) {
    complaints.add("__metadata__ is not an object", "it maps strings to strings");
    return;
  }
  for (const auto& [key, value] : entry.items()) {
    if (value.is_string())
      metadata[key] = value.get<std::string>();
    else
      complaints.add(fmt::format("__metadata__ entry {} is not a string", shown(key)),
                     "it maps strings to strings");
  }
}

/// Ranges in order of their place must join without hole or overlap from 0 to the last byte.
void check_cover(const std::map<std::string, TensorInfo>& tensors, std::uint64_t data_bytes,
                 Complaints& complaints) {
  std::vector<const std::pair<const std::string, TensorInfo>*> order;
  order.reserve(tensors.size());
  for (const auto& item : tensors) order.push_back(&item);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return std::tie(a->second.begin, a->second.end) < std::tie(b->second.begin, b->second.end);
  });
  std::uint64_t at = 0;
  std::string before = "the header";
  for (const auto* item : order) {
    const TensorInfo& info = item->second;
    if (info.begin != at)
      complaints.add(
          fmt::format("tensor {} begins at data byte {}, {} ends at {}", shown(item->first),
                      info.begin, before, at),
          info.begin < at ? "tensors must not overlap" : "no hole may be between tensors");
    at = std::max(at, info.end);
    before = shown(item->first);
  }
  if (at != data_bytes)
    complaints.add(fmt::format("the last tensor ends at data byte {} of {}", at, data_bytes),
                   "tensors must cover the file to its last byte");
}

}  // namespace

std::uint64_t safetensors_header_bytes(std::span<const std::byte> prefix, std::uint64_t file_bytes,
                                       std::string_view origin) {
  if (file_bytes < kSafetensorsPrefix || prefix.size() < kSafetensorsPrefix)
    refuse(origin, fmt::format("{} bytes are too few for a safetensors file", file_bytes),
           "it begins with 8 bytes that hold the header's length");
  static_assert(std::endian::native == std::endian::little);
  std::uint64_t length = 0;
  std::memcpy(&length, prefix.data(), sizeof length);
  // Compared without adding, so that a huge length cannot wrap around.
  if (length > file_bytes - kSafetensorsPrefix)
    refuse(origin,
           fmt::format("the header's length is {}, the file has {} bytes", length, file_bytes),
           "the file is cut off, or it is not a safetensors file");
  if (length < 2 || length > kSafetensorsHeaderLimit)
    refuse(origin, fmt::format("the header's length is {}", length),
           fmt::format("it must be from 2 to {}", kSafetensorsHeaderLimit));
  return length;
}

SafetensorsHeader parse_safetensors_header(std::span<const std::byte> head,
                                           std::uint64_t file_bytes, std::string_view origin) {
  const std::uint64_t length = safetensors_header_bytes(head, file_bytes, origin);
  ESPALIER_CHECK(head.size() - kSafetensorsPrefix >= length, "header not read whole");
  const std::string_view text(reinterpret_cast<const char*>(head.data()) + kSafetensorsPrefix,
                              static_cast<std::size_t>(length));
  if (text.front() != '{')
    refuse(origin, fmt::format("the header begins with {}", shown(text.substr(0, 1))),
           "it must begin with '{'");
  // A JSON reader may take NUL for the end of its input and never see what comes after it.
  if (text.find('\0') != std::string_view::npos)
    refuse(origin, "the header contains NUL", "only spaces may pad it");
  JsonLimits limits;
  limits.depth = 8;  // the format itself needs 3
  const Json root = parse_json(text, origin, limits);

  SafetensorsHeader header;
  header.data_begin = kSafetensorsPrefix + length;
  const std::uint64_t data_bytes = file_bytes - header.data_begin;
  Complaints complaints(origin);
  bool all_read = true;
  for (const auto& [name, entry] : root.items()) {
    if (name == "__metadata__") {
      read_metadata(entry, complaints, header.metadata);
      continue;
    }
    TensorInfo info;
    if (read_tensor(entry, name, data_bytes, complaints, info))
      header.tensors.emplace(name, std::move(info));
    else
      all_read = false;
  }
  // With a tensor left out every neighbour would seem to have a hole beside it.
  if (all_read) check_cover(header.tensors, data_bytes, complaints);
  complaints.throw_if_any();
  for (auto& [name, info] : header.tensors) {
    info.begin += header.data_begin;
    info.end += header.data_begin;
  }
  return header;
}

}  // namespace espalier
