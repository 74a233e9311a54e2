#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "espalier/store/safetensors.h"
#include "scratch.h"

namespace espalier {
namespace {

using test::error_of;

std::string little_endian(std::uint64_t value) {
  std::string bytes(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>((value >> (8 * i)) & 0xff);
  return bytes;
}

std::string file_of(const std::string& header, std::size_t data_bytes) {
  return little_endian(header.size()) + header + std::string(data_bytes, 'd');
}

SafetensorsHeader parse(const std::string& file) {
  return parse_safetensors_header(std::as_bytes(std::span(file)), file.size(), "x.safetensors");
}

TEST(SafetensorsHeader, ReadsWhatTheFormatAllows) {
  const std::string json =
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},)"
      R"("a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},)"
      R"("none":{"dtype":"I64","shape":[0,5],"data_offsets":[4,4]}}   )";
  const SafetensorsHeader header = parse(file_of(json, 16));
  EXPECT_EQ(header.data_begin, 8 + json.size());
  EXPECT_EQ(header.metadata, (std::map<std::string, std::string>{{"format", "pt"}}));
  ASSERT_EQ(header.tensors.size(), 3U);
  const TensorInfo& b = header.tensors.at("b");
  EXPECT_EQ(b.dtype, DType::bf16);
  EXPECT_EQ(b.shape, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(b.begin, header.data_begin + 4);
  EXPECT_EQ(b.end, header.data_begin + 16);
  EXPECT_TRUE(header.tensors.at("a").shape.empty());
  EXPECT_EQ(header.tensors.at("none").end, header.tensors.at("none").begin);
  EXPECT_TRUE(parse(file_of("{}", 0)).tensors.empty());
}

std::string one(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return fmt::format(R"({{"t":{{"dtype":{},"shape":{},"data_offsets":{}}}}})", dtype, shape,
                     offsets);
}

std::string two(const std::string& first, const std::string& second) {
  return fmt::format(R"({{"t":{{"dtype":"U8","shape":[4],"data_offsets":{}}},)"
                     R"("u":{{"dtype":"U8","shape":[4],"data_offsets":{}}}}})",
                     first, second);
}

struct Hostile {
  const char* name;
  std::string file;
  const char* words;  // must be in the message
};

