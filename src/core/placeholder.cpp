#include "espalier/core/placeholder.h"

#include <algorithm>
#include <cctype>

#include <fmt/format.h>

#include "espalier/core/error.h"

namespace espalier {
namespace {

constexpr std::string_view kPointer = "version https://git-lfs.github.com/spec/";
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

/// A safetensors file may begin with any byte, but its eighth is 0 and text has none.
bool is_page(std::string_view head) {
  if (head.starts_with(kByteOrderMark)) head.remove_prefix(kByteOrderMark.size());
  const auto begin = std::find_if_not(head.begin(), head.end(),
                                      [](unsigned char c) { return std::isspace(c) != 0; });
  const std::string_view text(begin, head.end());
  return text.size() >= 2 && text.front() == '<' &&
         (text[1] == '!' || text[1] == '?' || std::isalpha(static_cast<unsigned char>(text[1]))) &&
         head.substr(0, 8).find('\0') == std::string_view::npos;
}

}  // namespace

std::optional<Placeholder> find_placeholder(std::string_view head, std::uint64_t bytes) {
  using Kind = Placeholder::Kind;
  if (bytes == 0)
    return Placeholder{Kind::empty, "the file is empty",
                       "Download it again: a download may have been cut off."};
  if (head.starts_with(kPointer))
    return Placeholder{
        Kind::pointer,
        fmt::format("the file is a Git LFS pointer of {} bytes, not the file it stands for", bytes),
        "Run git lfs pull in its directory, or download the file with the hf command."};
  if (is_page(head))
    return Placeholder{
        Kind::page, fmt::format("the file is an HTML or XML page of {} bytes", bytes),
        "Download it again: a server answered with a page instead of the file, often "
        "because a login is needed."};
  return std::nullopt;
}

void refuse_placeholder(std::string_view head, std::uint64_t bytes, std::string_view origin) {
  if (const auto found = find_placeholder(head, bytes))
    throw Error(ExitCode::bad_content, found->what, {}, found->remedy, std::string(origin));
}

}  // namespace espalier
