#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>
#include <string_view>
#include <type_traits>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "espalier/core/error.h"
#include "espalier/core/text.h"
#include "espalier/store/hdf5_file.h"
#include "hdf5_dataset.h"
#include "hdf5_handle.h"
#include "posix.h"

namespace espalier {
namespace {

using h5::Dataset;
using h5::Id;
using h5::refuse;
using posix::shown;

constexpr std::int64_t kMostAttributeValues = std::int64_t{1} << 20;
constexpr std::size_t kMostStringBytes = std::size_t{1} << 20;
constexpr std::int64_t kMostTexts = std::int64_t{1} << 24;
constexpr std::size_t kMostTextBytes = std::size_t{1} << 30;

template <class T>
hid_t native() {
  if constexpr (std::is_same_v<T, std::uint8_t>) return H5T_NATIVE_UINT8;
  if constexpr (std::is_same_v<T, std::int32_t>) return H5T_NATIVE_INT32;
  if constexpr (std::is_same_v<T, std::int64_t>) return H5T_NATIVE_INT64;
  if constexpr (std::is_same_v<T, std::uint64_t>) return H5T_NATIVE_UINT64;
  if constexpr (std::is_same_v<T, double>) return H5T_NATIVE_DOUBLE;
}

/// Whether every value of the stored integer type fits into T.
template <class T>
bool always_fits(hid_t type) {
  const std::size_t size = H5Tget_size(type);
  if (H5Tget_sign(type) != H5T_SGN_NONE) return std::is_signed_v<T> && size <= sizeof(T);
  return size < sizeof(T) || (size == sizeof(T) && !std::is_signed_v<T>);
}

/// Copies `wide` to `out`, refusing values that T cannot hold: libhdf5's own conversion would
/// clamp.
template <class T, class Wide>
void narrow(const std::vector<Wide>& wide, std::span<T> out, const std::string& object,
            const std::string& origin) {
  for (std::size_t i = 0; i < wide.size(); ++i) {
    if (!std::in_range<T>(wide[i]))
      refuse(origin, fmt::format("{} holds {} at place {}", object, wide[i], i),
             fmt::format("values from {} to {} fit", std::numeric_limits<T>::min(),
                         std::numeric_limits<T>::max()));
    out[i] = static_cast<T>(wide[i]);
  }
}

/// `read(memory_type, buffer)` is the libhdf5 call; T is an integer type.
template <class T, class Read>
void read_checked(hid_t type, std::span<T> out, const std::string& object,
                  const std::string& origin, const Read& read) {
  if (always_fits<T>(type)) {
    if (read(native<T>(), out.data()) < 0) refuse(origin, object + " cannot be read");
  } else if (H5Tget_sign(type) == H5T_SGN_NONE) {
    std::vector<std::uint64_t> wide(out.size());
    if (read(native<std::uint64_t>(), wide.data()) < 0) refuse(origin, object + " cannot be read");
    narrow<T>(wide, out, object, origin);
  } else {
    std::vector<std::int64_t> wide(out.size());
    if (read(native<std::int64_t>(), wide.data()) < 0) refuse(origin, object + " cannot be read");
    narrow<T>(wide, out, object, origin);
  }
}

/// Text goes into messages, logs and JSON: UTF-8 without control characters.
bool is_text(std::string_view text) {
  while (!text.empty()) {
    const std::size_t length = character_bytes(text);
    if (length == 0 || is_control(text.front())) return false;
    text.remove_prefix(length);
  }
  return true;
}

struct Attribute {
  Id id;
  Id type;
  std::string object;  // for messages
  std::size_t count = 0;
};

/// Strings of an attribute or a dataset, before they are read.
struct StoredStrings {
  hid_t type = H5I_INVALID_HID;
  std::string object;  // for messages
  std::size_t count = 0;
  std::size_t most_bytes = 0;  // of all together, where each takes the same
};

}  // namespace

struct Hdf5Reader::State {
  std::string origin;
  Id file;
  // Validated once; open datasets keep their chunk cache. Closed before the file.
  mutable std::map<std::string, Dataset> datasets;

  void open(const char* name, unsigned flags, const Id& access);
  bool has(const std::string& path) const;
  const Dataset& dataset(const std::string& path) const;
  template <class T>
  Array<T> read_integers(const std::string& path) const;
  template <class T>
  Array<T> read_rows(const std::string& path, std::span<const std::int64_t> rows) const;

