#include <algorithm>
#include <cstdlib>
#include <cstring>

#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/store/hdf5_file.h"
#include "hdf5_handle.h"

namespace espalier {
namespace {

using h5::Id;

constexpr std::int64_t kChunkBytes = std::int64_t{1} << 20;
constexpr std::int64_t kCompressFrom = std::int64_t{64} << 10;  // below, a chunk's overhead eats it

[[noreturn]] void broken(const char* call, const std::string& path) {
  std::string reason = h5::words();
  throw Error(ExitCode::internal, fmt::format("{} failed while writing '{}'", call, path),
              std::move(reason), "This is a bug in espalier or too little memory.");
}

Id must(hid_t id, Id::Close close, const char* call, const std::string& path) {
  if (id < 0) broken(call, path);
  return {id, close};
}

void must(herr_t result, const char* call, const std::string& path) {
  if (result < 0) broken(call, path);
}

void check_path(const std::string& path) {
  ESPALIER_CHECK(
      path == "/" || (path.size() > 1 && path.front() == '/' && path.back() != '/' &&
                      path.find("//") == std::string::npos && path.find('\0') == std::string::npos),
      fmt::format("'{}' is not an absolute HDF5 path", path));
}

Id simple_space(const std::vector<hsize_t>& dims, const std::string& path) {
  const hid_t id = dims.empty()
                       ? H5Screate(H5S_SCALAR)
                       : H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr);
  return must(id, H5Sclose, "H5Screate", path);
}

/// As many leading rows as fit into one chunk; rows larger than that are cut along the next axis.
std::vector<hsize_t> chunk_of(const std::vector<hsize_t>& dims, std::size_t item) {
  std::vector<hsize_t> chunk = dims;
  const auto most = static_cast<hsize_t>(kChunkBytes) / item;
  for (std::size_t axis = 0; axis < dims.size(); ++axis) {
    hsize_t row = 1;
    for (std::size_t i = axis + 1; i < dims.size(); ++i) row *= dims[i];
    chunk[axis] = std::clamp<hsize_t>(most / row, 1, dims[axis]);
    if (chunk[axis] > 1) break;
  }
  return chunk;
}

Id string_type(const std::string& path) {
  Id type = must(H5Tcopy(H5T_C_S1), H5Tclose, "H5Tcopy", path);
  must(H5Tset_size(type.get(), H5T_VARIABLE), "H5Tset_size", path);
  must(H5Tset_cset(type.get(), H5T_CSET_UTF8), "H5Tset_cset", path);
  return type;
}

/// Takes the file's bytes when libhdf5 closes it. H5Fget_file_image of version 1.10 is no
/// substitute: it clears the flag "open for writing" in its copy but leaves the superblock's
/// checksum as it was.
struct Capture {
  std::vector<std::byte> image;
  std::size_t capacity = 0;

  void take(const void* memory) noexcept try {
    // Superblock of version 2 and 3: the end of the file stands at byte 28.
    constexpr std::size_t kEndOfFile = 28;
    std::uint64_t size = 0;
    if (capacity < kEndOfFile + sizeof size) return;
    std::memcpy(&size, static_cast<const std::byte*>(memory) + kEndOfFile, sizeof size);
    if (size > capacity) return;
    const auto* bytes = static_cast<const std::byte*>(memory);
    image.assign(bytes, bytes + size);
  } catch (...) {
    image.clear();  // out of memory: finish() reports that there is no image
  }
};

void* image_malloc(std::size_t size, H5FD_file_image_op_t, void* capture) {
  static_cast<Capture*>(capture)->capacity = size;
  return std::malloc(size);
}
void* image_memcpy(void* to, const void* from, std::size_t size, H5FD_file_image_op_t, void*) {
  return std::memcpy(to, from, size);
}
void* image_realloc(void* memory, std::size_t size, H5FD_file_image_op_t, void* capture) {
  static_cast<Capture*>(capture)->capacity = size;
  return std::realloc(memory, size);
}
herr_t image_free(void* memory, H5FD_file_image_op_t step, void* capture) {
  if (step == H5FD_FILE_IMAGE_OP_FILE_CLOSE) static_cast<Capture*>(capture)->take(memory);
  std::free(memory);
  return 0;
}
void* same_capture(void* capture) { return capture; }
herr_t keep_capture(void*) { return 0; }

}  // namespace

struct Hdf5Writer::State {
  State();
  void dataset(const std::string& path, hid_t memory_type, hid_t file_type, const void* values,
               std::size_t count, std::size_t item, const std::vector<std::int64_t>& shape);
  void attribute(const std::string& path, const std::string& name, hid_t memory_type,
                 hid_t file_type, const void* values, const std::vector<hsize_t>& dims);
  void strings(const std::string& path, const std::string& name,
               const std::vector<std::string>& values, const std::vector<hsize_t>& dims);
  bool has_link(const std::string& path) const;
  void make_groups(const std::string& path);
  Id dataset_properties(const std::string& path, const std::vector<hsize_t>& dims,
                        std::size_t item) const;

