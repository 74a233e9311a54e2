#include "espalier/calib/token_file.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "espalier/core/error.h"
#include "espalier/core/text.h"

namespace espalier {
namespace {

constexpr const char* kRemedy = "Write token files with launch/tokenize.py.";
constexpr std::int64_t kMostRowTokens = std::int64_t{1} << 24;
constexpr std::int64_t kBlockTokens = std::int64_t{1} << 20;  // that check() holds at once

[[noreturn]] void bad(const std::filesystem::path& path, const std::string& what,
                      const std::string& why = {}, const std::string& remedy = kRemedy) {
  throw Error(ExitCode::bad_content, what, why, remedy, path.string());
}

void require_shape(const std::filesystem::path& path, const Hdf5Reader& reader,
                   const std::string& object, const std::vector<std::int64_t>& shape) {
  const std::vector<std::int64_t> found = reader.shape(object);
  if (found == shape) return;
  bad(path, fmt::format("{} has shape [{}], expected [{}]", object, fmt::join(found, ", "),
                        fmt::join(shape, ", ")));
}

/// libhdf5 knows what is wrong with a file, not what would help.
template <class Work>
auto with_remedy(const Work& work) {
  try {
    return work();
  } catch (const Error& error) {
    std::vector<Problem> problems = error.problems();
    for (Problem& problem : problems)
      if (problem.code == ExitCode::bad_content && problem.remedy.empty()) problem.remedy = kRemedy;
    throw Error(std::move(problems));
  }
}

/// An attribute that nothing depends on.
template <class Read>
auto attribute(const Hdf5Reader& reader, const char* name, const Read& read)
    -> std::optional<decltype(read(name))> {
  try {
    if (reader.has_attribute("/", name)) return read(name);
  } catch (const Error&) {
    // Of another type: it says nothing.
  }
  return std::nullopt;
}

}  // namespace

TokenFile::TokenFile(std::filesystem::path path, Hdf5Reader reader, std::int64_t vocabulary,
                     Counting counting)
    : path_(std::move(path)),
      reader_(std::move(reader)),
      vocabulary_(vocabulary),
      counting_(counting) {}

TokenFile TokenFile::open(const std::filesystem::path& path, std::int64_t vocabulary,
                          Counting counting) {
  return with_remedy([&] {
    TokenFile file(path, Hdf5Reader::open(path), vocabulary, counting);
    file.check_objects();
    return file;
  });
}

TokenFile TokenFile::from_image(std::span<const std::byte> image, const std::string& origin,
                                std::int64_t vocabulary, Counting counting) {
  return with_remedy([&] {
    TokenFile file(origin, Hdf5Reader::from_image(image, origin), vocabulary, counting);
    file.check_objects();
    return file;
  });
}

void TokenFile::check_objects() {
  if (!reader_.has_attribute("/", "format") ||
      reader_.attribute_string("/", "format") != "espalier-tokens")
    bad(path_, "this is not a token file", "attribute format is not 'espalier-tokens'");
  const std::int64_t version =
      reader_.has_attribute("/", "version") ? reader_.attribute_i64("/", "version") : 0;
  if (version != 1) bad(path_, fmt::format("token file version {}", version), "version 1 is read");
  if (!reader_.has("/tokens")) bad(path_, "dataset /tokens is missing");
  const std::vector<std::int64_t> shape = reader_.shape("/tokens");
  if (shape.size() != 2 || shape[0] < 1 || shape[1] < 2 || shape[1] > kMostRowTokens)
    bad(path_, fmt::format("/tokens has shape [{}]", fmt::join(shape, ", ")),
        fmt::format("at least one row of 2 to {} tokens is needed", kMostRowTokens));
  rows_ = shape[0];
  sequence_tokens_ = shape[1];
  has_length_ = reader_.has("/length");
  has_loss_mask_ = reader_.has("/loss_mask");
  if (has_length_) require_shape(path_, reader_, "/length", {shape[0]});
  if (has_loss_mask_) require_shape(path_, reader_, "/loss_mask", shape);
  if (counting_ == Counting::loss_mask && !has_loss_mask_)
    bad(path_, "dataset /loss_mask is missing", "objective sft counts the answer's tokens only",
        "Write the file with launch/tokenize.py --template ... --loss-on ..., or use objective: "
        "causal_lm.");
  if (counting_ == Counting::options && !has_loss_mask_)
    bad(path_, "dataset /loss_mask is missing", "it marks the tokens of each option");
  // Reading no row at all still asks whether the values are integers.
  reader_.read_rows_i32("/tokens", {});
  if (has_length_) reader_.read_rows_i32("/length", {});
  if (has_loss_mask_) reader_.read_rows_u8("/loss_mask", {});
}

void TokenFile::check_ids(const TokenRows& rows, std::span<const std::int64_t> numbers) const {
  const auto bad_id = std::find_if(rows.tokens.begin(), rows.tokens.end(),
                                   [&](std::int32_t id) { return id < 0 || id >= vocabulary_; });
  if (bad_id == rows.tokens.end()) return;
  const auto place = bad_id - rows.tokens.begin();
  bad(path_,
      fmt::format("/tokens[{}, {}] = {}",
                  numbers[static_cast<std::size_t>(place / sequence_tokens_)],
                  place % sequence_tokens_, *bad_id),
      fmt::format("the model's vocabulary has {}", counted(vocabulary_, "token")),
      "Was the file written with another model's tokenizer? Write it again with this model's.");
}

void TokenFile::read_mask(TokenRows& rows, std::span<const std::int64_t> numbers) const {
  if (!has_loss_mask_ || counting_ == Counting::every_token || counting_ == Counting::nothing) {
    rows.counted.assign(rows.tokens.size(), counting_ == Counting::nothing ? 0 : 1);
    return;
  }
  rows.counted = reader_.read_rows_u8("/loss_mask", numbers).values;
  const auto odd = std::find_if(rows.counted.begin(), rows.counted.end(),
                                [](std::uint8_t value) { return value > 1; });
  if (odd == rows.counted.end()) return;
  const auto place = odd - rows.counted.begin();
  bad(path_,
      fmt::format("/loss_mask[{}, {}] = {}",
                  numbers[static_cast<std::size_t>(place / sequence_tokens_)],
                  place % sequence_tokens_, *odd),
      "1 where a token counts in the loss, 0 where it does not");
}

void TokenFile::check_length(std::int32_t length, std::int64_t row) const {
  if (length < 1 || length > sequence_tokens_)
    bad(path_, fmt::format("/length[{}] = {}", row, length),
        fmt::format("between 1 and the row's {}", counted(sequence_tokens_, "token")));
}

void TokenFile::count(TokenRows& rows, std::span<const std::int64_t> numbers) const {
  const std::int64_t S = sequence_tokens_;
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    const std::int32_t length = rows.length[i];
    check_length(length, numbers[i]);
    if (counting_ == Counting::nothing) continue;
    const auto row = rows.counted.begin() + static_cast<std::ptrdiff_t>(i) * S;
    row[0] = 0;
    std::fill(row + length, row + S, std::uint8_t{0});
    if (std::none_of(row, row + length, [](std::uint8_t c) { return c != 0; }))
      bad(path_, fmt::format("row {} has no token whose prediction counts", numbers[i]),
          "its mean loss is undefined",
          "Drop rows of one token and rows whose loss mask is empty.");
  }
}