  Attribute attribute(const std::string& path, const std::string& name, bool single) const;
  // `read(memory_type, buffer)` is the libhdf5 call.
  template <class Read>
  std::vector<std::string> strings(const StoredStrings& stored, const Read& read) const;
  template <class Read>
  std::vector<std::string> variable_strings(const StoredStrings& stored, const Read& read) const;
  template <class Read>
  std::vector<std::string> fixed_strings(const StoredStrings& stored, const Read& read) const;
  std::vector<std::string> attribute_texts(const Attribute& attribute) const;
  std::vector<std::string> dataset_texts(const std::string& path) const;
  std::vector<double> floats(const Attribute& attribute) const;
};

void Hdf5Reader::State::open(const char* name, unsigned flags, const Id& access) {
  const auto opened = posix::restarted([&] {
    errno = 0;  // the library leaves what the call said
    return H5Fopen(name, flags, access.get());
  });
  file = Id{opened, H5Fclose};
  if (file.get() < 0) refuse(origin, "not a whole HDF5 file");
}

bool Hdf5Reader::State::has(const std::string& path) const {
  const Id access = h5::inside_only(H5P_LINK_ACCESS, origin);
  // libhdf5 asks about one link at a time: all groups above must be known to exist.
  for (std::size_t slash = path.find('/', 1);; slash = path.find('/', slash + 1)) {
    const std::string part = path.substr(0, slash);
    if (part.empty() || part == "/") return true;
    const htri_t link = H5Lexists(file.get(), part.c_str(), access.get());
    if (link < 0) refuse(origin, fmt::format("the link {} cannot be followed", shown(part)));
    if (link == 0) return false;
    const htri_t object = H5Oexists_by_name(file.get(), part.c_str(), access.get());
    if (object < 0) refuse(origin, fmt::format("the link {} cannot be followed", shown(part)));
    if (object == 0) return false;
    if (slash == std::string::npos) return true;
  }
}

const Dataset& Hdf5Reader::State::dataset(const std::string& path) const {
  const auto found = datasets.find(path);
  if (found != datasets.end()) return found->second;
  if (!has(path))
    refuse(origin, fmt::format("there is no dataset {}", shown(path)), "it is required");
  return datasets.emplace(path, h5::open_dataset(file.get(), path, origin)).first->second;
}

template <class T>
Array<T> Hdf5Reader::State::read_integers(const std::string& path) const {
  const Dataset& set = dataset(path);
  const std::string object = "dataset " + shown(path);
  h5::require_integer(set.type.get(), object, origin);
  Array<T> array{set.shape, std::vector<T>(static_cast<std::size_t>(set.count))};
  if (set.count == 0) return array;
  read_checked<T>(set.type.get(), array.values, object, origin, [&](hid_t type, void* to) {
    return H5Dread(set.id.get(), type, H5S_ALL, H5S_ALL, H5P_DEFAULT, to);
  });
  return array;
}

/// Reads rows in ascending order, one hyperslab for each run of consecutive rows, so that every
/// chunk is met once; then puts them in the order asked for.
template <class T>
Array<T> Hdf5Reader::State::read_rows(const std::string& path,
                                      std::span<const std::int64_t> rows) const {
  const Dataset& set = dataset(path);
  const std::string object = "dataset " + shown(path);
  h5::require_integer(set.type.get(), object, origin);
  if (set.shape.empty()) refuse(origin, object + " has no rows", "it is a single value");
  std::int64_t width = 1;
  for (std::size_t i = 1; i < set.shape.size(); ++i) width *= set.shape[i];
  Array<T> array{set.shape, {}};
  array.shape.front() = static_cast<std::int64_t>(rows.size());
  array.values.resize(rows.size() * static_cast<std::size_t>(width));
  for (const std::int64_t row : rows)
    if (row < 0 || row >= set.shape.front())
      ESPALIER_CHECK(false, fmt::format("row {} of {} in {}", row, set.shape.front(), object));
  if (array.values.empty()) return array;

  std::vector<std::size_t> order(rows.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return rows[a] < rows[b]; });
  std::vector<hsize_t> start(set.shape.size(), 0);
  std::vector<hsize_t> extent(set.shape.begin(), set.shape.end());
  const Id space{H5Dget_space(set.id.get()), H5Sclose};
  if (space.get() < 0) refuse(origin, object + " cannot be described");
  std::vector<T> block;
  for (std::size_t begin = 0; begin < order.size();) {
    std::size_t end = begin + 1;
    while (end < order.size() && rows[order[end]] - rows[order[end - 1]] <= 1) ++end;
    const std::int64_t first = rows[order[begin]];
    const std::int64_t count = rows[order[end - 1]] - first + 1;
    start.front() = static_cast<hsize_t>(first);
    extent.front() = static_cast<hsize_t>(count);
    block.resize(static_cast<std::size_t>(count * width));
    const hsize_t length = block.size();
    const Id memory{H5Screate_simple(1, &length, nullptr), H5Sclose};
    if (memory.get() < 0 || H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, start.data(), nullptr,
                                                extent.data(), nullptr) < 0)
      refuse(origin,
             fmt::format("rows [{}, {}) of {} cannot be selected", first, first + count, object));
    read_checked<T>(set.type.get(), std::span<T>(block), object, origin, [&](hid_t type, void* to) {
      return H5Dread(set.id.get(), type, memory.get(), space.get(), H5P_DEFAULT, to);
    });
    for (; begin < end; ++begin)
      std::copy_n(block.begin() + (rows[order[begin]] - first) * width, width,
                  array.values.begin() + static_cast<std::ptrdiff_t>(order[begin]) * width);
  }
  return array;
}

