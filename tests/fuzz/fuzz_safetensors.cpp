// fuzz_safetensors [SECONDS [SEED...]]: mutated safetensors files and checkpoint directories.
// Allowed ends are success, after which the ranges must keep their rules and every tensor must be
// readable, and espalier::Error(bad_content or missing_input).

#include <fmt/format.h>
#include <stdlib.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "espalier/core/error.h"
#include "espalier/store/safetensors.h"
#include "fuzz/memory_limit.h"
#include "fuzz/session.h"
#include "fuzz/text_mutator.h"

namespace espalier {
namespace {

const char* const kDtypes[] = {"BOOL", "U8", "I16", "F32", "BF16", "F64", "F8_E4M3", "C64", ""};
const char* const kNumbers[] = {"0",
                                "1",
                                "2",
                                "3",
                                "4",
                                "8",
                                "16",
                                "24",
                                "-1",
                                "1.5",
                                "1e3",
                                "null",
                                "\"4\"",
                                "4294967296",
                                "4294967297",
                                "9223372036854775807",
                                "9223372036854775808",
                                "18446744073709551615",
                                "18446744073709551616",
                                "4611686018427387906"};

std::vector<std::string> dictionary() {
  std::vector<std::string> words{"{",
                                 "}",
                                 "[",
                                 "]",
                                 ":",
                                 ",",
                                 "\"",
                                 "\\u0000",
                                 "\\ud800",
                                 "\xff",
                                 " ",
                                 "true",
                                 "\"dtype\":",
                                 "\"shape\":",
                                 "\"data_offsets\":",
                                 "\"__metadata__\":{",
                                 "\"t\":{",
                                 "\"F32\"",
                                 "[0,0]",
                                 "[[[[[[[[[[[["};
  for (const char* number : kNumbers) words.emplace_back(number);
  words.emplace_back(1, '\0');
  return words;
}

std::string little_endian(std::uint64_t value) {
  std::string bytes(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>((value >> (8 * i)) & 0xffU);
  return bytes;
}

const char* kHeader =
    R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
    R"("b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]},)"
    R"("c":{"dtype":"I64","shape":[0,3],"data_offsets":[32,32]},)"
    R"("d":{"dtype":"U8","shape":[8,2],"data_offsets":[32,48]}})";
constexpr std::size_t kDataBytes = 48;

const char* kIndex =
    R"({"metadata":{"total_size":48},"weight_map":{"a":"one.safetensors","b":"one.safetensors",)"
    R"("c":"one.safetensors","d":"one.safetensors","e":"two.safetensors"}})";

/// Inputs from the valid ones: by structure, by the header's text, or by any byte.
class Maker {
 public:
  explicit Maker(std::uint64_t seed) : mutator_(seed, dictionary()) {}

  std::string file() {
    const std::string data(kDataBytes, 'x');
    switch (mutator_.below(4)) {
      case 0:
        return with_length(structured(), data);
      case 1:
        return with_length(mutator_.mutate(kHeader), data);
      case 2:
        return mutator_.mutate(with_length(kHeader, data));
      default: {
        std::string cut = with_length(kHeader, data);
        cut.resize(mutator_.below(cut.size() + 1));
        return cut;
      }
    }
  }
  std::string index() { return mutator_.below(3) == 0 ? kIndex : mutator_.mutate(kIndex); }
  std::size_t below(std::size_t limit) { return mutator_.below(limit); }

 private:
  std::string number() { return kNumbers[mutator_.below(std::size(kNumbers))]; }

  static std::string with_length(const std::string& header, const std::string& data) {
    return little_endian(header.size()) + header + data;
  }

  /// A few tensors with one field in three taken from the numbers above.
  std::string structured() {
    std::string header = "{";
    std::size_t at = 0;
    const std::size_t count = 1 + mutator_.below(4);
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t rows = mutator_.below(4);
      const std::size_t end = i + 1 == count ? kDataBytes : std::min(kDataBytes, at + rows * 8);
      const auto field = [&](std::size_t value) {
        return mutator_.below(6) == 0 ? number() : fmt::format("{}", value);
      };
      const char* dtype =
          mutator_.below(4) == 0 ? kDtypes[mutator_.below(std::size(kDtypes))] : "U8";
      header += fmt::format(R"({}"t{}":{{"dtype":"{}","shape":[{},{}],"data_offsets":[{},{}]}})",
                            i == 0 ? "" : ",", i, dtype, field((end - at) / 4), field(4), field(at),
                            field(end));
      at = end;
    }
    return header.append("}");
  }

  fuzz::TextMutator mutator_;
};

