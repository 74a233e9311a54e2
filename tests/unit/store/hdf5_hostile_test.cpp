#include <fmt/format.h>
#include <gtest/gtest.h>
#include <hdf5.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "espalier/store/hdf5_file.h"
#include "scratch.h"

/// Files that libhdf5 itself takes for good, yet that must not be read: made with its C interface.
namespace espalier {
namespace {

using test::error_of;
using test::Scratch;

/// A fresh HDF5 file, given to `make`, then read by us.
struct Crafted : ::testing::Test {
  std::string craft(const std::function<void(hid_t)>& make) {
    const std::string path = (scratch / fmt::format("f{}.h5", ++files)).string();
    const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    EXPECT_GE(file, 0);
    make(file);
    EXPECT_GE(H5Fclose(file), 0);
    return path;
  }
  /// What refuses dataset /x of the crafted file.
  std::string refusal(const std::function<void(hid_t)>& make) {
    const std::string path = craft(make);
    return error_of(ExitCode::bad_content, [&] { Hdf5Reader::open(path).read_i32("/x"); });
  }
  Scratch scratch;
  int files = 0;
};

/// Creates dataset /x; `values` may be null: then nothing is written.
void dataset(hid_t file, hid_t type, const std::vector<hsize_t>& dims, hid_t properties,
             hid_t memory_type, const void* values, const char* name = "/x") {
  const hid_t space = H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr);
  const hid_t set = H5Dcreate2(file, name, type, space, H5P_DEFAULT, properties, H5P_DEFAULT);
  ASSERT_GE(set, 0);
  if (values != nullptr) {
    ASSERT_GE(H5Dwrite(set, memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values), 0);
  }
  H5Dclose(set);
  H5Sclose(space);
}

hid_t chunked(const std::vector<hsize_t>& chunk) {
  const hid_t list = H5Pcreate(H5P_DATASET_CREATE);
  H5Pset_chunk(list, static_cast<int>(chunk.size()), chunk.data());
  return list;
}

const std::vector<std::int32_t> kValues{1, 2, 3, 4, 5, 6};

TEST_F(Crafted, OrdinaryFilesOfOthersAreRead) {
  const std::string path = craft([](hid_t file) {
    dataset(file, H5T_STD_I16BE, {2, 3}, H5P_DEFAULT, H5T_NATIVE_INT32, kValues.data());
    const hid_t compact = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_layout(compact, H5D_COMPACT);
    dataset(file, H5T_STD_U64LE, {6}, compact, H5T_NATIVE_INT32, kValues.data(), "/compact");
    const hid_t deflated = chunked({1, 2});
    H5Pset_deflate(deflated, 9);
    dataset(file, H5T_STD_I64LE, {2, 3}, deflated, H5T_NATIVE_INT32, kValues.data(), "/deflated");
    H5Lcreate_soft("/x", file, "/soft", H5P_DEFAULT, H5P_DEFAULT);
    H5Pclose(compact);
    H5Pclose(deflated);
  });
  const Hdf5Reader reader = Hdf5Reader::open(path);
  for (const char* name : {"/x", "/compact", "/deflated", "/soft"})
    EXPECT_EQ(reader.read_i32(name).values, kValues) << name;
}

/// What h5py writes for booleans: an enumeration of int8.
hid_t boolean_type(const char* yes = "TRUE", std::int8_t value = 1) {
  const hid_t type = H5Tenum_create(H5T_STD_I8LE);
  const std::int8_t no = 0;
  H5Tenum_insert(type, "FALSE", &no);
  H5Tenum_insert(type, yes, &value);
  return type;
}

TEST_F(Crafted, BooleansAreIntegers) {
  const std::vector<std::int8_t> values{0, 1, 1, 0, 1, 0};
  const hid_t type = boolean_type();
  const std::string path = craft([&](hid_t file) {
    dataset(file, type, {3, 2}, H5P_DEFAULT, type, values.data());
    const hid_t deflated = chunked({1, 2});
    H5Pset_deflate(deflated, 9);
    dataset(file, type, {3, 2}, deflated, type, values.data(), "/deflated");
    H5Pclose(deflated);
  });
  H5Tclose(type);
  const Hdf5Reader reader = Hdf5Reader::open(path);
  for (const char* name : {"/x", "/deflated"}) {
    EXPECT_EQ(reader.read_u8(name).values, (std::vector<std::uint8_t>{0, 1, 1, 0, 1, 0})) << name;
    EXPECT_EQ(reader.read_i32(name).values, (std::vector<std::int32_t>{0, 1, 1, 0, 1, 0})) << name;
    const std::vector<std::int64_t> rows{2, 0};
    EXPECT_EQ(reader.read_rows_u8(name, rows).values, (std::vector<std::uint8_t>{1, 0, 0, 1}));
  }
}

TEST_F(Crafted, OtherEnumerationsAreRefused) {
  const hid_t lonely = H5Tenum_create(H5T_STD_I8LE);
  const std::int8_t zero = 0;
  H5Tenum_insert(lonely, "FALSE", &zero);
  for (const hid_t type : {boolean_type("MAYBE", 2), lonely}) {
    const std::string message = refusal(
        [&](hid_t file) { dataset(file, type, {6}, H5P_DEFAULT, H5T_NATIVE_INT8, nullptr); });
    EXPECT_NE(message.find("/x"), std::string::npos) << message;
    H5Tclose(type);
  }
}

TEST_F(Crafted, LinksThatLeaveTheFile) {
  const std::string other = craft([](hid_t file) {
    dataset(file, H5T_STD_I32LE, {6}, H5P_DEFAULT, H5T_NATIVE_INT32, kValues.data());
  });
  const std::string path = craft([&](hid_t file) {
    H5Lcreate_external(other.c_str(), "/x", file, "/x", H5P_DEFAULT, H5P_DEFAULT);
    H5Lcreate_external(other.c_str(), "/", file, "/group", H5P_DEFAULT, H5P_DEFAULT);
    H5Lcreate_soft("/x", file, "/soft", H5P_DEFAULT, H5P_DEFAULT);
    H5Lcreate_soft("/nowhere", file, "/dangling", H5P_DEFAULT, H5P_DEFAULT);
    H5Lcreate_soft("/loop", file, "/loop", H5P_DEFAULT, H5P_DEFAULT);
  });
  const Hdf5Reader reader = Hdf5Reader::open(path);
  for (const char* name : {"/x", "/group/x", "/soft", "/dangling", "/loop"})
    error_of(ExitCode::bad_content, [&] { reader.read_i32(name); });
  error_of(ExitCode::bad_content, [&] { reader.attribute_i64("/x", "a"); });
}

TEST_F(Crafted, ValuesInOtherFiles) {
  test::put(scratch / "raw", std::string(24, '\x01'));
  const std::string raw = (scratch / "raw").string();
  const std::string external = refusal([&](hid_t file) {
    const hid_t list = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_external(list, raw.c_str(), 0, 24);
    dataset(file, H5T_STD_I32LE, {6}, list, H5T_NATIVE_INT32, nullptr);
    H5Pclose(list);
  });
  EXPECT_NE(external.find("external storage"), std::string::npos) << external;
  const std::string source = craft([](hid_t file) {
    dataset(file, H5T_STD_I32LE, {6}, H5P_DEFAULT, H5T_NATIVE_INT32, kValues.data());
  });
  const std::string mapped = refusal([&](hid_t file) {
    const hsize_t six = 6;
    const hid_t space = H5Screate_simple(1, &six, nullptr);
    const hid_t list = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_virtual(list, space, source.c_str(), "/x", space);
    dataset(file, H5T_STD_I32LE, {6}, list, H5T_NATIVE_INT32, nullptr);
    H5Pclose(list);
    H5Sclose(space);
  });
  EXPECT_NE(mapped.find("virtual"), std::string::npos) << mapped;
}

TEST_F(Crafted, FiltersOutsideTheList) {
  const std::string message = refusal([](hid_t file) {
    const hid_t list = chunked({6});
    H5Pset_nbit(list);
    dataset(file, H5T_STD_I32LE, {6}, list, H5T_NATIVE_INT32, kValues.data());
    H5Pclose(list);
  });
  EXPECT_NE(message.find("filter 5"), std::string::npos) << message;
  refusal([](hid_t file) {
    const hid_t list = chunked({6});
    H5Pset_scaleoffset(list, H5Z_SO_INT, 0);
    dataset(file, H5T_STD_I32LE, {6}, list, H5T_NATIVE_INT32, kValues.data());
    H5Pclose(list);
  });
  refusal([](hid_t file) {  // a plug-in that nobody has
    const hid_t list = chunked({6});
    H5Pset_filter(list, 32001, H5Z_FLAG_OPTIONAL, 0, nullptr);
    dataset(file, H5T_STD_I32LE, {6}, list, H5T_NATIVE_INT32, nullptr);
    H5Pclose(list);
  });
}

TEST_F(Crafted, OtherTypes) {
  const auto refuses = [&](hid_t type) {
    const std::string message = refusal([&](hid_t file) {
      const std::vector<char> zeros(6 * H5Tget_size(type));
      dataset(file, type, {6}, H5P_DEFAULT, type, zeros.data());
    });
    EXPECT_NE(message.find("does not hold integers"), std::string::npos) << message;
  };
  refuses(H5T_IEEE_F32LE);
  refuses(H5T_STD_B8LE);
  const hid_t text = H5Tcopy(H5T_C_S1);
  H5Tset_size(text, 5);
  refuses(text);
  const hid_t pair = H5Tcreate(H5T_COMPOUND, 8);
  H5Tinsert(pair, "a", 0, H5T_STD_I32LE);
  H5Tinsert(pair, "b", 4, H5T_STD_I32LE);
  refuses(pair);
  const hid_t odd = H5Tcopy(H5T_STD_I32LE);
  H5Tset_precision(odd, 12);
  refuses(odd);
  const hid_t three = H5Tcopy(H5T_STD_I32LE);
  H5Tset_precision(three, 24);
  H5Tset_size(three, 3);
  refuses(three);
  for (const hid_t type : {text, pair, odd, three}) H5Tclose(type);
}

TEST_F(Crafted, Shapes) {
  const std::string axes = refusal([](hid_t file) {
    dataset(file, H5T_STD_I32LE, {1, 1, 2, 1, 3}, H5P_DEFAULT, H5T_NATIVE_INT32, kValues.data());
  });
  EXPECT_NE(axes.find("5 axes"), std::string::npos) << axes;
  const std::string huge = refusal([](hid_t file) {
    const hid_t list = chunked({1, 1024});
    dataset(file, H5T_STD_I32LE, {hsize_t{1} << 30, hsize_t{1} << 20}, list, H5T_NATIVE_INT32,
            nullptr);
    H5Pclose(list);
  });
  EXPECT_NE(huge.find("1073741824, 1048576"), std::string::npos) << huge;
  // 2^33 - 1 elements are not too many, but no file of a few kB holds them.
  const std::string hollow = refusal([](hid_t file) {
    const hid_t list = chunked({1024});
    dataset(file, H5T_STD_I32LE, {(hsize_t{1} << 33) - 1}, list, H5T_NATIVE_INT32, nullptr);
    H5Pclose(list);
  });
  EXPECT_NE(hollow.find("0 of 8388608 chunks"), std::string::npos) << hollow;
  const std::string null = refusal([](hid_t file) {
    const hid_t space = H5Screate(H5S_NULL);
    H5Dclose(H5Dcreate2(file, "/x", H5T_STD_I32LE, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
    H5Sclose(space);
  });
  EXPECT_NE(null.find("holds no values"), std::string::npos) << null;
}

TEST_F(Crafted, BytesThatWereNeverWritten) {
  const std::string contiguous = refusal([](hid_t file) {
    dataset(file, H5T_STD_I32LE, {6}, H5P_DEFAULT, H5T_NATIVE_INT32, nullptr);
  });
  EXPECT_NE(contiguous.find("needs 24 bytes, 0 of"), std::string::npos) << contiguous;
  const std::string part = refusal([](hid_t file) {
    const hid_t list = chunked({2});
    H5Pset_deflate(list, 1);
    const hsize_t six = 6;
    const hsize_t start = 2;
    const hsize_t two = 2;
    const hid_t space = H5Screate_simple(1, &six, nullptr);
    const hid_t memory = H5Screate_simple(1, &two, nullptr);
    const hid_t set = H5Dcreate2(file, "/x", H5T_STD_I32LE, space, H5P_DEFAULT, list, H5P_DEFAULT);
    H5Sselect_hyperslab(space, H5S_SELECT_SET, &start, nullptr, &two, nullptr);
    H5Dwrite(set, H5T_NATIVE_INT32, memory, space, H5P_DEFAULT, kValues.data());
    H5Dclose(set);
    H5Sclose(memory);
    H5Sclose(space);
    H5Pclose(list);
  });
  EXPECT_NE(part.find("1 of 3 chunks"), std::string::npos) << part;
}

TEST_F(Crafted, UnsignedValuesBeyond63Bits) {
  const std::uint64_t most[] = {0, ~std::uint64_t{0}};
  const std::string path = craft(
      [&](hid_t file) { dataset(file, H5T_STD_U64LE, {2}, H5P_DEFAULT, H5T_NATIVE_UINT64, most); });
  const std::string message =
      error_of(ExitCode::bad_content, [&] { Hdf5Reader::open(path).read_i64("/x"); });
  EXPECT_NE(message.find("18446744073709551615"), std::string::npos) << message;
}

void attribute(hid_t file, const char* name, hid_t type, const std::vector<hsize_t>& dims,
               const void* values) {
  const hid_t space = dims.empty()
                          ? H5Screate(H5S_SCALAR)
                          : H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr);
  const hid_t made = H5Acreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
  ASSERT_GE(made, 0);
  ASSERT_GE(H5Awrite(made, type, values), 0);
  H5Aclose(made);
  H5Sclose(space);
}

TEST_F(Crafted, AttributesOfOthers) {
  const std::string path = craft([](hid_t file) {
    const hid_t padded = H5Tcopy(H5T_C_S1);
    H5Tset_size(padded, 4);
    H5Tset_strpad(padded, H5T_STR_SPACEPAD);
    attribute(file, "padded", padded, {2}, "ab  abcd");
    H5Tset_strpad(padded, H5T_STR_NULLPAD);
    attribute(file, "nulls", padded, {1}, "ab\0\0");
    attribute(file, "full", padded, {}, "abcd");
    const hid_t variable = H5Tcopy(H5T_C_S1);
    H5Tset_size(variable, H5T_VARIABLE);
    const char* words[] = {"x y", nullptr};
    attribute(file, "variable", variable, {2}, words);
    const std::int16_t small = -7;
    attribute(file, "small", H5T_NATIVE_INT16, {1, 1}, &small);
    const std::uint64_t most = ~std::uint64_t{0};
    attribute(file, "most", H5T_NATIVE_UINT64, {}, &most);
    const double pair[] = {1.0, 2.0};
    attribute(file, "pair", H5T_NATIVE_DOUBLE, {2}, pair);
    const hid_t space = H5Screate(H5S_NULL);
    H5Aclose(H5Acreate2(file, "null", H5T_NATIVE_INT, space, H5P_DEFAULT, H5P_DEFAULT));
    H5Sclose(space);
    H5Tclose(padded);
    H5Tclose(variable);
  });
  const Hdf5Reader reader = Hdf5Reader::open(path);
  EXPECT_EQ(reader.attribute_strings("/", "padded"), (std::vector<std::string>{"ab", "abcd"}));
  EXPECT_EQ(reader.attribute_string("/", "nulls"), "ab");
  EXPECT_EQ(reader.attribute_string("/", "full"), "abcd");
  EXPECT_EQ(reader.attribute_strings("/", "variable"), (std::vector<std::string>{"x y", ""}));
  EXPECT_EQ(reader.attribute_i64("/", "small"), -7);
  EXPECT_EQ(reader.attribute_f64s("/", "pair"), (std::vector<double>{1.0, 2.0}));
  const auto refuses = [](const std::function<void()>& action, const char* words) {
    const std::string message = error_of(ExitCode::bad_content, action);
    EXPECT_NE(message.find(words), std::string::npos) << message;
  };
  EXPECT_EQ(reader.attribute_i64s("/", "small"), std::vector<std::int64_t>{-7});
  refuses([&] { reader.attribute_i64s("/", "pair"); }, "does not hold integers");
  refuses([&] { reader.attribute_i64s("/", "most"); }, "18446744073709551615");
  refuses([&] { reader.attribute_i64("/", "most"); }, "18446744073709551615");
  refuses([&] { reader.attribute_i64("/", "pair"); }, "holds 2 values");
  refuses([&] { reader.attribute_f64("/", "pair"); }, "holds 2 values");
  refuses([&] { reader.attribute_i64("/", "full"); }, "does not hold integers");
  refuses([&] { reader.attribute_string("/", "small"); }, "is not a string");
  refuses([&] { reader.attribute_f64("/", "small"); }, "does not hold floats");
  refuses([&] { reader.attribute_i64("/", "null"); }, "holds no values");
  refuses([&] { reader.attribute_i64("/", "gone"); }, "there is no attribute 'gone' of '/'");
  refuses([&] { reader.attribute_i64("/gone", "a"); }, "there is no attribute");
  refuses([&] { reader.read_i32("/gone"); }, "there is no dataset '/gone'");
  refuses([&] { reader.read_i32("/"); }, "cannot be opened");
  refuses([&] { reader.attribute_strings("/", "pair"); }, "is not a string");
}

/// A text attribute `t` of the root, of fixed length or not.
void text_attribute(hid_t file, const std::string& text, bool fixed) {
  const hid_t type = H5Tcopy(H5T_C_S1);
  H5Tset_size(type, fixed ? text.size() : H5T_VARIABLE);
  H5Tset_cset(type, H5T_CSET_UTF8);
  const hid_t space = H5Screate(H5S_SCALAR);
  const hid_t made = H5Acreate2(file, "t", type, space, H5P_DEFAULT, H5P_DEFAULT);
  const char* address = text.c_str();
  EXPECT_GE(H5Awrite(made, type, fixed ? static_cast<const void*>(address) : &address), 0);
  H5Aclose(made);
  H5Sclose(space);
  H5Tclose(type);
}

TEST_F(Crafted, TextsOfADataset) {
  const auto read = [&](const std::vector<const char*>& texts, const std::vector<hsize_t>& shape) {
    const std::string path = craft([&](hid_t file) {
      const hid_t variable = H5Tcopy(H5T_C_S1);
      H5Tset_size(variable, H5T_VARIABLE);
      H5Tset_cset(variable, H5T_CSET_UTF8);
      dataset(file, variable, shape, H5P_DEFAULT, variable, texts.data());
      H5Tclose(variable);
    });
    return Hdf5Reader::open(path).read_texts("/x");
  };
  EXPECT_EQ(read({"two\nlines", "", nullptr, "h\xc3\xa9"}, {4}),
            (std::vector<std::string>{"two\nlines", "", "", "h\xc3\xa9"}));
  const auto refuses = [&](const std::function<void()>& action, const char* words) {
    const std::string message = error_of(ExitCode::bad_content, action);
    EXPECT_NE(message.find(words), std::string::npos) << message;
  };
  refuses([&] { read({"a", "b\xff"}, {2}); }, "'/x' is no text at place 1, byte 1");
  refuses([&] { read({"a", "b"}, {2, 1}); }, "has the shape [2, 1]");
  const std::string fixed = craft([](hid_t file) {
    const hid_t four = H5Tcopy(H5T_C_S1);
    H5Tset_size(four, 4);
    dataset(file, four, {2}, chunked({1}), four, "ab\0\0abcd");
    H5Tclose(four);
  });
  EXPECT_EQ(Hdf5Reader::open(fixed).read_texts("/x"), (std::vector<std::string>{"ab", "abcd"}));
  const std::string numbers = craft([](hid_t file) {
    dataset(file, H5T_STD_I32LE, {6}, H5P_DEFAULT, H5T_NATIVE_INT32, kValues.data());
  });
  refuses([&] { Hdf5Reader::open(numbers).read_texts("/x"); }, "is not a string");
}

TEST_F(Crafted, AttributesThatAreNoText) {
  for (const bool fixed : {true, false}) {
    for (const char* good : {"plain", "\xc3\xa9\xe2\x82\xac\xf0\x9f\x8c\xb2"}) {
      const std::string path = craft([&](hid_t file) { text_attribute(file, good, fixed); });
      EXPECT_EQ(Hdf5Reader::open(path).attribute_string("/", "t"), good);
    }
    // Alone and cut off, a lead too low or too high, too long, half of a pair, controls.
    for (const char* bad :
         {"\xff...", "a\xe2\x82", "\x80...", "\xc0\xaf.", "\xe0\x80\xaf.", "\xed\xa0\x80.",
          "\xf4\x90\x80\x80.", "\xf5\x80\x80\x80.", "\x1b[2J", "a\nb.", "\x7f..."}) {
      const std::string path = craft([&](hid_t file) { text_attribute(file, bad, fixed); });
      const std::string refused = error_of(
          ExitCode::bad_content, [&] { Hdf5Reader::open(path).attribute_string("/", "t"); });
      EXPECT_NE(refused.find("attribute 't' of '/' is no text"), std::string::npos) << refused;
    }
  }
}

}  // namespace
}  // namespace espalier