Attribute Hdf5Reader::State::attribute(const std::string& path, const std::string& name,
                                       bool single) const {
  Attribute found;
  found.object = fmt::format("attribute {} of {}", shown(name), shown(path));
  const Id access = h5::inside_only(H5P_LINK_ACCESS, origin);
  found.id = Id{H5Aopen_by_name(file.get(), path.c_str(), name.c_str(), H5P_DEFAULT, access.get()),
                H5Aclose};
  if (found.id.get() < 0) refuse(origin, "there is no " + found.object);
  found.type = Id{H5Aget_type(found.id.get()), H5Tclose};
  const Id space{H5Aget_space(found.id.get()), H5Sclose};
  if (found.type.get() < 0 || space.get() < 0)
    refuse(origin, found.object + " cannot be described");
  const std::vector<hsize_t> dims = h5::dims_of(space.get(), found.object, origin);
  const std::int64_t count = h5::count_of(dims, found.object, origin);
  if (count > kMostAttributeValues || (single && count != 1))
    refuse(origin, fmt::format("{} holds {} values", found.object, count),
           single ? "one is expected" : fmt::format("at most {}", kMostAttributeValues));
  found.count = static_cast<std::size_t>(count);
  return found;
}

template <class Read>
std::vector<std::string> Hdf5Reader::State::variable_strings(const StoredStrings& stored,
                                                             const Read& read) const {
  const Id memory{H5Tcopy(H5T_C_S1), H5Tclose};
  if (memory.get() < 0 || H5Tset_size(memory.get(), H5T_VARIABLE) < 0 ||
      H5Tset_cset(memory.get(), H5Tget_cset(stored.type)) < 0)
    refuse(origin, stored.object + " cannot be read");
  std::vector<char*> pointers(stored.count, nullptr);
  const herr_t result = read(memory.get(), pointers.data());
  std::string reason = result < 0 ? h5::words() : "";
  std::vector<std::string> values;
  for (char* pointer : pointers) {
    values.emplace_back(pointer == nullptr ? "" : pointer);
    H5free_memory(pointer);
  }
  if (result < 0) refuse(origin, stored.object + " cannot be read", std::move(reason));
  return values;
}

template <class Read>
std::vector<std::string> Hdf5Reader::State::fixed_strings(const StoredStrings& stored,
                                                          const Read& read) const {
  const std::size_t size = H5Tget_size(stored.type);
  if (size == 0 || size > kMostStringBytes || size * stored.count > stored.most_bytes)
    refuse(origin,
           fmt::format("{} holds {} strings of {} bytes", stored.object, stored.count, size),
           fmt::format("at most {} bytes each and {} together are read here", kMostStringBytes,
                       stored.most_bytes));
  std::vector<char> bytes(size * stored.count);
  if (read(stored.type, bytes.data()) < 0) refuse(origin, stored.object + " cannot be read");
  const bool spaces = H5Tget_strpad(stored.type) == H5T_STR_SPACEPAD;
  std::vector<std::string> values;
  for (std::size_t i = 0; i < stored.count; ++i) {
    std::string value(bytes.data() + i * size, ::strnlen(bytes.data() + i * size, size));
    while (spaces && !value.empty() && value.back() == ' ') value.pop_back();
    values.push_back(std::move(value));
  }
  return values;
}

