#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <sstream>

#include "espalier/core/hash.h"
#include "espalier/store/files.h"
#include "espalier/store/safetensors.h"
#include "scratch.h"

namespace espalier {
namespace {

using test::error_of;
using test::Fault;
using test::listing;
using test::put;
using test::Scratch;
using Entry = SafetensorsWriter::Entry;

std::vector<std::byte> pattern(std::size_t bytes, std::uint64_t seed) {
  std::vector<std::byte> values(bytes);
  std::uint64_t state = seed * 2654435761U + 1;
  for (std::byte& value : values) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    value = static_cast<std::byte>(state >> 56);
  }
  return values;
}

std::size_t bytes_of(const Entry& entry) {
  std::size_t bytes = size_of(entry.dtype);
  for (const std::int64_t extent : entry.shape) bytes *= static_cast<std::size_t>(extent);
  return bytes;
}

/// Writes a file whose tensor number i holds pattern(i + seed); returns its SHA-256.
std::string write_model(const std::filesystem::path& path, const std::vector<Entry>& entries,
                        std::uint64_t seed = 0) {
  SafetensorsWriter writer(path, entries, {{"format", "pt"}});
  for (std::size_t i = 0; i < entries.size(); ++i)
    writer.write(entries[i].name, pattern(bytes_of(entries[i]), i + seed));
  return writer.finish();
}

TEST(Checkpoint, RoundTrip) {
  const Scratch scratch;
  const std::vector<Entry> entries{
      {"embed", DType::bf16, {7, 3}},   {"none", DType::f32, {0, 4}},
      {"scalar", DType::f64, {}},       {"norm", DType::f32, {5}},
      {"big", DType::u8, {3, 1 << 20}}, {"last\"\xc3\xa9", DType::i8, {2, 2, 2}},
      {"end", DType::f16, {2, 0}}};
  const std::string digest = write_model(scratch / "model.safetensors", entries);
  EXPECT_EQ(digest, sha256_of_file(scratch / "model.safetensors"));
  const CheckpointReader reader = CheckpointReader::open(scratch.path());
  EXPECT_EQ(reader.directory(), scratch.path());
  EXPECT_EQ(reader.files(), std::vector<std::string>{"model.safetensors"});
  EXPECT_EQ(reader.tensors().size(), entries.size());
  EXPECT_EQ(reader.find("nothing"), nullptr);
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const TensorInfo* info = reader.find(entries[i].name);
    ASSERT_NE(info, nullptr);
    EXPECT_EQ(info->dtype, entries[i].dtype);
    EXPECT_EQ(info->shape, entries[i].shape);
    EXPECT_EQ(info->file, "model.safetensors");
    const std::int64_t rows = info->shape.empty() ? 1 : info->shape[0];
    const std::int64_t columns =
        std::accumulate(info->shape.begin() + (info->shape.empty() ? 0 : 1), info->shape.end(),
                        std::int64_t{1}, std::multiplies<>());
    std::vector<std::byte> read(bytes_of(entries[i]));
    reader.read(entries[i].name, IndexRuns::all(rows), IndexRuns::all(columns), read);
    EXPECT_EQ(read, pattern(read.size(), i)) << entries[i].name;
  }
  // The data begins at a multiple of 8 bytes.
  EXPECT_EQ(reader.find("embed")->begin % 8, 0U);
}

IndexRuns random_runs(std::int64_t n, std::mt19937& random, int keep_of_ten) {
  std::vector<std::int32_t> units;
  for (std::int32_t i = 0; i < n; ++i)
    if (static_cast<int>(random() % 10) < keep_of_ten) units.push_back(i);
  return IndexRuns::of_units(units, 1);
}

