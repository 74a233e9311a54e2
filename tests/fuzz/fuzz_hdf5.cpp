// fuzz_hdf5 [SECONDS [SEED...]]: variants of HDF5 files. Types, shapes, layouts, filters and
// attributes are varied through libhdf5's own interface; the finished files are cut off, and bits
// of the datasets' values are flipped. Bytes of libhdf5's internal structures are left alone:
// version 1.10 itself may crash on those, and a checkpoint's image is only given to it after its
// hash was compared. Allowed ends are success and espalier::Error(bad_content); values that were
// written and not damaged must come back.

#include <fmt/format.h>
#include <hdf5.h>
#include <stdlib.h>

#include <filesystem>
#include <functional>
#include <map>

#include "espalier/core/error.h"
#include "espalier/store/files.h"
#include "espalier/store/hdf5_file.h"
#include "fuzz/memory_limit.h"
#include "fuzz/session.h"
#include "fuzz/text_mutator.h"

namespace espalier {
namespace {

const char* const kDatasets[] = {"/attention/order", "/mlp/kept", "/tokens", "/mask", "/scores"};
const char* const kAttributes[] = {"schema", "version", "ratio", "names"};

/// Larger chunks are only declared: writing them would take most of the time.
constexpr double kMostChunk = 1 << 16;

struct Extent {
  haddr_t begin = 0;
  hsize_t size = 0;
};

/// What one file holds, as far as the check needs it.
struct Written {
  std::map<std::string, std::vector<std::int64_t>> integers;  // datasets written whole
  std::vector<Extent> values;                                 // where values lie in the file
};

/// Writes one variant. Calls that libhdf5 refuses leave their object out.
class Variant {
 public:
  Variant(fuzz::TextMutator& random, const std::string& path) : random_(random) {
    const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    if (chance(2)) H5Pset_libver_bounds(access, H5F_LIBVER_V18, H5F_LIBVER_LATEST);
    file_ = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access);
    H5Pclose(access);
  }