/// What must hold for every header that was accepted, computed another way than in the reader.
std::string broken_rule(const SafetensorsHeader& header, std::uint64_t file_bytes) {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;
  for (const auto& [name, info] : header.tensors) {
    long double bytes = size_of(info.dtype);  // no product can wrap
    for (const std::int64_t extent : info.shape) bytes *= static_cast<long double>(extent);
    if (info.begin > info.end || bytes != static_cast<long double>(info.end - info.begin))
      return "size of " + name;
    ranges.emplace_back(info.begin, info.end);
  }
  std::sort(ranges.begin(), ranges.end());
  std::uint64_t at = header.data_begin;
  for (const auto& [begin, end] : ranges) {
    if (begin != at) return "hole or overlap";
    at = end;
  }
  return at == file_bytes ? "" : "bytes left over";
}

std::string check_header(const std::string& file) {
  const SafetensorsHeader header =
      parse_safetensors_header(std::as_bytes(std::span(file)), file.size(), "fuzz");
  return broken_rule(header, file.size());
}

std::string check_directory(const std::filesystem::path& directory, Maker& maker) {
  const CheckpointReader reader = CheckpointReader::open(directory);
  for (const auto& [name, info] : reader.tensors()) {
    const std::int64_t rows = info.shape.empty() ? 1 : info.shape.front();
    std::int64_t columns = 1;
    for (std::size_t i = 1; i < info.shape.size(); ++i) columns *= info.shape[i];
    std::vector<std::byte> all(info.end - info.begin);
    reader.read(name, IndexRuns::all(rows), IndexRuns::all(columns), all);
    const IndexRuns some = IndexRuns::of(even_cut(columns, 2, static_cast<int>(maker.below(2))));
    std::vector<std::byte> part(static_cast<std::size_t>(rows * some.size()) * size_of(info.dtype));
    reader.read(name, IndexRuns::all(rows), some, part);
  }
  return {};
}

void put(const std::filesystem::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

std::string check_files(const std::filesystem::path& directory, Maker& maker,
                        const std::string& file, fuzz::Trial& trial) {
  std::filesystem::remove_all(directory);
  std::filesystem::create_directory(directory);
  if (maker.below(2) == 0) {
    put(directory / "model.safetensors", file);
  } else {
    const std::string second = R"({"e":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})";
    put(directory / "one.safetensors", file);
    put(directory / "two.safetensors", little_endian(second.size()) + second + "data");
    put(directory / "model.safetensors.index.json", maker.index());
  }
  return fuzz::outcome(trial, [&] { return check_directory(directory, maker); });
}

class SafetensorsFuzzer final : public fuzz::Fuzzer {
 public:
  explicit SafetensorsFuzzer(std::uint64_t seed) : maker_(seed) {
    if (::mkdtemp(scratch_.data()) == nullptr) throw std::runtime_error("no scratch directory");
  }
  ~SafetensorsFuzzer() override { std::filesystem::remove_all(scratch_); }

  std::string once(fuzz::Trial& trial) override {
    file_ = maker_.file();
    trial.input(file_);
    const std::string wrong = fuzz::outcome(trial, [&] { return check_header(file_); });
    if (!wrong.empty() || maker_.below(8) != 0) return wrong;
    return check_files(std::filesystem::path(scratch_) / "model", maker_, file_, trial);
  }

 private:
  Maker maker_;
  std::string scratch_ = (std::filesystem::temp_directory_path() / "espalier-fuzz-XXXXXX").string();
  std::string file_;
};

}  // namespace
}  // namespace espalier

int main(int argc, char** argv) {
  espalier::fuzz::limit_memory(std::uint64_t{1} << 30);
  return espalier::fuzz::run(argc, argv, "fuzz_safetensors", "safetensors", [](std::uint64_t seed) {
    return std::make_unique<espalier::SafetensorsFuzzer>(seed);
  });
}