TokenRows TokenFile::read(std::span<const std::int64_t> numbers) const {
  return with_remedy([&] {
    TokenRows rows{
        sequence_tokens_,
        reader_.read_rows_i32("/tokens", numbers).values,
        std::vector<std::int32_t>(numbers.size(), static_cast<std::int32_t>(sequence_tokens_)),
        {}};
    check_ids(rows, numbers);
    if (has_length_) rows.length = reader_.read_rows_i32("/length", numbers).values;
    read_mask(rows, numbers);
    count(rows, numbers);
    return rows;
  });
}

void TokenFile::check(std::span<const std::int64_t> rows, Share share) const {
  const auto block =
      static_cast<std::size_t>(std::max<std::int64_t>(1, kBlockTokens / sequence_tokens_));
  const auto step = block * static_cast<std::size_t>(share.count);
  for (std::size_t begin = block * static_cast<std::size_t>(share.index); begin < rows.size();
       begin += step)
    read(rows.subspan(begin, std::min(block, rows.size() - begin)));
}

std::vector<std::int32_t> TokenFile::lengths() const {
  return with_remedy([&] {
    if (!has_length_)
      return std::vector<std::int32_t>(static_cast<std::size_t>(rows_),
                                       static_cast<std::int32_t>(sequence_tokens_));
    std::vector<std::int32_t> length = reader_.read_i32("/length").values;
    for (std::size_t i = 0; i < length.size(); ++i)
      check_length(length[i], static_cast<std::int64_t>(i));
    return length;
  });
}

std::vector<std::int32_t> TokenFile::lengths_of(std::span<const std::int64_t> numbers) const {
  if (!has_length_) return {};
  return with_remedy([&] { return reader_.read_rows_i32("/length", numbers).values; });
}

std::int64_t TokenFile::longest_row() const {
  const std::vector<std::int32_t> length = lengths();
  return *std::max_element(length.begin(), length.end());
}

OptionRows TokenFile::options() const {
  return with_remedy([&] { return read_option_rows(reader_, path_, rows_); });
}

TokenOrigin TokenFile::origin() const {
  return {attribute(reader_, "vocab_size",
                    [&](const char* name) { return reader_.attribute_i64("/", name); }),
          attribute(reader_, "tokenizer_sha256",
                    [&](const char* name) { return reader_.attribute_string("/", name); })};
}

}  // namespace espalier
