#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "espalier/calib/option_rows.h"
#include "espalier/store/hdf5_file.h"

namespace espalier {

/// Rows of a token file, padded to the file's row length.
struct TokenRows {
  /// S.
  std::int64_t sequence_tokens = 0;
  /// [n, S].
  std::vector<std::int32_t> tokens;
  /// [n], valid tokens of each row.
  std::vector<std::int32_t> length;
  /// [n, S]: 1 where token t's prediction counts; never at t = 0 or beyond length.
  std::vector<std::uint8_t> counted;
};

/// Which predictions count: every token but the first, or those of the file's /loss_mask; of a file
/// of options (OptionRows) those of its /loss_mask, which marks each option's tokens; of prompts
/// none.
enum class Counting { every_token, loss_mask, loss_mask_if_present, options, nothing };

/// The part of the rows that one of several readers looks at.
struct Share {
  int index = 0;
  int count = 1;
};

/// Where a token file says that it comes from; what is absent or unreadable is left out.
struct TokenOrigin {
  std::optional<std::int64_t> vocabulary;
  std::optional<std::string> tokenizer_sha256;
};

/// One HDF5 token file as launch/tokenize.py writes it (docs/file-formats.md), opened for a model's
/// vocabulary and for what is to be counted. Opening checks format, version, shapes and types, and
/// that a loss mask is there if it is wanted; what the rows hold is checked as they are read. Not
/// collective.
class TokenFile {
 public:
  /// Throws missing_input without the file, bad_content when it is not a token file or has no
  /// loss mask for Counting::loss_mask or Counting::options.
  static TokenFile open(const std::filesystem::path& path, std::int64_t vocabulary,
                        Counting counting);
  /// The same from the bytes of such a file; `origin` names them in messages.
  static TokenFile from_image(std::span<const std::byte> image, const std::string& origin,
                              std::int64_t vocabulary, Counting counting);

  std::int64_t rows() const { return rows_; }
  std::int64_t sequence_tokens() const { return sequence_tokens_; }
  bool has_loss_mask() const { return has_loss_mask_; }
  const std::filesystem::path& path() const { return path_; }

  /// Reads the given rows by hyperslab, in the order given. Throws bad_content with the first bad
  /// place: an id beyond the vocabulary, a length beyond the row, a mask that is neither 0 nor 1, a
  /// sequence without any counted token.
  TokenRows read(std::span<const std::int64_t> rows) const;
  /// Reads the share's part of the given rows, a block at a time, for what read() would throw.
  void check(std::span<const std::int64_t> rows, Share share) const;
  /// Valid tokens of every row. Throws bad_content where one is not 1 to S.
  std::vector<std::int32_t> lengths() const;
  /// What the file says of these rows, unchecked; empty where it has no lengths.
  std::vector<std::int32_t> lengths_of(std::span<const std::int64_t> numbers) const;
  /// Valid tokens of the file's longest row.
  std::int64_t longest_row() const;
  /// What each row is an option of. Throws as read_option_rows does.
  OptionRows options() const;
  TokenOrigin origin() const;

 private:
  TokenFile(std::filesystem::path path, Hdf5Reader reader, std::int64_t vocabulary,
            Counting counting);
  void check_objects();
  void check_ids(const TokenRows& rows, std::span<const std::int64_t> numbers) const;
  void check_length(std::int32_t length, std::int64_t row) const;
  void read_mask(TokenRows& rows, std::span<const std::int64_t> numbers) const;
  void count(TokenRows& rows, std::span<const std::int64_t> numbers) const;

  std::filesystem::path path_;
  Hdf5Reader reader_;
  std::int64_t vocabulary_ = 0;
  Counting counting_ = Counting::every_token;
  std::int64_t rows_ = 0;
  std::int64_t sequence_tokens_ = 0;
  bool has_length_ = false;
  bool has_loss_mask_ = false;
};

}  // namespace espalier
