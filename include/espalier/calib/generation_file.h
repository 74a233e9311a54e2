#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "espalier/calib/token_file.h"

namespace espalier {

/// A token file of prompts to be continued and of what is expected (docs/file-formats.md): the rows
/// are prompts; /answer is what each is compared with; the piece table turns tokens into bytes by
/// concatenation. Not collective.
class GenerationFile {
 public:
  /// Reads everything but the prompts. Throws missing_input without the file, and every problem
  /// that it has (bad_content).
  static GenerationFile open(const std::filesystem::path& path, std::int64_t vocabulary);

  /// Without counted tokens.
  const TokenFile& prompts() const { return prompts_; }
  std::int64_t items() const { return prompts_.rows(); }
  const std::string& answer(std::int64_t item) const {
    return answers_[static_cast<std::size_t>(item)];
  }
  /// Tokens of each prompt.
  const std::vector<std::int32_t>& prompt_tokens() const { return prompt_tokens_; }
  /// Tokens that have a piece; later ones stand for no text.
  std::int64_t pieces() const { return static_cast<std::int64_t>(piece_ends_.size()); }
  std::string_view piece(std::int64_t token) const;
  /// Texts at which a continuation ends, none of them empty.
  const std::vector<std::string>& stop() const { return stop_; }
  /// Tokens at which one ends.
  bool is_end(std::int64_t token) const;

 private:
  explicit GenerationFile(TokenFile prompts) : prompts_(std::move(prompts)) {}
  void read_answers(const Hdf5Reader& reader);
  void read_pieces(const Hdf5Reader& reader);
  void read_ends(const Hdf5Reader& reader, std::int64_t vocabulary);

  TokenFile prompts_;
  std::vector<std::int32_t> prompt_tokens_;
  std::vector<std::string> answers_;
  std::vector<std::uint8_t> piece_bytes_;
  std::vector<std::int64_t> piece_ends_;
  std::vector<std::string> stop_;
  std::vector<std::int64_t> eos_ids_;  // ascending
};

}  // namespace espalier