template <class Read>
std::vector<std::string> Hdf5Reader::State::strings(const StoredStrings& stored,
                                                    const Read& read) const {
  if (H5Tget_class(stored.type) != H5T_STRING)
    refuse(origin, stored.object + " is not a string or a list of them",
           "fixed or variable length");
  if (stored.count == 0) return {};
  return H5Tis_variable_str(stored.type) > 0 ? variable_strings(stored, read)
                                             : fixed_strings(stored, read);
}

std::vector<std::string> Hdf5Reader::State::attribute_texts(const Attribute& attribute) const {
  std::vector<std::string> values =
      strings({attribute.type.get(), attribute.object, attribute.count, kMostStringBytes * 16},
              [&](hid_t type, void* to) { return H5Aread(attribute.id.get(), type, to); });
  for (const std::string& value : values)
    if (!is_text(value))
      refuse(origin, attribute.object + " is no text",
             "UTF-8 without control characters is read here");
  return values;
}

std::vector<std::string> Hdf5Reader::State::dataset_texts(const std::string& path) const {
  const Dataset& set = dataset(path);
  const std::string object = "dataset " + shown(path);
  if (set.shape.size() != 1 || set.count > kMostTexts)
    refuse(origin, fmt::format("{} has the shape [{}]", object, fmt::join(set.shape, ", ")),
           fmt::format("a list of at most {} texts is read here", kMostTexts));
  std::vector<std::string> values =
      strings({set.type.get(), object, static_cast<std::size_t>(set.count), kMostTextBytes},
              [&](hid_t type, void* to) {
                return H5Dread(set.id.get(), type, H5S_ALL, H5S_ALL, H5P_DEFAULT, to);
              });
  for (std::size_t i = 0; i < values.size(); ++i)
    if (const std::size_t at = first_invalid_utf8(values[i]); at != std::string::npos)
      refuse(origin, fmt::format("{} is no text at place {}, byte {}", object, i, at),
             "UTF-8 is read here");
  return values;
}

std::vector<double> Hdf5Reader::State::floats(const Attribute& attribute) const {
  h5::require_float(attribute.type.get(), attribute.object, origin);
  std::vector<double> values(attribute.count);
  if (!values.empty() && H5Aread(attribute.id.get(), native<double>(), values.data()) < 0)
    refuse(origin, attribute.object + " cannot be read");
  return values;
}

Hdf5Reader Hdf5Reader::open(const std::filesystem::path& path) {
  h5::prepare();
  // Names what is wrong when it is missing, not permitted or no file at all.
  posix::open_regular(path);
  auto state = std::make_unique<State>();
  state->origin = path.string();
  const Id access{H5Pcreate(H5P_FILE_ACCESS), H5Pclose};
  // A file that is only read needs no lock, and many network file systems have none.
  if (access.get() < 0 || H5Pset_file_locking(access.get(), false, true) < 0)
    refuse(state->origin, "no property list for reading");
  state->open(path.c_str(), H5F_ACC_RDONLY, access);
  return Hdf5Reader(std::move(state));
}

Hdf5Reader Hdf5Reader::from_image(std::span<const std::byte> image, std::string origin) {
  h5::prepare();
  auto state = std::make_unique<State>();
  state->origin = std::move(origin);
  if (image.empty()) refuse(state->origin, "an HDF5 file without bytes", "it is cut off");
  const Id access{H5Pcreate(H5P_FILE_ACCESS), H5Pclose};
  if (access.get() < 0 || H5Pset_fapl_core(access.get(), std::size_t{1} << 20, 0) < 0)
    refuse(state->origin, "no property list for reading");
  // libhdf5 copies the bytes and does not write to them, whatever its signature says.
  if (H5Pset_file_image(access.get(), const_cast<std::byte*>(image.data()), image.size()) < 0)
    refuse(state->origin, "the bytes cannot be taken as a file");
  state->open(h5::image_name().c_str(), H5F_ACC_RDONLY, access);
  return Hdf5Reader(std::move(state));
}

