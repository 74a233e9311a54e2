#pragma once

#include <filesystem>
#include <string_view>

namespace espalier {

/// A small file in which a process says, again and again, what it is doing. Rewritten in place: a
/// reader finds the text of one writing or of the next in its first line, and nothing survives a
/// power cut.
class LiveFile {
 public:
  /// Makes the file (O_EXCL, O_NOFOLLOW). Throws as store/files.h says.
  explicit LiveFile(const std::filesystem::path& path);
  ~LiveFile();
  LiveFile(const LiveFile&) = delete;
  LiveFile& operator=(const LiveFile&) = delete;

  /// Replaces the content by `line` and a line break, at most 4096 bytes, and makes other hosts see
  /// it. Returns false where that failed; one that was removed since is written all the same.
  bool write(std::string_view line) noexcept;

 private:
  int fd_;
};

}  // namespace espalier