TEST(Checkpoint, SlicesAgainstTheWholeTensor) {
  const Scratch scratch;
  const std::vector<Entry> entries{{"a", DType::bf16, {37, 61}},
                                   {"b", DType::f32, {16, 8}},
                                   {"wide", DType::u8, {3, 300000}},
                                   {"v", DType::f32, {1000}},
                                   {"cube", DType::f16, {5, 4, 3}}};
  write_model(scratch / "model.safetensors", entries);
  const CheckpointReader reader = CheckpointReader::open(scratch.path());
  std::mt19937 random(11);
  for (int round = 0; round < 400; ++round) {
    const std::size_t which = random() % entries.size();
    const Entry& entry = entries[which];
    const std::size_t item = size_of(entry.dtype);
    const std::int64_t height = entry.shape[0];
    const std::int64_t width = static_cast<std::int64_t>(bytes_of(entry) / item) / height;
    const IndexRuns rows = random() % 3 == 0
                               ? IndexRuns::all(height)
                               : random_runs(height, random, static_cast<int>(random() % 11));
    IndexRuns columns = IndexRuns::all(width);
    if (random() % 3 == 1)
      columns = IndexRuns::of(even_cut(width, 2, static_cast<int>(random() % 2)));
    if (random() % 3 == 2) columns = random_runs(width, random, static_cast<int>(random() % 11));
    const std::vector<std::byte> whole = pattern(bytes_of(entry), which);
    std::vector<std::byte> naive;
    for (const std::int64_t row : rows.indices())
      for (const std::int64_t column : columns.indices())
        for (std::size_t i = 0; i < item; ++i)
          naive.push_back(whole[static_cast<std::size_t>(row * width + column) * item + i]);
    std::vector<std::byte> read(naive.size());
    reader.read(entry.name, rows, columns, read);
    ASSERT_TRUE(read == naive) << entry.name << " round " << round;
  }
}

TEST(Checkpoint, RefusesImpossibleSlices) {
  const Scratch scratch;
  write_model(scratch / "model.safetensors", {{"a", DType::u8, {4, 6}}});
  const CheckpointReader reader = CheckpointReader::open(scratch.path());
  std::vector<std::byte> out(24);
  const auto all = IndexRuns::all(4);
  error_of(ExitCode::internal, [&] { reader.read("b", all, IndexRuns::all(6), out); });
  error_of(ExitCode::internal,
           [&] { reader.read("a", IndexRuns::all(5), IndexRuns::all(6), out); });
  error_of(ExitCode::internal, [&] { reader.read("a", all, IndexRuns::of({3, 7}), out); });
  error_of(ExitCode::internal, [&] { reader.read("a", all, IndexRuns::all(5), out); });
  std::filesystem::resize_file(scratch / "model.safetensors",
                               std::filesystem::file_size(scratch / "model.safetensors") - 1);
  const std::string message =
      error_of(ExitCode::bad_content, [&] { reader.read("a", all, IndexRuns::all(6), out); });
  EXPECT_NE(message.find("ended inside tensor 'a'"), std::string::npos) << message;
}

std::int64_t bytes_read_so_far() {
  std::istringstream stream(read_file("/proc/self/io"));
  std::string key;
  std::int64_t value = 0;
  while (stream >> key >> value)
    if (key == "rchar:") return value;
  return -1;
}

/// What one of two tensor-parallel ranks reads, as the kernel counts it.
TEST(Checkpoint, HalfTheModelReadsHalfTheFile) {
  if (!std::filesystem::exists("/proc/self/io")) GTEST_SKIP() << "no /proc/self/io";
  const Scratch scratch;
  std::vector<Entry> entries;
  for (int layer = 0; layer < 2; ++layer)
    for (const char* name : {"gate", "down"})
      entries.push_back({fmt::format("{}.{}", name, layer),
                         DType::bf16,
                         {name[0] == 'g' ? 172 : 64, name[0] == 'g' ? 64 : 172}});
  write_model(scratch / "model.safetensors", entries);
  const auto file_bytes =
      static_cast<std::int64_t>(std::filesystem::file_size(scratch / "model.safetensors"));
  for (int rank = 0; rank < 2; ++rank) {
    const std::int64_t idle = -bytes_read_so_far() + bytes_read_so_far();  // counting costs, too
    const std::int64_t before = bytes_read_so_far();
    const CheckpointReader reader = CheckpointReader::open(scratch.path());
    std::vector<std::byte> out(172 * 64);  // half of 2-byte elements
    const IndexRuns half = IndexRuns::of(even_cut(172, 2, rank));
    for (const Entry& entry : entries) {
      if (entry.name[0] == 'g')
        reader.read(entry.name, half, IndexRuns::all(64), out);
      else
        reader.read(entry.name, IndexRuns::all(64), half, out);
    }
    const std::int64_t used = bytes_read_so_far() - before - idle;
    EXPECT_LE(used, file_bytes * 55 / 100) << "of " << file_bytes << ", rank " << rank;
    EXPECT_GE(used, file_bytes * 45 / 100) << "the count itself must be true";
  }
}

