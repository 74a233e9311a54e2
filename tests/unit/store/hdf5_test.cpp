#include "espalier/store/hdf5_file.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <ctime>
#include <limits>
#include <numeric>
#include <random>

#include "espalier/store/files.h"
#include "scratch.h"

namespace espalier {
namespace {

using test::error_of;
using test::Scratch;

template <class T>
std::vector<T> counting(std::size_t n, T start = 0) {
  std::vector<T> values(n);
  std::iota(values.begin(), values.end(), start);
  return values;
}

std::vector<std::byte> sample_image() {
  Hdf5Writer writer;
  const auto order = counting<std::int32_t>(24, -5);
  const auto large = counting<std::int64_t>(300000, std::int64_t{1} << 40);
  std::vector<std::uint8_t> mask(3 * 200);
  for (std::size_t i = 0; i < mask.size(); ++i) mask[i] = static_cast<std::uint8_t>(i % 251);
  writer.write("/attention/order", order, {2, 3, 4});
  writer.write("/mlp/deep/large", large, {300, 1000});
  writer.write("/mask", mask, {3, 200});
  writer.write("/weights", std::vector<float>{0.5F, -1.25F}, {2});
  writer.write("/scores", std::vector<double>{0.1, std::numeric_limits<double>::infinity(), -0.0},
               {3});
  writer.write("/scalar", std::vector<std::int32_t>{42}, {});
  writer.write("/empty", std::vector<std::int32_t>{}, {0, 7});
  writer.attribute("/", "schema", std::string("espalier-plan"));
  writer.attribute("/", "version", std::int64_t{3});
  writer.attribute("/mlp", "ratio", 0.25);
  writer.attribute("/mlp/deep/large", "names", std::vector<std::string>{"a", "", "h\xc3\xa9"});
  writer.attribute("/new/group", "values", std::vector<double>{1.5, -2.0});
  writer.attribute("/", "none", std::vector<std::string>{});
  writer.attribute("/", "empty", std::string());
  return writer.finish();
}

void expect_sample(const Hdf5Reader& reader) {
  EXPECT_EQ(reader.shape("/attention/order"), (std::vector<std::int64_t>{2, 3, 4}));
  EXPECT_EQ(reader.read_i32("/attention/order").values, counting<std::int32_t>(24, -5));
  EXPECT_EQ(reader.read_i64("/mlp/deep/large").values,
            counting<std::int64_t>(300000, std::int64_t{1} << 40));
  const auto mask = reader.read_u8("/mask");
  EXPECT_EQ(mask.shape, (std::vector<std::int64_t>{3, 200}));
  EXPECT_EQ(mask.values[599], 599 % 251);
  EXPECT_EQ(reader.read_f64("/weights").values, (std::vector<double>{0.5, -1.25}));
  const auto scores = reader.read_f64("/scores").values;
  EXPECT_EQ(scores, (std::vector<double>{0.1, std::numeric_limits<double>::infinity(), -0.0}));
  EXPECT_TRUE(std::signbit(scores[2]));
  EXPECT_EQ(reader.read_i32("/scalar").values, std::vector<std::int32_t>{42});
  EXPECT_TRUE(reader.shape("/scalar").empty());
  EXPECT_TRUE(reader.read_i32("/empty").values.empty());
  EXPECT_EQ(reader.shape("/empty"), (std::vector<std::int64_t>{0, 7}));
  EXPECT_EQ(reader.attribute_string("/", "schema"), "espalier-plan");
  EXPECT_EQ(reader.attribute_i64("/", "version"), 3);
  EXPECT_EQ(reader.attribute_f64("/mlp", "ratio"), 0.25);
  EXPECT_EQ(reader.attribute_strings("/mlp/deep/large", "names"),
            (std::vector<std::string>{"a", "", "h\xc3\xa9"}));
  EXPECT_EQ(reader.attribute_f64s("/new/group", "values"), (std::vector<double>{1.5, -2.0}));
  EXPECT_TRUE(reader.attribute_strings("/", "none").empty());
  EXPECT_EQ(reader.attribute_string("/", "empty"), "");
  EXPECT_TRUE(reader.has("/mlp/deep"));
  EXPECT_TRUE(reader.has("/"));
  EXPECT_FALSE(reader.has("/mlp/shallow/large"));
  EXPECT_TRUE(reader.has_attribute("/mlp", "ratio"));
  EXPECT_FALSE(reader.has_attribute("/mlp", "none"));
  EXPECT_FALSE(reader.has_attribute("/no", "none"));
}

TEST(Hdf5, RoundTripThroughImageAndFile) {
  const std::vector<std::byte> image = sample_image();
  expect_sample(Hdf5Reader::from_image(image, "image"));
  const Scratch scratch;
  write_new_file(scratch / "f.h5", image, WriteScope::other);
  expect_sample(Hdf5Reader::open(scratch / "f.h5"));
}

TEST(Hdf5, SameContentSameBytes) {
  const std::vector<std::byte> first = sample_image();
  // Modification times have a resolution of one second.
  for (const std::time_t now = std::time(nullptr); std::time(nullptr) == now;) ::usleep(10000);
  EXPECT_TRUE(first == sample_image());
}

TEST(Hdf5, TwoImagesAtOnceStayApart) {
  Hdf5Writer a;
  Hdf5Writer b;
  a.write("/x", std::vector<std::int32_t>{1}, {1});
  b.write("/x", std::vector<std::int32_t>{2}, {1});
  const auto image_a = a.finish();
  const auto image_b = b.finish();
  Hdf5Reader read_a = Hdf5Reader::from_image(image_a, "a");
  Hdf5Reader read_b = Hdf5Reader::from_image(image_b, "b");
  EXPECT_EQ(read_a.read_i32("/x").values.front(), 1);
  EXPECT_EQ(read_b.read_i32("/x").values.front(), 2);
  read_a = std::move(read_b);
  EXPECT_EQ(read_a.read_i32("/x").values.front(), 2);
}

TEST(Hdf5, IntegersAreRangeChecked) {
  Hdf5Writer writer;
  writer.write("/wide", std::vector<std::int64_t>{0, std::int64_t{1} << 31}, {2});
  writer.write("/fits", std::vector<std::int64_t>{INT32_MIN, INT32_MAX}, {2});
  writer.write("/negative", std::vector<std::int32_t>{3, -1}, {2});
  writer.write("/bytes", std::vector<std::int32_t>{0, 255}, {2});
  writer.write("/small", std::vector<std::uint8_t>{0, 255}, {2});
  const auto image = writer.finish();
  const Hdf5Reader reader = Hdf5Reader::from_image(image, "x.h5");
  const std::string message = error_of(ExitCode::bad_content, [&] { reader.read_i32("/wide"); });
  EXPECT_NE(message.find("x.h5: dataset '/wide' holds 2147483648 at place 1"), std::string::npos)
      << message;
  EXPECT_EQ(reader.read_i32("/fits").values, (std::vector<std::int32_t>{INT32_MIN, INT32_MAX}));
  error_of(ExitCode::bad_content, [&] { reader.read_u8("/negative"); });
  EXPECT_EQ(reader.read_u8("/bytes").values, (std::vector<std::uint8_t>{0, 255}));
  EXPECT_EQ(reader.read_i64("/small").values, (std::vector<std::int64_t>{0, 255}));
  EXPECT_EQ(reader.read_i32("/small").values, (std::vector<std::int32_t>{0, 255}));
  error_of(ExitCode::bad_content, [&] { reader.read_f64("/small"); });
}

TEST(Hdf5, RowsAgainstTheWholeDataset) {
  Hdf5Writer writer;
  const auto tokens = counting<std::int32_t>(1000 * 33);
  std::vector<std::uint8_t> mask(1000 * 33);
  for (std::size_t i = 0; i < mask.size(); ++i) mask[i] = static_cast<std::uint8_t>(i * 7 % 256);
  writer.write("/tokens", tokens, {1000, 33});
  writer.write("/mask", mask, {1000, 11, 3});
  writer.write("/line", counting<std::int32_t>(50), {50});
  const auto image = writer.finish();
  const Hdf5Reader reader = Hdf5Reader::from_image(image, "x");
  std::mt19937 random(5);
  for (int round = 0; round < 50; ++round) {
    std::vector<std::int64_t> rows(random() % 20);
    for (std::int64_t& row : rows) row = static_cast<std::int64_t>(random() % 1000);
    if (round % 3 == 0) std::iota(rows.begin(), rows.end(), std::int64_t{round});
    if (round % 7 == 0) rows.insert(rows.end(), rows.begin(), rows.end());  // twice
    std::vector<std::int32_t> naive;
    std::vector<std::uint8_t> naive_mask;
    for (const std::int64_t row : rows) {
      naive.insert(naive.end(), tokens.begin() + row * 33, tokens.begin() + (row + 1) * 33);
      naive_mask.insert(naive_mask.end(), mask.begin() + row * 33, mask.begin() + (row + 1) * 33);
    }
    const auto n = static_cast<std::int64_t>(rows.size());
    const auto found = reader.read_rows_i32("/tokens", rows);
    EXPECT_EQ(found.shape, (std::vector<std::int64_t>{n, 33}));
    EXPECT_EQ(found.values, naive);
    const auto found_mask = reader.read_rows_u8("/mask", rows);
    EXPECT_EQ(found_mask.shape, (std::vector<std::int64_t>{n, 11, 3}));
    EXPECT_EQ(found_mask.values, naive_mask);
  }
  EXPECT_EQ(reader.read_rows_i32("/line", std::vector<std::int64_t>{49, 0}).values,
            (std::vector<std::int32_t>{49, 0}));
  error_of(ExitCode::internal,
           [&] { reader.read_rows_i32("/tokens", std::vector<std::int64_t>{1000}); });
  error_of(ExitCode::internal,
           [&] { reader.read_rows_i32("/tokens", std::vector<std::int64_t>{-1}); });
  error_of(ExitCode::bad_content,
           [&] { reader.read_rows_u8("/tokens", std::vector<std::int64_t>{900}); });
}

TEST(Hdf5, AttributesBeyondTheOldLimit) {
  Hdf5Writer writer;
  const std::vector<double> values(20000, 0.5);  // 160 kB; the old format holds 64 KiB
  const std::vector<std::string> names(10000, "unit");
  writer.attribute("/", "values", values);
  writer.attribute("/", "names", names);
  const auto image = writer.finish();
  const Hdf5Reader reader = Hdf5Reader::from_image(image, "x");
  EXPECT_EQ(reader.attribute_f64s("/", "values"), values);
  EXPECT_EQ(reader.attribute_strings("/", "names"), names);
}

TEST(Hdf5, WriterRefusesWrongUse) {
  Hdf5Writer writer;
  const std::vector<std::int32_t> two{1, 2};
  error_of(ExitCode::internal, [&] { writer.write("/x", two, {3}); });
  error_of(ExitCode::internal, [&] { writer.write("/x", two, {-1, -2}); });
  error_of(ExitCode::internal, [&] { writer.write("x", two, {2}); });
  error_of(ExitCode::internal, [&] { writer.write("/a//x", two, {2}); });
  error_of(ExitCode::internal, [&] { writer.attribute("/", "s", std::string("a\0b", 3)); });
  writer.write("/x", two, {2});
  const std::string message = error_of(ExitCode::internal, [&] { writer.write("/x", two, {2}); });
  EXPECT_NE(message.find("H5Dcreate2"), std::string::npos) << message;
  EXPECT_NE(message.find("name already exists"), std::string::npos) << message;
  error_of(ExitCode::internal, [&] { writer.write("/x/below", two, {2}); });
}

/// The image never meets the disk: no file-size limit can break it.
TEST(Hdf5, NeverWritesToDisk) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit nothing{0, 0};
    if (::setrlimit(RLIMIT_FSIZE, &nothing) != 0) ::_exit(2);
    ::_exit(sample_image().size() > 1000 ? 0 : 3);
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

TEST(Hdf5, OneFlippedBitIsFound) {
  Hdf5Writer writer;
  const auto values = counting<std::int32_t>(1000, 1 << 20);
  writer.write("/x", values, {1000});
  std::vector<std::byte> image = writer.finish();
  const auto raw = std::as_bytes(std::span(values)).subspan(400, 64);
  const auto at = std::search(image.begin(), image.end(), raw.begin(), raw.end());
  ASSERT_NE(at, image.end());
  *at ^= std::byte{1};
  const std::string message =
      error_of(ExitCode::bad_content, [&] { Hdf5Reader::from_image(image, "x").read_i32("/x"); });
  EXPECT_NE(message.find("'/x' cannot be read"), std::string::npos) << message;
}

TEST(Hdf5, EveryTruncationIsFound) {
  const std::vector<std::byte> image = sample_image();
  for (std::size_t step = 0; step < 64; ++step) {
    const std::size_t size = image.size() * step / 64;
    error_of(ExitCode::bad_content,
             [&] { Hdf5Reader::from_image(std::span(image).first(size), "x"); });
  }
  error_of(ExitCode::bad_content,
           [&] { Hdf5Reader::from_image(std::span(image).first(image.size() - 1), "x"); });
}

TEST(Hdf5, FilesThatAreNone) {
  const Scratch scratch;
  error_of(ExitCode::missing_input, [&] { Hdf5Reader::open(scratch / "gone.h5"); });
  error_of(ExitCode::missing_input, [&] { Hdf5Reader::open(scratch.path()); });
  test::put(scratch / "text.h5", "plain text");
  const std::string message =
      error_of(ExitCode::bad_content, [&] { Hdf5Reader::open(scratch / "text.h5"); });
  EXPECT_NE(message.find("signature"), std::string::npos) << message;
  test::put(scratch / "none.h5", "");
  error_of(ExitCode::bad_content, [&] { Hdf5Reader::open(scratch / "none.h5"); });
}

}  // namespace
}  // namespace espalier
