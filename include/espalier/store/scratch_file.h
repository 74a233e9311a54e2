#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>

namespace espalier {

/// Bytes of this process that need not outlive it, on a disk. The file has no name from the start,
/// so that nothing is left whatever ends the process; nothing of it is synchronised. Failures throw
/// as store/files.h says.
class ScratchFile {
 public:
  explicit ScratchFile(const std::filesystem::path& directory);
  ~ScratchFile();
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;

  void write(std::uint64_t offset, std::span<const std::byte> bytes);
  /// Exactly as many as `out` has; write_failed where the file has fewer.
  void read(std::uint64_t offset, std::span<std::byte> out) const;
  /// These bytes will be read soon.
  void will_read(std::uint64_t offset, std::uint64_t count) const noexcept;

 private:
  std::filesystem::path path_;  // for messages
  int fd_;
};

}  // namespace espalier