TEST(Checkpoint, ScatteredColumnsReadAtMostTwiceWhatIsUseful) {
  if (!std::filesystem::exists("/proc/self/io")) GTEST_SKIP() << "no /proc/self/io";
  const Scratch scratch;
  write_model(scratch / "model.safetensors", {{"a", DType::f32, {64, 4096}}});
  const CheckpointReader reader = CheckpointReader::open(scratch.path());
  // Two clusters with a gap that two ranks' columns would leave, each with every third column
  // missing.
  std::vector<std::int32_t> units;
  for (std::int32_t i = 0; i < 600; ++i)
    if (i % 3 != 1) units.push_back(i);
  for (std::int32_t i = 3500; i < 4096; ++i)
    if (i % 3 != 1) units.push_back(i);
  const IndexRuns columns = IndexRuns::of_units(units, 1);
  std::vector<std::byte> out(64 * units.size() * 4);
  const std::int64_t before = bytes_read_so_far();
  reader.read("a", IndexRuns::all(64), columns, out);
  const std::int64_t used = bytes_read_so_far() - before;
  EXPECT_LE(used, static_cast<std::int64_t>(2 * out.size()));
}

std::string index_of(const std::vector<std::pair<std::string, std::string>>& map) {
  std::string text = R"({"metadata":{"total_size":1},"weight_map":{)";
  for (std::size_t i = 0; i < map.size(); ++i)
    text += fmt::format("{}\"{}\":\"{}\"", i == 0 ? "" : ",", map[i].first, map[i].second);
  return text.append("}}");
}

struct Sharded : ::testing::Test {
  void SetUp() override {
    write_model(scratch / "s1.safetensors", {{"a", DType::u8, {4}}, {"b", DType::u8, {4}}});
    write_model(scratch / "s2.safetensors", {{"c", DType::u8, {4}}}, 7);
  }
  void index(const std::vector<std::pair<std::string, std::string>>& map) {
    put(scratch / "model.safetensors.index.json", index_of(map));
  }
  std::string refusal(ExitCode code) {
    return error_of(code, [&] { CheckpointReader::open(scratch.path()); });
  }
  Scratch scratch;
};

TEST_F(Sharded, ReadsShards) {
  index({{"a", "s1.safetensors"}, {"b", "s1.safetensors"}, {"c", "s2.safetensors"}});
  const CheckpointReader reader = CheckpointReader::open(scratch.path());
  EXPECT_EQ(reader.files(), (std::vector<std::string>{"s1.safetensors", "s2.safetensors"}));
  EXPECT_EQ(reader.find("c")->file, "s2.safetensors");
  std::vector<std::byte> out(4);
  reader.read("c", IndexRuns::all(4), IndexRuns::all(1), out);
  EXPECT_EQ(out, pattern(4, 7));
}

TEST_F(Sharded, LinkedShardsAreRead) {
  std::filesystem::create_directory(scratch / "blobs");
  std::filesystem::rename(scratch / "s2.safetensors", scratch / "blobs" / "0123");
  std::filesystem::create_symlink("blobs/0123", scratch / "s2.safetensors");
  index({{"a", "s1.safetensors"}, {"c", "s2.safetensors"}});
  EXPECT_EQ(CheckpointReader::open(scratch.path()).tensors().size(), 3U);
}

TEST_F(Sharded, AllMissingShardsAtOnce) {
  index({{"a", "s1.safetensors"}, {"x", "s8.safetensors"}, {"y", "s9.safetensors"}});
  const std::string message = refusal(ExitCode::missing_input);
  EXPECT_NE(message.find("s8.safetensors"), std::string::npos) << message;
  EXPECT_NE(message.find("s9.safetensors"), std::string::npos) << message;
}

TEST_F(Sharded, TensorInAnotherFileThanTheIndexSays) {
  index({{"a", "s1.safetensors"}, {"b", "s2.safetensors"}, {"c", "s2.safetensors"}});
  const std::string message = refusal(ExitCode::bad_content);
  EXPECT_NE(message.find("tensor 'b' is in 's1.safetensors', not in 's2.safetensors'"),
            std::string::npos)
      << message;
}