std::vector<Hostile> hostile_files() {
  const std::string good = one("\"F32\"", "[2]", "[0,8]");
  const std::string most = "18446744073709551615";
  return {
      {"empty file", "", "0 bytes are too few"},
      {"seven bytes", std::string(7, '\0'), "7 bytes are too few"},
      {"length 0", little_endian(0) + "{}", "length is 0"},
      {"length 1", little_endian(1) + "{}", "length is 1"},
      {"length past the end", little_endian(good.size() + 1) + good, "cut off"},
      {"length that wraps with 8", little_endian(~std::uint64_t{0} - 7) + good, "cut off"},
      {"length of all ones", little_endian(~std::uint64_t{0}) + good, "18446744073709551615"},
      {"not an object", file_of("[]", 0), "must begin with '{'"},
      {"blank before the brace", file_of(" {}", 0), "must begin with '{'"},
      {"pickle", std::string("\x80\x02}q\x01.") + std::string(90, 'x'), "cut off"},
      {"JSON cut off", file_of("{\"t\":", 0), "invalid JSON"},
      {"text after the JSON", file_of("{}{}", 0), "invalid JSON"},
      {"NUL padding", file_of(std::string("{}\0\0", 4), 0), "contains NUL"},
      {"invalid UTF-8 in a name", file_of("{\"\xff\xfe\":1}", 0), "UTF-8"},
      {"too deep", file_of(fmt::format("{{\"t\":{:[>5000}{:]>5000}}}", "", ""), 0), "deeper"},
      {"duplicate name",
       file_of(R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
               R"("t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
               1),
       "duplicate"},
      {"tensor that is a number", file_of(R"({"t":5})", 0), "not described by an object"},
      {"metadata that is a list", file_of(R"({"__metadata__":["a"]})", 0), "not an object"},
      {"metadata value that is a number", file_of(R"({"__metadata__":{"a":1}})", 0),
       "not a string"},
      {"no dtype", file_of(R"({"t":{"shape":[1],"data_offsets":[0,1]}})", 1), "has no dtype"},
      {"unknown dtype", file_of(one("\"F31\"", "[2]", "[0,8]"), 8), "unknown dtype 'F31'"},
      {"dtype that is a number", file_of(one("32", "[2]", "[0,8]"), 8), "has no dtype"},
      {"no shape", file_of(R"({"t":{"dtype":"U8","data_offsets":[0,1]}})", 1), "has no shape"},
      {"negative extent", file_of(one("\"F32\"", "[-2]", "[0,8]"), 8), "extent '-2'"},
      {"fractional extent", file_of(one("\"F32\"", "[2.0]", "[0,8]"), 8), "extent '2.0'"},
      {"extent beyond 63 bits", file_of(one("\"U8\"", "[9223372036854775808]", "[0,8]"), 8),
       "extents are integers"},
      {"extent beyond 64 bits", file_of(one("\"U8\"", "[18446744073709551616]", "[0,8]"), 8),
       "extents are integers"},
      {"product wraps to the right size",
       file_of(one("\"F32\"", "[4611686018427387906]", "[0,8]"), 8), "does not fit"},
      {"product of two wraps", file_of(one("\"U8\"", "[4294967296,4294967296]", "[0,0]"), 0),
       "does not fit"},
      {"product with a zero wraps", file_of(one("\"U8\"", "[0,4294967296,4294967296]", "[0,0]"), 0),
       "does not fit"},
      {"shape larger than the data", file_of(one("\"F32\"", "[3]", "[0,8]"), 8), "need 12"},
      {"shape smaller than the data", file_of(one("\"F32\"", "[1]", "[0,8]"), 8), "need 4"},
      {"no offsets", file_of(R"({"t":{"dtype":"U8","shape":[1]}})", 1), "has no data_offsets"},
      {"one offset", file_of(one("\"F32\"", "[2]", "[0]"), 8), "has no data_offsets"},
      {"three offsets", file_of(one("\"F32\"", "[2]", "[0,8,8]"), 8), "has no data_offsets"},
      {"negative offset", file_of(one("\"F32\"", "[2]", "[-8,0]"), 8), "has no data_offsets"},
      {"offsets swapped", file_of(one("\"F32\"", "[2]", "[8,0]"), 8), "data_offsets [8, 0]"},
      {"offset past the end", file_of(one("\"F32\"", "[4]", "[0,16]"), 8), "8 bytes of data"},
      {"huge offset", file_of(one("\"F32\"", "[2]", fmt::format("[{0},{0}]", most)), 8),
       "18446744073709551615"},
      {"hole at the front", file_of(one("\"U8\"", "[4]", "[4,8]"), 8), "no hole"},
      {"hole between", file_of(two("[0,4]", "[5,9]"), 9), "no hole"},
      {"overlap", file_of(two("[0,4]", "[2,6]"), 6), "overlap"},
      {"same range twice", file_of(two("[0,4]", "[0,4]"), 4), "overlap"},
      {"bytes after the last tensor", file_of(good, 9), "to its last byte"},
      {"data without tensors", file_of("{}", 4), "to its last byte"},
  };
}

TEST(SafetensorsHeader, RefusesEachBrokenRule) {
  const std::vector<Hostile> list = hostile_files();
  EXPECT_GE(list.size(), 40U);
  for (const Hostile& hostile : list) {
    const std::string message = error_of(ExitCode::bad_content, [&] { parse(hostile.file); });
    EXPECT_NE(message.find(hostile.words), std::string::npos) << hostile.name << ": " << message;
    EXPECT_NE(message.find("x.safetensors: "), std::string::npos)
        << hostile.name << ": " << message;
    EXPECT_EQ(message.find('\0'), std::string::npos) << hostile.name;
  }
}

TEST(SafetensorsHeader, HeaderBeyondTheLimit) {
  // Only the length field exists: nothing may be read or allocated for it.
  const std::string prefix = little_endian(100'000'001);
  const std::string message = error_of(ExitCode::bad_content, [&] {
    parse_safetensors_header(std::as_bytes(std::span(prefix)), std::uint64_t{1} << 40, "x");
  });
  EXPECT_NE(message.find("100000000"), std::string::npos) << message;
}

TEST(SafetensorsHeader, NamesAllProblemsButNotAMillion) {
  std::string json = R"({"a":{"dtype":"F31","shape":[-1],"data_offsets":[5,1]},"b":7})";
  const std::string message = error_of(ExitCode::bad_content, [&] { parse(file_of(json, 1)); });
  for (const char* words : {"F31", "'-1'", "[5, 1]", "tensor 'b'"})
    EXPECT_NE(message.find(words), std::string::npos) << words << " in " << message;
  json = "{";
  for (int i = 0; i < 1000; ++i) json += fmt::format("{}\"t{}\":1", i == 0 ? "" : ",", i);
  const std::string many =
      error_of(ExitCode::bad_content, [&] { parse(file_of(json.append("}"), 0)); });
  EXPECT_LT(many.size(), 5000U);
  EXPECT_NE(many.find("980 more problems"), std::string::npos) << many;
}

}  // namespace
}  // namespace espalier
