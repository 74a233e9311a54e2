#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace espalier {

/// What a download left in the place of a file.
struct Placeholder {
  enum class Kind { empty, pointer, page };
  Kind kind;
  /// "the file is a Git LFS pointer of 134 bytes".
  std::string what;
  /// How to get the file itself.
  std::string remedy;
};

/// Recognises a Git LFS pointer, an HTML or XML page and an empty file from the first bytes `head`
/// of a file of `bytes` bytes; nothing for what may be the file itself. Neither JSON nor a
/// safetensors file begins like one of them.
std::optional<Placeholder> find_placeholder(std::string_view head, std::uint64_t bytes);

/// Throws Error(bad_content) naming `origin` when find_placeholder finds something.
void refuse_placeholder(std::string_view head, std::uint64_t bytes, std::string_view origin);

}  // namespace espalier