TEST_F(Sharded, TensorNowhereIsMissedOnlyByWhoNeedsIt) {
  index({{"a", "s1.safetensors"}, {"zz", "s2.safetensors"}});
  const CheckpointReader reader = CheckpointReader::open(scratch.path());
  EXPECT_EQ(reader.find("zz"), nullptr);
  EXPECT_EQ(reader.unfound(), (std::map<std::string, std::string>{{"zz", "s2.safetensors"}}));
}

TEST_F(Sharded, TensorTwiceWithDifferentContents) {
  write_model(scratch / "s3.safetensors", {{"a", DType::u8, {4}}}, 9);
  index({{"b", "s1.safetensors"}, {"a", "s3.safetensors"}});
  const std::string message = refusal(ExitCode::bad_content);
  EXPECT_NE(message.find("tensor 'a' is in 's1.safetensors' and in"), std::string::npos);
  EXPECT_NE(message.find("Take one of them out"), std::string::npos) << message;
}

TEST_F(Sharded, TensorTwiceInAnotherShape) {
  write_model(scratch / "s3.safetensors", {{"a", DType::u8, {2, 2}}});
  index({{"b", "s1.safetensors"}, {"a", "s3.safetensors"}});
  EXPECT_NE(refusal(ExitCode::bad_content).find("with different contents"), std::string::npos);
}

TEST_F(Sharded, TensorTwiceWithTheSameContents) {
  write_model(scratch / "s3.safetensors", {{"a", DType::u8, {4}}});
  index({{"b", "s1.safetensors"}, {"a", "s3.safetensors"}});
  const CheckpointReader reader = CheckpointReader::open(scratch.path());
  ASSERT_EQ(reader.notes().size(), 1U);
  EXPECT_NE(reader.notes()[0].find("tensor 'a'"), std::string::npos) << reader.notes()[0];
  std::vector<std::byte> out(4);
  reader.read("a", IndexRuns::all(4), IndexRuns::all(1), out);
  EXPECT_EQ(out, pattern(4, 0));
}

TEST_F(Sharded, ShardsThatWereNotDownloaded) {
  index({{"a", "s1.safetensors"}, {"c", "s2.safetensors"}, {"x", "s9.safetensors"}});
  put(scratch / "s9.safetensors.incomplete", "half");
  const std::string partial = refusal(ExitCode::missing_input);
  EXPECT_NE(partial.find("'s9.safetensors.incomplete' is there"), std::string::npos) << partial;
  const std::pair<const char*, const char*> contents[] = {
      {"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4976698672\n",
       "is a Git LFS pointer of 73 bytes"},
      {"<!DOCTYPE html>\n<html></html>\n", "is an HTML or XML page"},
      {"", "is empty"},
      {"Entry not found", "Download or export the checkpoint again."}};
  for (const auto& [content, words] : contents) {
    put(scratch / "s9.safetensors", content);
    const std::string message = refusal(ExitCode::bad_content);
    EXPECT_NE(message.find("s9.safetensors: "), std::string::npos) << message;
    EXPECT_NE(message.find(words), std::string::npos) << message;
    EXPECT_TRUE(message.ends_with(".")) << message;
  }
}

TEST(Checkpoint, WeightsOfAnotherFrameworkAreRefused) {
  for (const auto& [format, read] : std::vector<std::pair<std::string, bool>>{
           {"tf", false}, {"flax", false}, {"pt", true}, {"mlx", true}}) {
    const Scratch scratch;
    SafetensorsWriter writer(scratch / "model.safetensors", {{"a", DType::u8, {4}}},
                             {{"format", format}});
    writer.write("a", pattern(4, 0));
    writer.finish();
    const auto open = [&] { CheckpointReader::open(scratch.path()); };
    if (read)
      EXPECT_NO_THROW(open()) << format;
    else
      EXPECT_NE(error_of(ExitCode::bad_content, open).find("format = '" + format),
                std::string::npos);
  }
}

TEST(Checkpoint, NamesOfAModelWithoutItsHeadGetTheirPrefix) {
  const Scratch scratch;
  write_model(scratch / "model.safetensors",
              {{"embed_tokens.weight", DType::u8, {4}}, {"norm.weight", DType::u8, {2}}});
  const CheckpointReader reader = CheckpointReader::open(scratch.path());
  ASSERT_NE(reader.find("model.embed_tokens.weight"), nullptr);
  ASSERT_NE(reader.find("model.norm.weight"), nullptr);
  EXPECT_EQ(reader.tensors().size(), 2U);
  ASSERT_EQ(reader.notes().size(), 1U);
}

