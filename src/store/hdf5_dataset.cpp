#include "hdf5_dataset.h"

#include <fmt/format.h>

#include "espalier/core/error.h"
#include "posix.h"

namespace espalier::h5 {
namespace {

constexpr int kMostAxes = 4;
constexpr std::int64_t kMostElements = std::int64_t{1} << 33;
constexpr hsize_t kMostChunkBytes = hsize_t{1} << 30;
constexpr hsize_t kMostItemBytes = hsize_t{1} << 20;
/// The largest factor that deflate can reach, by its format.
constexpr hsize_t kDeflateFactor = 1032;

herr_t refuse_link(const char*, const char*, const char*, const char*, unsigned*, hid_t, void*) {
  return -1;
}

struct Layout {
  H5D_layout_t kind = H5D_LAYOUT_ERROR;
  bool deflated = false;
  std::vector<hsize_t> chunk;
};

void check_filters(hid_t properties, const std::string& object, const std::string& origin,
                   Layout& layout) {
  const int filters = H5Pget_nfilters(properties);
  if (filters < 0) refuse(origin, "the filters of " + object + " cannot be read");
  for (int i = 0; i < filters; ++i) {
    unsigned flags = 0;
    unsigned config = 0;
    std::size_t values = 0;
    const H5Z_filter_t filter = H5Pget_filter2(properties, static_cast<unsigned>(i), &flags,
                                               &values, nullptr, 0, nullptr, &config);
    if (filter < 0) refuse(origin, "the filters of " + object + " cannot be read");
    if (filter != H5Z_FILTER_DEFLATE && filter != H5Z_FILTER_SHUFFLE &&
        filter != H5Z_FILTER_FLETCHER32)
      refuse(origin, fmt::format("{} uses the filter {}", object, filter),
             "deflate, shuffle and fletcher32 are read here");
    layout.deflated = layout.deflated || filter == H5Z_FILTER_DEFLATE;
  }
}

Layout layout_of(hid_t set, std::size_t axes, const std::string& object,
                 const std::string& origin) {
  const Id properties{H5Dget_create_plist(set), H5Pclose};
  if (properties.get() < 0) refuse(origin, "the layout of " + object + " cannot be read");
  Layout layout;
  layout.kind = H5Pget_layout(properties.get());
  if (layout.kind != H5D_COMPACT && layout.kind != H5D_CONTIGUOUS && layout.kind != H5D_CHUNKED)
    refuse(origin, object + " is a virtual dataset", "its values lie in other files");
  const int external = H5Pget_external_count(properties.get());
  if (external != 0)
    refuse(origin, object + " uses external storage", "its values lie in other files");
  check_filters(properties.get(), object, origin, layout);
  if (layout.kind == H5D_CHUNKED) {
    layout.chunk.resize(axes);
    const int found = H5Pget_chunk(properties.get(), static_cast<int>(axes), layout.chunk.data());
    if (found != static_cast<int>(axes))
      refuse(origin, "the chunks of " + object + " cannot be read",
             fmt::format("{} axes, {} of them in the chunks", axes, found));
  }
  return layout;
}

/// Chunks that were never written would come back as fill values without any error: that is what a
/// full disk leaves behind.
void check_chunks(hid_t set, hid_t space, const std::vector<hsize_t>& dims, hsize_t item,
                  const Layout& layout, const std::string& object, const std::string& origin) {
  hsize_t chunk_bytes = item;
  hsize_t expected = 1;
  for (std::size_t axis = 0; axis < dims.size(); ++axis) {
    const hsize_t extent = layout.chunk[axis];
    if (extent == 0 || __builtin_mul_overflow(chunk_bytes, extent, &chunk_bytes) ||
        chunk_bytes > kMostChunkBytes)
      refuse(origin, object + " has too large chunks",
             fmt::format("at most {} bytes are read at once", kMostChunkBytes));
    expected *= (dims[axis] + extent - 1) / extent;
  }
  hsize_t written = 0;
  if (H5Dget_num_chunks(set, space, &written) < 0)
    refuse(origin, "the chunks of " + object + " cannot be counted");
  if (written < expected)
    refuse(origin, fmt::format("{} has {} of {} chunks", object, written, expected),
           "the rest was never written");
}

void check_storage(hid_t file, hid_t set, hsize_t needed, const Layout& layout,
                   const std::string& object, const std::string& origin) {
  hsize_t file_bytes = 0;
  if (H5Fget_filesize(file, &file_bytes) < 0) refuse(origin, "the file's size cannot be read");
  const hsize_t storage = H5Dget_storage_size(set);
  const hsize_t most = layout.deflated ? storage * kDeflateFactor : storage;
  if (storage > file_bytes || needed > most)
    refuse(origin,
           fmt::format("{} needs {} bytes, {} of the file's {} are stored", object, needed, storage,
                       file_bytes),
           "the file is cut off, or its shape is wrong");
}

/// h5py's booleans: an enumeration of int8 with the values 0 and 1.
bool is_boolean(hid_t type) {
  if (H5Tget_class(type) != H5T_ENUM || H5Tget_size(type) != 1 || H5Tget_nmembers(type) != 2)
    return false;
  for (unsigned i = 0; i < 2; ++i) {
    signed char value = -1;
    if (H5Tget_member_value(type, i, &value) < 0 || value != static_cast<signed char>(i))
      return false;
  }
  return true;
}

}  // namespace

void refuse(const std::string& origin, std::string what, std::string why) {
  if (why.empty()) why = words();
  throw Error(ExitCode::bad_content, std::move(what), std::move(why), {}, origin);
}

Id inside_only(hid_t list_class, const std::string& origin) {
  Id list{H5Pcreate(list_class), H5Pclose};
  if (list.get() < 0 || H5Pset_elink_cb(list.get(), refuse_link, nullptr) < 0)
    refuse(origin, "no property list for reading");
  return list;
}

std::vector<hsize_t> dims_of(hid_t space, const std::string& object, const std::string& origin) {
  const int axes = H5Sget_simple_extent_ndims(space);
  if (axes < 0 || H5Sget_simple_extent_type(space) == H5S_NULL)
    refuse(origin, object + " holds no values", "its dataspace is null or not simple");
  if (axes > kMostAxes)
    refuse(origin, fmt::format("{} has {} axes", object, axes),
           fmt::format("at most {} are read here", kMostAxes));
  std::vector<hsize_t> dims(static_cast<std::size_t>(axes));
  if (axes > 0 && H5Sget_simple_extent_dims(space, dims.data(), nullptr) < 0)
    refuse(origin, "the shape of " + object + " cannot be read");
  return dims;
}

std::int64_t count_of(const std::vector<hsize_t>& dims, const std::string& object,
                      const std::string& origin) {
  // Zero extents are left out of the check, so that products of any of the extents are safe.
  hsize_t product = 1;
  bool empty = false;
  for (const hsize_t extent : dims) {
    empty = empty || extent == 0;
    if (__builtin_mul_overflow(product, extent == 0 ? 1 : extent, &product) ||
        product > static_cast<hsize_t>(kMostElements))
      refuse(origin, fmt::format("{} has the shape [{}]", object, fmt::join(dims, ", ")),
             fmt::format("at most {} elements are read here", kMostElements));
  }
  return empty ? 0 : static_cast<std::int64_t>(product);
}

Dataset open_dataset(hid_t file, const std::string& path, const std::string& origin) {
  const std::string object = "dataset " + posix::shown(path);
  const Id access = inside_only(H5P_DATASET_ACCESS, origin);
  // Room for the chunks of random rows; the default of 1 MiB decompresses a chunk for each row.
  if (H5Pset_chunk_cache(access.get(), 12421, std::size_t{32} << 20, 0.75) < 0)
    refuse(origin, "the chunk cache cannot be set");
  Dataset set;
  set.id = Id{H5Dopen2(file, path.c_str(), access.get()), H5Dclose};
  if (set.id.get() < 0) refuse(origin, object + " cannot be opened");
  set.type = Id{H5Dget_type(set.id.get()), H5Tclose};
  const Id space{H5Dget_space(set.id.get()), H5Sclose};
  if (set.type.get() < 0 || space.get() < 0) refuse(origin, object + " cannot be described");
  const std::vector<hsize_t> dims = dims_of(space.get(), object, origin);
  set.count = count_of(dims, object, origin);
  set.shape.assign(dims.begin(), dims.end());
  const auto item = static_cast<hsize_t>(H5Tget_size(set.type.get()));
  if (item == 0 || item > kMostItemBytes)
    refuse(origin, fmt::format("{} has elements of {} bytes", object, item),
           fmt::format("1 to {} are read here", kMostItemBytes));
  const Layout layout = layout_of(set.id.get(), dims.size(), object, origin);
  if (set.count == 0) return set;
  if (layout.kind == H5D_CHUNKED)
    check_chunks(set.id.get(), space.get(), dims, item, layout, object, origin);
  check_storage(file, set.id.get(), static_cast<hsize_t>(set.count) * item, layout, object, origin);
  return set;
}

void require_integer(hid_t type, const std::string& object, const std::string& origin) {
  const std::size_t size = H5Tget_size(type);
  if ((H5Tget_class(type) != H5T_INTEGER && !is_boolean(type)) ||
      (size != 1 && size != 2 && size != 4 && size != 8) || H5Tget_precision(type) != size * 8 ||
      H5Tget_offset(type) != 0 ||
      (H5Tget_order(type) != H5T_ORDER_LE && H5Tget_order(type) != H5T_ORDER_BE))
    refuse(origin, object + " does not hold integers",
           "booleans and ordinary integers of 1, 2, 4 or 8 bytes are read here");
}

void require_float(hid_t type, const std::string& object, const std::string& origin) {
  for (const hid_t known : {H5T_IEEE_F32LE, H5T_IEEE_F64LE, H5T_IEEE_F32BE, H5T_IEEE_F64BE})
    if (H5Tequal(type, known) > 0) return;
  refuse(origin, object + " does not hold floats", "floats of 4 or 8 bytes are read here");
}

}  // namespace espalier::h5
