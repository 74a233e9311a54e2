#include "espalier/calib/token_file.h"

#include <algorithm>
#include <limits>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "espalier/core/error.h"
#include "espalier/core/text.h"

namespace espalier {
namespace {

constexpr const char* kRemedy = "Write token files with launch/tokenize.py.";

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

}  // namespace

TokenFile::TokenFile(std::filesystem::path path, Hdf5Reader reader, std::int64_t vocabulary)
    : path_(std::move(path)), reader_(std::move(reader)), vocabulary_(vocabulary) {}

TokenFile TokenFile::open(const std::filesystem::path& path, std::int64_t vocabulary) {
  TokenFile file(path, Hdf5Reader::open(path), vocabulary);
  const Hdf5Reader& reader = file.reader_;
  if (!reader.has_attribute("/", "format") ||
      reader.attribute_string("/", "format") != "espalier-tokens")
    bad(path, "this is not a token file", "attribute format is not 'espalier-tokens'");
  const std::int64_t version =
      reader.has_attribute("/", "version") ? reader.attribute_i64("/", "version") : 0;
  if (version != 1) bad(path, fmt::format("token file version {}", version), "version 1 is read");
  if (!reader.has("/tokens")) bad(path, "dataset /tokens is missing");
  const std::vector<std::int64_t> shape = reader.shape("/tokens");
  if (shape.size() != 2 || shape[0] < 1 || shape[1] < 2)
    bad(path, fmt::format("/tokens has shape [{}]", fmt::join(shape, ", ")),
        "at least one row of at least two tokens is needed");
  file.rows_ = shape[0];
  file.sequence_tokens_ = shape[1];
  file.has_length_ = reader.has("/length");
  file.has_loss_mask_ = reader.has("/loss_mask");
  if (file.has_length_) require_shape(path, reader, "/length", {shape[0]});
  if (file.has_loss_mask_) require_shape(path, reader, "/loss_mask", shape);
  return file;
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

TokenRows TokenFile::read(std::span<const std::int64_t> numbers, Counting counting) const {
  const std::int64_t S = sequence_tokens_;
  const auto n = static_cast<std::int64_t>(numbers.size());
  TokenRows rows{S,
                 reader_.read_rows_i32("/tokens", numbers).values,
                 std::vector<std::int32_t>(numbers.size(), static_cast<std::int32_t>(S)),
                 {}};
  check_ids(rows, numbers);
  if (has_length_) rows.length = reader_.read_rows_i32("/length", numbers).values;
  if (counting == Counting::loss_mask && !has_loss_mask_)
    bad(path_, "dataset /loss_mask is missing", "objective sft counts the answer's tokens only",
        "Write the file with launch/tokenize.py --template ... --loss-on ..., or use objective: "
        "causal_lm.");
  const bool masked = has_loss_mask_ && counting != Counting::every_token;
  rows.counted = masked ? reader_.read_rows_u8("/loss_mask", numbers).values
                        : std::vector<std::uint8_t>(rows.tokens.size(), 1);
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int32_t length = rows.length[static_cast<std::size_t>(i)];
    if (length < 1 || length > S)
      bad(path_, fmt::format("/length[{}] = {}", numbers[static_cast<std::size_t>(i)], length),
          fmt::format("between 1 and the row's {}", counted(S, "token")));
    const auto row = rows.counted.begin() + i * S;
    row[0] = 0;
    std::fill(row + length, row + S, std::uint8_t{0});
    if (std::none_of(row, row + length, [](std::uint8_t c) { return c != 0; }))
      bad(path_,
          fmt::format("row {} has no token whose prediction counts",
                      numbers[static_cast<std::size_t>(i)]),
          "its mean loss is undefined",
          "Drop rows of one token and rows whose loss mask is empty.");
  }
  return rows;
}

}  // namespace espalier