TEST_F(Sharded, OneBrokenShardAmongMissingOnes) {
  put(scratch / "bad.safetensors", "not a checkpoint at all");
  index({{"a", "s1.safetensors"}, {"p", "bad.safetensors"}, {"q", "gone.safetensors"}});
  const std::string message = refusal(ExitCode::bad_content);
  EXPECT_NE(message.find("bad.safetensors"), std::string::npos) << message;
  EXPECT_NE(message.find("gone.safetensors"), std::string::npos) << message;
}

TEST_F(Sharded, NamesThatLeadElsewhere) {
  write_model(scratch / "outside", {{"a", DType::u8, {4}}});
  for (const char* name : {"../outside", "/etc/passwd", "sub/s1.safetensors", "..", ".", "",
                           "a\\\\b", "..s1.safetensors", "s1\\u0000.safetensors", "s1\\n"}) {
    index({{"a", name}});
    const std::string message = refusal(ExitCode::bad_content);
    EXPECT_NE(message.find("plain names"), std::string::npos) << name << ": " << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << name;
  }
}

TEST_F(Sharded, BrokenIndexes) {
  for (const char* text : {"", "[]", "{}", R"({"weight_map":[]})", R"({"weight_map":{}})",
                           R"({"weight_map":{"a":1}})", R"({"weight_map":{"a":"s1.safetensors"})",
                           R"({"weight_map":{"a":"s1.safetensors","a":"s2.safetensors"}})"}) {
    put(scratch / "model.safetensors.index.json", text);
    const std::string message = refusal(ExitCode::bad_content);
    EXPECT_NE(message.find("index.json"), std::string::npos) << text << ": " << message;
  }
}

TEST_F(Sharded, ShardThatIsADirectory) {
  std::filesystem::create_directory(scratch / "dir.safetensors");
  index({{"a", "dir.safetensors"}});
  EXPECT_NE(refusal(ExitCode::missing_input).find("is not a file"), std::string::npos);
}

TEST(Checkpoint, DirectoriesWithoutWeights) {
  const Scratch scratch;
  error_of(ExitCode::missing_input, [&] { CheckpointReader::open(scratch / "gone"); });
  put(scratch / "file", "x");
  error_of(ExitCode::missing_input, [&] { CheckpointReader::open(scratch / "file"); });
  const std::string empty =
      error_of(ExitCode::missing_input, [&] { CheckpointReader::open(scratch.path()); });
  EXPECT_NE(empty.find("model.safetensors.index.json"), std::string::npos) << empty;
  put(scratch / "pytorch_model.bin", "x");
  const std::string bin =
      error_of(ExitCode::missing_input, [&] { CheckpointReader::open(scratch.path()); });
  EXPECT_NE(bin.find("Convert them to safetensors"), std::string::npos) << bin;
}

TEST(Checkpoint, DirectoriesWithSomethingElse) {
  const std::pair<const char*, const char*> rows[] = {
      {"model.safetensors.incomplete", "A download did not end"},
      {"model-00001-of-00002.safetensors", "without their index"},
      {"adapter_model.safetensors", "merge_and_unload"},
      {"consolidated.safetensors", "their maker's own form"},
      {"model.fp16.safetensors", "Rename it to model.safetensors"},
      {"model-q4.gguf", "GGUF files are not read"}};
  for (const auto& [name, remedy] : rows) {
    const Scratch scratch;
    put(scratch / name, "x");
    const std::string message =
        error_of(ExitCode::missing_input, [&] { CheckpointReader::open(scratch.path()); });
    EXPECT_NE(message.find(fmt::format("found '{}'", name)), std::string::npos) << message;
    EXPECT_NE(message.find(remedy), std::string::npos) << message;
  }
}