Hdf5Reader::Hdf5Reader(std::unique_ptr<State> state) : state_(std::move(state)) {}
Hdf5Reader::Hdf5Reader(Hdf5Reader&&) noexcept = default;
Hdf5Reader& Hdf5Reader::operator=(Hdf5Reader&&) noexcept = default;
Hdf5Reader::~Hdf5Reader() = default;

bool Hdf5Reader::has(const std::string& path) const { return state_->has(path); }
std::vector<std::int64_t> Hdf5Reader::shape(const std::string& path) const {
  return state_->dataset(path).shape;
}
Array<std::int32_t> Hdf5Reader::read_i32(const std::string& path) const {
  return state_->read_integers<std::int32_t>(path);
}
Array<std::int64_t> Hdf5Reader::read_i64(const std::string& path) const {
  return state_->read_integers<std::int64_t>(path);
}
Array<std::uint8_t> Hdf5Reader::read_u8(const std::string& path) const {
  return state_->read_integers<std::uint8_t>(path);
}
Array<double> Hdf5Reader::read_f64(const std::string& path) const {
  const Dataset& set = state_->dataset(path);
  const std::string object = "dataset " + shown(path);
  h5::require_float(set.type.get(), object, state_->origin);
  Array<double> array{set.shape, std::vector<double>(static_cast<std::size_t>(set.count))};
  if (set.count > 0 && H5Dread(set.id.get(), native<double>(), H5S_ALL, H5S_ALL, H5P_DEFAULT,
                               array.values.data()) < 0)
    refuse(state_->origin, object + " cannot be read");
  return array;
}
std::vector<std::string> Hdf5Reader::read_texts(const std::string& path) const {
  return state_->dataset_texts(path);
}
Array<std::int32_t> Hdf5Reader::read_rows_i32(const std::string& path,
                                              std::span<const std::int64_t> rows) const {
  return state_->read_rows<std::int32_t>(path, rows);
}
Array<std::uint8_t> Hdf5Reader::read_rows_u8(const std::string& path,
                                             std::span<const std::int64_t> rows) const {
  return state_->read_rows<std::uint8_t>(path, rows);
}

bool Hdf5Reader::has_attribute(const std::string& path, const std::string& name) const {
  if (!state_->has(path)) return false;
  const Id access = h5::inside_only(H5P_LINK_ACCESS, state_->origin);
  const htri_t found =
      H5Aexists_by_name(state_->file.get(), path.c_str(), name.c_str(), access.get());
  if (found < 0)
    refuse(state_->origin, fmt::format("the attributes of {} cannot be read", shown(path)));
  return found > 0;
}
std::string Hdf5Reader::attribute_string(const std::string& path, const std::string& name) const {
  return state_->attribute_texts(state_->attribute(path, name, true)).front();
}
std::int64_t Hdf5Reader::attribute_i64(const std::string& path, const std::string& name) const {
  const Attribute found = state_->attribute(path, name, true);
  h5::require_integer(found.type.get(), found.object, state_->origin);
  std::int64_t value = 0;
  read_checked<std::int64_t>(
      found.type.get(), std::span(&value, 1), found.object, state_->origin,
      [&](hid_t type, void* to) { return H5Aread(found.id.get(), type, to); });
  return value;
}
std::vector<std::int64_t> Hdf5Reader::attribute_i64s(const std::string& path,
                                                     const std::string& name) const {
  const Attribute found = state_->attribute(path, name, false);
  h5::require_integer(found.type.get(), found.object, state_->origin);
  std::vector<std::int64_t> values(found.count);
  if (values.empty()) return values;
  read_checked<std::int64_t>(
      found.type.get(), std::span(values), found.object, state_->origin,
      [&](hid_t type, void* to) { return H5Aread(found.id.get(), type, to); });
  return values;
}
double Hdf5Reader::attribute_f64(const std::string& path, const std::string& name) const {
  return state_->floats(state_->attribute(path, name, true)).front();
}
std::vector<std::string> Hdf5Reader::attribute_strings(const std::string& path,
                                                       const std::string& name) const {
  return state_->attribute_texts(state_->attribute(path, name, false));
}
std::vector<double> Hdf5Reader::attribute_f64s(const std::string& path,
                                               const std::string& name) const {
  return state_->floats(state_->attribute(path, name, false));
}

}  // namespace espalier