  Written make() {
    for (const char* group : {"/attention", "/mlp"})
      H5Gclose(H5Gcreate2(file_, group, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
    for (const char* name : kDatasets)
      if (!chance(8)) dataset(name);
    for (const char* name : kAttributes)
      if (!chance(8)) attribute(name);
    if (chance(8)) H5Lcreate_external("other.h5", "/", file_, "/away", H5P_DEFAULT, H5P_DEFAULT);
    if (chance(8)) H5Lcreate_soft("/tokens", file_, "/soft", H5P_DEFAULT, H5P_DEFAULT);
    H5Fclose(file_);
    return std::move(written_);
  }

 private:
  bool chance(std::size_t one_in) { return random_.below(one_in) == 0; }

  hid_t integer_type() {
    const hid_t types[] = {H5T_STD_I8LE,  H5T_STD_U8LE,  H5T_STD_I16BE,
                           H5T_STD_U16LE, H5T_STD_I32LE, H5T_STD_U32BE,
                           H5T_STD_I64LE, H5T_STD_U64LE, H5T_STD_I64BE};
    return H5Tcopy(types[random_.below(std::size(types))]);
  }

  /// A type that the reader must not take for integers.
  hid_t other_type() {
    const hsize_t three = 3;
    hid_t type = H5I_INVALID_HID;
    switch (random_.below(9)) {
      case 0:
        return H5Tcopy(H5T_IEEE_F32LE);
      case 1:
        return H5Tcopy(H5T_IEEE_F64BE);
      case 2:
        return H5Tcreate(H5T_OPAQUE, 1 + random_.below(40));
      case 3:
        return H5Tarray_create2(H5T_STD_I32LE, 1, &three);
      case 4:
        return H5Tcopy(H5T_STD_B16LE);
      case 5:
        type = H5Tcopy(H5T_STD_I32LE);
        H5Tset_precision(type, 1 + random_.below(31));
        return type;
      case 6:
        type = H5Tcreate(H5T_COMPOUND, 8);
        H5Tinsert(type, "a", 0, H5T_STD_I32LE);
        return type;
      case 7:
        type = H5Tcopy(H5T_C_S1);
        H5Tset_size(type, chance(2) ? H5T_VARIABLE : 1 + random_.below(20));
        return type;
      default:
        return H5Tvlen_create(H5T_STD_I32LE);
    }
  }

  std::vector<hsize_t> dims(bool huge) {
    std::vector<hsize_t> result(chance(6) ? random_.below(7) : 1 + random_.below(2));
    for (hsize_t& extent : result) extent = chance(12) ? 0 : 1 + random_.below(9);
    if (huge && !result.empty())
      for (hsize_t& extent : result) extent <<= random_.below(40);
    return result;
  }

  hid_t properties(const std::vector<hsize_t>& shape, bool integers) {
    const hid_t list = H5Pcreate(H5P_DATASET_CREATE);
    chunk_elements_ = 0;
    const std::size_t kind = random_.below(4);
    if (kind == 0) H5Pset_layout(list, H5D_COMPACT);
    if (kind < 2 || shape.empty()) return list;
    std::vector<hsize_t> chunk;
    for (const hsize_t extent : shape)
      chunk.push_back(1 + random_.below(chance(6) ? 1U << 14 : extent + 1));
    chunk_elements_ = 1;
    for (const hsize_t extent : chunk) chunk_elements_ *= static_cast<double>(extent);
    H5Pset_chunk(list, static_cast<int>(chunk.size()), chunk.data());
    // libhdf5 itself crashes when these two come after another filter or meet other types.
    if (integers && chance(8)) {
      if (chance(2))
        H5Pset_nbit(list);
      else
        H5Pset_scaleoffset(list, H5Z_SO_INT, 0);
      return list;
    }
    if (chance(2)) H5Pset_shuffle(list);
    if (chance(2)) H5Pset_deflate(list, 1);
    if (chance(2)) H5Pset_fletcher32(list);
    return list;
  }

  void dataset(const std::string& name) {
    const bool huge = chance(6);
    const bool integers = !chance(4);
    const std::vector<hsize_t> shape = dims(huge);
    const std::vector<hsize_t> most(shape.size(), H5S_UNLIMITED);
    const hid_t list = properties(shape, integers);
    const hid_t type = integers ? integer_type() : other_type();
    // Only resizable datasets may have chunks beyond their extents.
    const bool grows = H5Pget_layout(list) == H5D_CHUNKED && chance(2);
    const hid_t space = shape.empty()
                            ? H5Screate(chance(4) ? H5S_NULL : H5S_SCALAR)
                            : H5Screate_simple(static_cast<int>(shape.size()), shape.data(),
                                               grows ? most.data() : nullptr);
    const hid_t set = H5Dcreate2(file_, name.c_str(), type, space, H5P_DEFAULT, list, H5P_DEFAULT);
    if (set >= 0) {
      if (!huge && chunk_elements_ <= kMostChunk && !chance(6))
        fill(name, set, type, space, integers);
      H5Dclose(set);
    }
    H5Sclose(space);
    H5Tclose(type);
    H5Pclose(list);
  }

  void fill(const std::string& name, hid_t set, hid_t type, hid_t space, bool integers) {
    const hssize_t points = H5Sget_simple_extent_npoints(space);
    if (points < 0 || points > 1 << 20) return;
    const auto count = static_cast<std::size_t>(points);
    if (integers) {
      std::vector<std::int64_t> values(count + 1);
      for (std::int64_t& value : values) value = static_cast<std::int64_t>(random_.below(128));
      if (H5Dwrite(set, H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()) < 0) return;
      values.pop_back();
      if (H5Sget_simple_extent_type(space) != H5S_NULL) written_.integers[name] = values;
    } else {
      const std::vector<char> zeros((count + 1) * (H5Tget_size(type) + 16));
      H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, zeros.data());
    }
    H5Dflush(set);
    note_values(set, space);
  }

  void note_values(hid_t set, hid_t space) {
    const haddr_t offset = H5Dget_offset(set);
    if (offset != HADDR_UNDEF) written_.values.push_back({offset, H5Dget_storage_size(set)});
    hsize_t chunks = 0;
    if (H5Dget_num_chunks(set, space, &chunks) < 0) return;
    for (hsize_t i = 0; i < std::min<hsize_t>(chunks, 16); ++i) {
      hsize_t place[8] = {};
      unsigned mask = 0;
      Extent extent;
      if (H5Dget_chunk_info(set, space, i, place, &mask, &extent.begin, &extent.size) >= 0 &&
          extent.begin != HADDR_UNDEF)
        written_.values.push_back(extent);
    }
  }

  void attribute(const char* name) {
    static const char* const kHolders[] = {"/", "/mlp", "/tokens"};
    const char* holder = kHolders[random_.below(std::size(kHolders))];
    const hid_t type = chance(2) ? integer_type() : other_type();
    const std::vector<hsize_t> shape = chance(2) ? std::vector<hsize_t>{} : dims(false);
    const hid_t space =
        shape.empty() ? H5Screate(chance(6) ? H5S_NULL : H5S_SCALAR)
                      : H5Screate_simple(static_cast<int>(shape.size()), shape.data(), nullptr);
    const hid_t made =
        H5Acreate_by_name(file_, holder, name, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    if (made >= 0) {
      hssize_t count = H5Sget_simple_extent_npoints(space);
      count = std::clamp<hssize_t>(count, 0, 1 << 20);
      const std::vector<char> zeros((static_cast<std::size_t>(count) + 1) *
                                    (H5Tget_size(type) + 16));
      if (!chance(4)) H5Awrite(made, type, zeros.data());
      H5Aclose(made);
    }
    H5Sclose(space);
    H5Tclose(type);
  }

  fuzz::TextMutator& random_;
  hid_t file_ = H5I_INVALID_HID;
  double chunk_elements_ = 0;
  Written written_;
};

template <class A>
std::string whole(const A& array) {
  std::int64_t count = 1;
  for (const std::int64_t extent : array.shape) count *= extent;
  return count == static_cast<std::int64_t>(array.values.size()) ? ""
                                                                 : "values do not fill the shape";
}

/// Every way of reading every object; `written` is null when values were damaged.
std::vector<std::function<std::string()>> readings(const Hdf5Reader& reader,
                                                   const Written* written) {
  std::vector<std::function<std::string()>> list;
  for (const std::string name : {"/attention/order", "/mlp/kept", "/tokens", "/mask", "/scores",
                                 "/soft", "/away", "/away/x", "/mlp", "/gone", "/", ""}) {
    list.push_back([&, name] { return reader.has(name), ""; });
    list.push_back([&, name] { return reader.shape(name), ""; });
    list.push_back([&, name] { return whole(reader.read_i32(name)); });
    list.push_back([&, name] { return whole(reader.read_u8(name)); });
    list.push_back([&, name] { return whole(reader.read_f64(name)); });
    list.push_back([&, name] { return reader.read_texts(name), ""; });
    list.push_back([&, name, written]() -> std::string {
      const auto array = reader.read_i64(name);
      if (written != nullptr && written->integers.contains(name) &&
          written->integers.at(name) != array.values)
        return name + ": other values than were written";
      return whole(array);
    });
    list.push_back([&, name]() -> std::string {
      const auto shape = reader.shape(name);
      if (shape.empty() || shape.front() == 0) return {};
      const std::vector<std::int64_t> rows{shape.front() - 1, 0, 0};
      const std::string wrong = whole(reader.read_rows_u8(name, rows));
      return wrong.empty() ? whole(reader.read_rows_i32(name, rows)) : wrong;
    });
    for (const std::string attribute : kAttributes) {
      list.push_back([&, name, attribute] { return reader.has_attribute(name, attribute), ""; });
      list.push_back([&, name, attribute] { return reader.attribute_string(name, attribute), ""; });
      list.push_back([&, name, attribute] { return reader.attribute_i64(name, attribute), ""; });
      list.push_back([&, name, attribute] { return reader.attribute_i64s(name, attribute), ""; });
      list.push_back([&, name, attribute] { return reader.attribute_f64(name, attribute), ""; });
      list.push_back(
          [&, name, attribute] { return reader.attribute_strings(name, attribute), ""; });
      list.push_back([&, name, attribute] { return reader.attribute_f64s(name, attribute), ""; });
    }
  }
  return list;
}

class Hdf5Fuzzer final : public fuzz::Fuzzer {
 public:
  explicit Hdf5Fuzzer(std::uint64_t seed) : random_(seed, {""}) {
    if (::mkdtemp(scratch_.data()) == nullptr) throw std::runtime_error("no scratch directory");
    path_ = std::filesystem::path(scratch_) / "variant.h5";
  }
  ~Hdf5Fuzzer() override { std::filesystem::remove_all(scratch_); }

  /// One variant as a file, as an image, cut off, and with damaged values.
  std::string once(fuzz::Trial& trial) override {
    const Written written = Variant(random_, path_.string()).make();
    bytes_ = read_file(path_);
    trial.input(bytes_);
    std::string wrong =
        fuzz::outcome(trial, [&] { return read_all(Hdf5Reader::open(path_), &written, trial); },
                      {ExitCode::bad_content});
    if (!wrong.empty()) return wrong;
    wrong = check_image(&written, trial);
    if (!wrong.empty()) return wrong;
    const std::string whole_file = bytes_;
    bytes_ = whole_file.substr(0, random_.below(whole_file.size()));
    wrong = check_image(nullptr, trial);
    if (!wrong.empty()) return wrong;
    bytes_ = whole_file;
    for (const Extent& extent : written.values)
      if (extent.size > 0 && extent.begin + extent.size <= bytes_.size())
        bytes_[extent.begin + random_.below(extent.size)] ^=
            static_cast<char>(1U << random_.below(8));
    return check_image(nullptr, trial);
  }

 private:
  static std::string read_all(const Hdf5Reader& reader, const Written* written,
                              fuzz::Trial& trial) {
    for (const auto& reading : readings(reader, written)) {
      std::string wrong = fuzz::outcome(trial, reading, {ExitCode::bad_content});
      if (!wrong.empty()) return wrong;
    }
    return {};
  }

  std::string check_image(const Written* written, fuzz::Trial& trial) const {
    trial.input(bytes_);
    return fuzz::outcome(trial,
                         [&] {
                           return read_all(
                               Hdf5Reader::from_image(std::as_bytes(std::span(bytes_)), "fuzz"),
                               written, trial);
                         },
                         {ExitCode::bad_content});
  }

  fuzz::TextMutator random_;
  std::string scratch_ = (std::filesystem::temp_directory_path() / "espalier-fuzz-XXXXXX").string();
  std::filesystem::path path_;
  std::string bytes_;
};

}  // namespace
}  // namespace espalier

int main(int argc, char** argv) {
  espalier::fuzz::limit_memory(std::uint64_t{2} << 30);
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  return espalier::fuzz::run(argc, argv, "fuzz_hdf5", "h5", [](std::uint64_t seed) {
    return std::make_unique<espalier::Hdf5Fuzzer>(seed);
  });
}