TEST(SafetensorsWriter, RefusesWhatDoesNotFitItsLayout) {
  const Scratch scratch;
  const std::vector<std::byte> four(4);
  const auto path = scratch / "m.safetensors";
  const auto with_writer = [&](const std::function<void(SafetensorsWriter&)>& action) {
    return [&, action] {
      SafetensorsWriter writer(path, {{"a", DType::u8, {4}}, {"b", DType::u8, {4}}}, {});
      action(writer);
    };
  };
  error_of(ExitCode::internal, with_writer([&](auto& w) { w.write("b", four); }));
  error_of(ExitCode::internal, with_writer([&](auto& w) { w.write("c", four); }));
  error_of(ExitCode::internal,
           with_writer([&](auto& w) { w.write("a", std::vector<std::byte>(5)); }));
  error_of(ExitCode::internal, with_writer([&](auto& w) { w.write("a", four), w.finish(); }));
  error_of(ExitCode::internal, with_writer([&](auto& w) {
             w.write("a", four), w.write("b", four), w.write("b", four);
           }));
  const std::vector<Entry> twice{{"a", DType::u8, {1}}, {"a", DType::u8, {1}}};
  error_of(ExitCode::internal, [&] { SafetensorsWriter(path, twice, {}); });
  const std::vector<Entry> reserved{{"__metadata__", DType::u8, {1}}};
  error_of(ExitCode::internal, [&] { SafetensorsWriter(path, reserved, {}); });
  EXPECT_EQ(listing(scratch.path()), "") << "nothing unfinished stays";
  put(path, "old");
  error_of(ExitCode::cannot_create, with_writer([](auto&) {}));
  EXPECT_EQ(read_file(path), "old");
}

TEST(SafetensorsWriter, PiecesGiveTheSameFile) {
  const Scratch scratch;
  const std::vector<Entry> entries{{"a", DType::f32, {100, 7}}, {"b", DType::u8, {3}}};
  const std::string whole = write_model(scratch / "whole", entries);
  SafetensorsWriter writer(scratch / "pieces", entries, {{"format", "pt"}});
  const std::vector<std::byte> a = pattern(2800, 0);
  for (std::size_t at = 0; at < a.size(); at += 280)
    writer.write("a", std::span(a).subspan(at, 280));
  writer.write("b", pattern(3, 1));
  EXPECT_EQ(writer.finish(), whole);
}

TEST(SafetensorsWriter, FullDisk) {
  const Scratch scratch;
  error_of(ExitCode::write_failed, [&] {
    SafetensorsWriter(scratch / "m", {{"a", DType::u8, {std::int64_t{1} << 60}}}, {});
  });
  for (const char* fault :
       {"open;action=errno:ENOSPC", "write;action=errno:ENOSPC", "write;nth=2;action=short-write",
        "flush;action=errno:EDQUOT", "fsync;action=errno:EIO", "close;action=errno:EIO"}) {
    const Fault armed(fmt::format("point=export.{}", fault));
    error_of(ExitCode::write_failed, [&] {
      write_model(scratch / "m", {{"a", DType::u8, {3 << 20}}, {"b", DType::u8, {3 << 20}}});
    });
    EXPECT_EQ(listing(scratch.path()), "") << fault;
  }
}

/// What is larger than a block is read by several threads at once.
TEST(Checkpoint, LargeSlicesAreReadInParts) {
  const Scratch scratch;
  constexpr std::int64_t kRows = 37, kColumns = 1 << 20;
  write_model(scratch / "model.safetensors", {{"big", DType::u8, {kRows, kColumns}}}, 3);
  const std::vector<std::byte> whole = pattern(kRows * kColumns, 3);
  const CheckpointReader reader = CheckpointReader::open(scratch.path());
  std::vector<std::int32_t> some_rows, some_columns;
  for (std::int32_t row = 1; row < kRows; ++row)
    if (row % 5 != 0) some_rows.push_back(row);
  for (std::int32_t column = 7; column < kColumns; column += column % 3 == 0 ? 2 : 1)
    some_columns.push_back(column);
  for (const IndexRuns& rows : {IndexRuns::all(kRows), IndexRuns::of_units(some_rows, 1)})
    for (const IndexRuns& columns : {IndexRuns::all(kColumns), IndexRuns::of({100, kColumns - 5}),
                                     IndexRuns::of_units(some_columns, 1)}) {
      std::vector<std::byte> read(static_cast<std::size_t>(rows.size() * columns.size()));
      reader.read("big", rows, columns, read);
      std::vector<std::byte> wanted;
      wanted.reserve(read.size());
      for (const std::int64_t row : rows.indices())
        for (const Range run : columns.runs())
          wanted.insert(wanted.end(), whole.begin() + row * kColumns + run.begin,
                        whole.begin() + row * kColumns + run.end);
      EXPECT_TRUE(read == wanted) << rows.size() << " x " << columns.size();
    }
}

}  // namespace
}  // namespace espalier