  Capture capture;  // outlives the file
  Id file;
  Id link_properties;
};

Hdf5Writer::State::State() {
  h5::prepare();
  const Id access = must(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, "H5Pcreate", "/");
  must(H5Pset_fapl_core(access.get(), static_cast<std::size_t>(kChunkBytes), 0), "H5Pset_fapl_core",
       "/");
  H5FD_file_image_callbacks_t callbacks{image_malloc, image_memcpy, image_realloc, image_free,
                                        same_capture, keep_capture, &capture};
  must(H5Pset_file_image_callbacks(access.get(), &callbacks), "H5Pset_file_image_callbacks", "/");
  // Object headers of version 1.8 carry checksums and hold attributes beyond 64 KiB.
  must(H5Pset_libver_bounds(access.get(), H5F_LIBVER_V18, H5F_LIBVER_V18), "H5Pset_libver_bounds",
       "/");
  const Id creation = must(H5Pcreate(H5P_FILE_CREATE), H5Pclose, "H5Pcreate", "/");
  must(H5Pset_obj_track_times(creation.get(), false), "H5Pset_obj_track_times", "/");
  file = must(H5Fcreate(h5::image_name().c_str(), H5F_ACC_EXCL, creation.get(), access.get()),
              H5Fclose, "H5Fcreate", "/");
  link_properties = must(H5Pcreate(H5P_LINK_CREATE), H5Pclose, "H5Pcreate", "/");
  must(H5Pset_char_encoding(link_properties.get(), H5T_CSET_UTF8), "H5Pset_char_encoding", "/");
}

/// Every group above `path` must exist.
bool Hdf5Writer::State::has_link(const std::string& path) const {
  if (path == "/") return true;
  const htri_t found = H5Lexists(file.get(), path.c_str(), H5P_DEFAULT);
  if (found < 0) broken("H5Lexists", path);
  return found > 0;
}

/// Makes every group above the object `path`.
void Hdf5Writer::State::make_groups(const std::string& path) {
  for (std::size_t slash = path.find('/', 1); slash != std::string::npos;
       slash = path.find('/', slash + 1)) {
    const std::string group = path.substr(0, slash);
    if (has_link(group)) continue;
    const Id properties = must(H5Pcreate(H5P_GROUP_CREATE), H5Pclose, "H5Pcreate", group);
    // Without times the same content gives the same bytes.
    must(H5Pset_obj_track_times(properties.get(), false), "H5Pset_obj_track_times", group);
    must(
        H5Gcreate2(file.get(), group.c_str(), link_properties.get(), properties.get(), H5P_DEFAULT),
        H5Gclose, "H5Gcreate2", group);
  }
}

Id Hdf5Writer::State::dataset_properties(const std::string& path, const std::vector<hsize_t>& dims,
                                         std::size_t item) const {
  Id properties = must(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, "H5Pcreate", path);
  must(H5Pset_obj_track_times(properties.get(), false), "H5Pset_obj_track_times", path);
  hsize_t count = 1;
  for (const hsize_t extent : dims) count *= extent;
  // Chunks exist neither for a scalar nor for an empty dataset.
  if (dims.empty() || count == 0) {
    must(H5Pset_layout(properties.get(), H5D_COMPACT), "H5Pset_layout", path);
    return properties;
  }
  const std::vector<hsize_t> chunk = chunk_of(dims, item);
  must(H5Pset_chunk(properties.get(), static_cast<int>(chunk.size()), chunk.data()), "H5Pset_chunk",
       path);
  if (count * item > static_cast<hsize_t>(kCompressFrom)) {
    must(H5Pset_shuffle(properties.get()), "H5Pset_shuffle", path);
    must(H5Pset_deflate(properties.get(), 1), "H5Pset_deflate", path);
  }
  must(H5Pset_fletcher32(properties.get()), "H5Pset_fletcher32", path);
  return properties;
}

void Hdf5Writer::State::dataset(const std::string& path, hid_t memory_type, hid_t file_type,
                                const void* values, std::size_t count, std::size_t item,
                                const std::vector<std::int64_t>& shape) {
  check_path(path);
  std::vector<hsize_t> dims;
  std::uint64_t product = 1;
  for (const std::int64_t extent : shape) {
    ESPALIER_CHECK(extent >= 0, fmt::format("extent {} of '{}'", extent, path));
    dims.push_back(static_cast<hsize_t>(extent));
    product *= static_cast<std::uint64_t>(extent);
  }
  ESPALIER_CHECK(product == count,
                 fmt::format("{} values for {} places of '{}'", count, product, path));
  make_groups(path);
  const Id space = simple_space(dims, path);
  const Id properties = dataset_properties(path, dims, item);
  Id set = must(H5Dcreate2(file.get(), path.c_str(), file_type, space.get(), link_properties.get(),
                           properties.get(), H5P_DEFAULT),
                H5Dclose, "H5Dcreate2", path);
  if (count > 0)
    must(H5Dwrite(set.get(), memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values), "H5Dwrite", path);
  must(set.close(), "H5Dclose", path);
}

