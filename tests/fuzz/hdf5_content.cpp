#include "fuzz/hdf5_content.h"

#include <algorithm>
#include <iterator>
#include <limits>

namespace espalier::fuzz {
namespace {

constexpr std::int64_t kIntegers[] = {-1,
                                      -2,
                                      0,
                                      1,
                                      2,
                                      7,
                                      255,
                                      256,
                                      std::numeric_limits<std::int32_t>::max(),
                                      std::numeric_limits<std::int32_t>::min(),
                                      std::int64_t{1} << 31,
                                      std::int64_t{1} << 32,
                                      std::numeric_limits<std::int64_t>::max(),
                                      std::numeric_limits<std::int64_t>::min()};
constexpr double kFloats[] = {0.0,
                              -0.0,
                              -1.0,
                              1e308,
                              -1e308,
                              5e-324,
                              std::numeric_limits<double>::quiet_NaN(),
                              std::numeric_limits<double>::infinity(),
                              -std::numeric_limits<double>::infinity()};

std::string text(TextMutator& random, const std::string& before) {
  using namespace std::string_literals;
  const std::string texts[] = {"",
                               "\xff\xfe",
                               "\xe2\x82",      // a letter cut off
                               "\xed\xa0\x80",  // half of a surrogate pair
                               "a\0b"s,
                               "\x1b[2J\r\n\t",
                               "\xc3\xa9\xe2\x82\xac",
                               "espalier-plan",
                               "espalier-tokens",
                               "espalier-sums",
                               "kv_group",
                               std::string(70000, 'x'),
                               before + "\0"s,
                               before + "\n",
                               before + "\xc3"};
  return texts[random.below(std::size(texts))];
}

hid_t stored_type(TextMutator& random) {
  const hid_t types[] = {H5T_STD_I8LE,   H5T_STD_U8LE,  H5T_STD_I16BE,  H5T_STD_U16LE,
                         H5T_STD_I32LE,  H5T_STD_I32BE, H5T_STD_U32LE,  H5T_STD_I64LE,
                         H5T_STD_U64LE,  H5T_STD_I64BE, H5T_IEEE_F32LE, H5T_IEEE_F64LE,
                         H5T_IEEE_F64BE, H5T_IEEE_F32BE};
  return types[random.below(std::size(types))];
}

template <class T>
void change_values(std::vector<T>& values, TextMutator& random) {
  if (values.empty()) return;
  T& one = values[random.below(values.size())];
  T& other = values[random.below(values.size())];
  switch (random.below(4)) {
    case 0:
      one = other;  // doubled, and a gap elsewhere
      return;
    case 1:
      std::swap(one, other);
      return;
    case 2:
      one += static_cast<T>(1);
      return;
    default:
      if constexpr (std::is_same_v<T, double>)
        one = kFloats[random.below(std::size(kFloats))];
      else
        one = kIntegers[random.below(std::size(kIntegers))];
  }
}

/// Values follow the shape; new ones are zero. A huge set has a shape alone, which stays.
void change_shape(Dataset& set, TextMutator& random) {
  if (set.form == Form::huge) return;
  std::vector<hsize_t>& shape = set.shape;
  switch (random.below(6)) {
    case 0:
      shape.push_back(1 + random.below(3));
      break;
    case 1:
      if (!shape.empty()) shape.pop_back();
      break;
    case 2:
      std::reverse(shape.begin(), shape.end());
      break;
    case 3:
      shape.clear();
      break;
    default:
      if (!shape.empty()) {
        hsize_t& extent = shape[random.below(shape.size())];
        extent = random.below(3) == 0 ? 0 : random.below(2) == 0 ? extent + 1 : extent / 2;
      }
  }
  std::size_t count = 1;
  for (const hsize_t extent : shape) count *= extent;
  std::visit([&](auto& values) { values.resize(count); }, set.values);
}

void make_huge(Dataset& set, TextMutator& random) {
  set.form = Form::huge;
  if (set.shape.empty()) set.shape = {1};
  for (hsize_t& extent : set.shape) {
    const hsize_t extents[] = {
        extent, 0, hsize_t{1} << 20, hsize_t{1} << 31, hsize_t{1} << 33, hsize_t{1} << 62};
    extent = extents[random.below(std::size(extents))];
  }
}

void change_dataset(Dataset& set, TextMutator& random) {
  switch (random.below(8)) {
    case 0:
      set.type = stored_type(random);
      return;
    case 1:
      change_shape(set, random);
      return;
    case 2:
      make_huge(set, random);
      return;
    case 3: {
      const Form forms[] = {Form::unwritten, Form::null, Form::other_type, Form::group,
                            Form::dangling,  Form::loop, Form::outside};
      set.form = forms[random.below(std::size(forms))];
      return;
    }
    case 4:
      set.packed = !set.packed;
      return;
    default:
      std::visit([&](auto& values) { change_values(values, random); }, set.values);
      // What no longer fits is stored wider, not clamped.
      if (random.below(2) == 0 && std::holds_alternative<std::vector<std::int64_t>>(set.values))
        set.type = H5T_STD_I64LE;
  }
}

void change_attribute(Attribute& attribute, TextMutator& random) {
  switch (random.below(6)) {
    case 0:
      attribute.value = kIntegers[random.below(std::size(kIntegers))];
      return;
    case 1:
      attribute.value = kFloats[random.below(std::size(kFloats))];
      return;
    case 2:
      attribute.value = std::vector<std::string>(random.below(4), text(random, "a"));
      return;
    case 3:
      attribute.value =
          std::vector<double>(random.below(4), kFloats[random.below(std::size(kFloats))]);
      return;
    case 4: {
      const Form forms[] = {Form::unwritten, Form::null, Form::other_type};
      attribute.form = forms[random.below(std::size(forms))];
      return;
    }
    default:
      const auto* before = std::get_if<std::string>(&attribute.value);
      attribute.value = text(random, before == nullptr ? "" : *before);
      attribute.width = random.below(2) == 0 ? 0 : 1 + random.below(80);
  }
}

template <class Map>
auto any_of(Map& map, TextMutator& random) {
  return std::next(map.begin(), static_cast<std::ptrdiff_t>(random.below(map.size())));
}

hid_t other_type(TextMutator& random) {
  const hsize_t three = 3;
  hid_t type = H5I_INVALID_HID;
  switch (random.below(7)) {
    case 0:
      return H5Tcreate(H5T_OPAQUE, 1 + random.below(40));
    case 1:
      return H5Tarray_create2(H5T_STD_I32LE, 1, &three);
    case 2:
      return H5Tcopy(H5T_STD_B16LE);
    case 3:
      type = H5Tcopy(H5T_STD_I32LE);
      H5Tset_precision(type, 1 + random.below(31));
      return type;
    case 4:
      type = H5Tcreate(H5T_COMPOUND, 8);
      H5Tinsert(type, "a", 0, H5T_STD_I32LE);
      return type;
    case 5:
      return H5Tenum_create(H5T_STD_I32LE);
    default:
      return H5Tvlen_create(H5T_STD_I32LE);
  }
}

hid_t space_of(Form form, const std::vector<hsize_t>& shape) {
  if (form == Form::null) return H5Screate(H5S_NULL);
  if (shape.empty()) return H5Screate(H5S_SCALAR);
  return H5Screate_simple(static_cast<int>(shape.size()), shape.data(), nullptr);
}

void write_link(hid_t file, const std::string& path, Form form) {
  if (form == Form::dangling)
    H5Lcreate_soft("/nowhere", file, path.c_str(), H5P_DEFAULT, H5P_DEFAULT);
  else if (form == Form::loop)
    H5Lcreate_soft(path.c_str(), file, path.c_str(), H5P_DEFAULT, H5P_DEFAULT);
  else
    H5Lcreate_external("other.h5", "/", file, path.c_str(), H5P_DEFAULT, H5P_DEFAULT);
}

void write_values(hid_t set, const Dataset& dataset) {
  if (const auto* integers = std::get_if<std::vector<std::int64_t>>(&dataset.values)) {
    if (!integers->empty())
      H5Dwrite(set, H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, integers->data());
    return;
  }
  const auto& floats = std::get<std::vector<double>>(dataset.values);
  if (!floats.empty())
    H5Dwrite(set, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, floats.data());
}

void write_dataset(hid_t file, const std::string& path, const Dataset& dataset,
                   TextMutator& random) {
  if (dataset.form == Form::group) {
    H5Gclose(H5Gcreate2(file, path.c_str(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
    return;
  }
  if (dataset.form == Form::dangling || dataset.form == Form::loop ||
      dataset.form == Form::outside) {
    write_link(file, path, dataset.form);
    return;
  }
  const hid_t list = H5Pcreate(H5P_DATASET_CREATE);
  const bool chunked = dataset.packed || (dataset.form == Form::huge && random.below(2) == 0);
  if (chunked && !dataset.shape.empty()) {
    std::vector<hsize_t> chunk;
    for (const hsize_t extent : dataset.shape) chunk.push_back(std::clamp<hsize_t>(extent, 1, 4));
    H5Pset_chunk(list, static_cast<int>(chunk.size()), chunk.data());
    H5Pset_deflate(list, 1);
  }
  const hid_t type = dataset.form == Form::other_type ? other_type(random) : H5Tcopy(dataset.type);
  const hid_t space = space_of(dataset.form, dataset.shape);
  const hid_t set = H5Dcreate2(file, path.c_str(), type, space, H5P_DEFAULT, list, H5P_DEFAULT);
  if (set >= 0) {
    if (dataset.form == Form::ordinary) write_values(set, dataset);
    H5Dclose(set);
  }
  H5Sclose(space);
  H5Tclose(type);
  H5Pclose(list);
}

hid_t text_type(std::size_t width, TextMutator& random) {
  const hid_t type = H5Tcopy(H5T_C_S1);
  H5Tset_size(type, width == 0 ? H5T_VARIABLE : width);
  if (random.below(2) == 0) H5Tset_cset(type, H5T_CSET_UTF8);
  const H5T_str_t paddings[] = {H5T_STR_NULLTERM, H5T_STR_NULLPAD, H5T_STR_SPACEPAD};
  if (width != 0) H5Tset_strpad(type, paddings[random.below(std::size(paddings))]);
  return type;
}

struct Stored {
  hid_t type = H5I_INVALID_HID;
  std::vector<hsize_t> shape;
  std::vector<char> bytes;
};

void append(std::vector<char>& bytes, const void* from, std::size_t count) {
  const auto* begin = static_cast<const char*>(from);
  bytes.insert(bytes.end(), begin, begin + count);
}

/// `texts` must outlive the result: variable text is stored by address.
Stored stored_texts(const std::vector<std::string>& texts, std::size_t width, TextMutator& random) {
  Stored stored{text_type(width, random), {}, {}};
  for (const std::string& one : texts) {
    const char* address = one.c_str();
    if (width == 0) {
      append(stored.bytes, &address, sizeof(address));
    } else {
      std::string padded = one;
      padded.resize(width);
      append(stored.bytes, padded.data(), width);
    }
  }
  return stored;
}

Stored stored_attribute(const Attribute& attribute, std::vector<std::string>& texts,
                        TextMutator& random) {
  if (attribute.form == Form::other_type) return {other_type(random), {}, std::vector<char>(4096)};
  if (const auto* integer = std::get_if<std::int64_t>(&attribute.value)) {
    Stored stored{H5Tcopy(H5T_NATIVE_INT64), {}, {}};
    append(stored.bytes, integer, sizeof(*integer));
    return stored;
  }
  if (const auto* number = std::get_if<double>(&attribute.value)) {
    Stored stored{H5Tcopy(H5T_NATIVE_DOUBLE), {}, {}};
    append(stored.bytes, number, sizeof(*number));
    return stored;
  }
  if (const auto* numbers = std::get_if<std::vector<double>>(&attribute.value)) {
    Stored stored{H5Tcopy(H5T_NATIVE_DOUBLE), {numbers->size()}, {}};
    append(stored.bytes, numbers->data(), numbers->size() * sizeof(double));
    return stored;
  }
  const auto* one = std::get_if<std::string>(&attribute.value);
  texts = one != nullptr ? std::vector<std::string>{*one}
                         : std::get<std::vector<std::string>>(attribute.value);
  Stored stored = stored_texts(texts, attribute.width, random);
  if (one == nullptr) stored.shape = {texts.size()};
  return stored;
}

void write_attribute(hid_t file, const std::string& name, const Attribute& attribute,
                     TextMutator& random) {
  std::vector<std::string> texts;
  Stored stored = stored_attribute(attribute, texts, random);
  stored.bytes.resize(stored.bytes.size() + 1);
  const hid_t space = space_of(attribute.form, stored.shape);
  const hid_t made = H5Acreate2(file, name.c_str(), stored.type, space, H5P_DEFAULT, H5P_DEFAULT);
  if (made >= 0) {
    if (attribute.form != Form::unwritten && attribute.form != Form::null)
      H5Awrite(made, stored.type, stored.bytes.data());
    H5Aclose(made);
  }
  H5Sclose(space);
  H5Tclose(stored.type);
}

}  // namespace

void change(Content& content, TextMutator& random) {
  for (std::size_t left = 1 + random.below(3); left > 0; --left) {
    const bool at_dataset = !content.datasets.empty() && random.below(2) == 0;
    if (!at_dataset && content.attributes.empty()) continue;
    if (random.below(8) == 0) {
      if (at_dataset)
        content.datasets.erase(any_of(content.datasets, random));
      else
        content.attributes.erase(any_of(content.attributes, random));
    } else if (at_dataset) {
      change_dataset(any_of(content.datasets, random)->second, random);
    } else {
      change_attribute(any_of(content.attributes, random)->second, random);
    }
  }
}

void write(const Content& content, const std::string& path, TextMutator& random) {
  const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
  if (random.below(2) == 0) H5Pset_libver_bounds(access, H5F_LIBVER_V18, H5F_LIBVER_LATEST);
  const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access);
  H5Pclose(access);
  for (const auto& [name, dataset] : content.datasets) {
    const std::string group = name.substr(0, name.rfind('/'));
    if (!group.empty() && H5Lexists(file, group.c_str(), H5P_DEFAULT) <= 0)
      H5Gclose(H5Gcreate2(file, group.c_str(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
    write_dataset(file, name, dataset, random);
  }
  for (const auto& [name, attribute] : content.attributes)
    write_attribute(file, name, attribute, random);
  H5Fclose(file);
}

}  // namespace espalier::fuzz