void Hdf5Writer::State::attribute(const std::string& path, const std::string& name,
                                  hid_t memory_type, hid_t file_type, const void* values,
                                  const std::vector<hsize_t>& dims) {
  check_path(path);
  make_groups(path);
  if (!has_link(path)) make_groups(path + "/");
  const Id object = must(H5Oopen(file.get(), path.c_str(), H5P_DEFAULT), H5Oclose, "H5Oopen", path);
  const Id space = simple_space(dims, path);
  Id attribute =
      must(H5Acreate2(object.get(), name.c_str(), file_type, space.get(), H5P_DEFAULT, H5P_DEFAULT),
           H5Aclose, "H5Acreate2", path + "@" + name);
  if (dims.empty() || dims.front() > 0)
    must(H5Awrite(attribute.get(), memory_type, values), "H5Awrite", path + "@" + name);
  must(attribute.close(), "H5Aclose", path + "@" + name);
}

void Hdf5Writer::State::strings(const std::string& path, const std::string& name,
                                const std::vector<std::string>& values,
                                const std::vector<hsize_t>& dims) {
  std::vector<const char*> pointers;
  for (const std::string& value : values) {
    ESPALIER_CHECK(value.find('\0') == std::string::npos,
                   fmt::format("a string of {}@{} contains NUL", path, name));
    pointers.push_back(value.c_str());
  }
  const Id type = string_type(path);
  attribute(path, name, type.get(), type.get(), pointers.data(), dims);
}

Hdf5Writer::Hdf5Writer() : state_(std::make_unique<State>()) {}
Hdf5Writer::~Hdf5Writer() = default;

void Hdf5Writer::write(const std::string& path, std::span<const std::int32_t> values,
                       const std::vector<std::int64_t>& shape) {
  state_->dataset(path, H5T_NATIVE_INT32, H5T_STD_I32LE, values.data(), values.size(),
                  sizeof(std::int32_t), shape);
}
void Hdf5Writer::write(const std::string& path, std::span<const std::int64_t> values,
                       const std::vector<std::int64_t>& shape) {
  state_->dataset(path, H5T_NATIVE_INT64, H5T_STD_I64LE, values.data(), values.size(),
                  sizeof(std::int64_t), shape);
}
void Hdf5Writer::write(const std::string& path, std::span<const std::uint8_t> values,
                       const std::vector<std::int64_t>& shape) {
  state_->dataset(path, H5T_NATIVE_UINT8, H5T_STD_U8LE, values.data(), values.size(),
                  sizeof(std::uint8_t), shape);
}
void Hdf5Writer::write(const std::string& path, std::span<const float> values,
                       const std::vector<std::int64_t>& shape) {
  state_->dataset(path, H5T_NATIVE_FLOAT, H5T_IEEE_F32LE, values.data(), values.size(),
                  sizeof(float), shape);
}
void Hdf5Writer::write(const std::string& path, std::span<const double> values,
                       const std::vector<std::int64_t>& shape) {
  state_->dataset(path, H5T_NATIVE_DOUBLE, H5T_IEEE_F64LE, values.data(), values.size(),
                  sizeof(double), shape);
}

void Hdf5Writer::attribute(const std::string& path, const std::string& name,
                           const std::string& value) {
  state_->strings(path, name, {value}, {});
}
void Hdf5Writer::attribute(const std::string& path, const std::string& name, std::int64_t value) {
  state_->attribute(path, name, H5T_NATIVE_INT64, H5T_STD_I64LE, &value, {});
}
void Hdf5Writer::attribute(const std::string& path, const std::string& name, double value) {
  state_->attribute(path, name, H5T_NATIVE_DOUBLE, H5T_IEEE_F64LE, &value, {});
}
void Hdf5Writer::attribute(const std::string& path, const std::string& name,
                           const std::vector<std::string>& values) {
  state_->strings(path, name, values, {values.size()});
}
void Hdf5Writer::attribute(const std::string& path, const std::string& name,
                           const std::vector<double>& values) {
  state_->attribute(path, name, H5T_NATIVE_DOUBLE, H5T_IEEE_F64LE, values.data(), {values.size()});
}

std::vector<std::byte> Hdf5Writer::finish() {
  must(state_->file.close(), "H5Fclose", "/");
  ESPALIER_CHECK(!state_->capture.image.empty(), "no memory for the HDF5 image");
  return std::move(state_->capture.image);
}

}  // namespace espalier
