#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

namespace espalier::posix {

/// A lock for file systems that have none: a file made with O_EXCL that its holder rewrites every
/// `heartbeat` seconds. A claim that stood still for three heartbeats is stale: whoever wants it
/// renames it away, looks at what was renamed (and puts back what is not the stale one), and makes
/// a claim of its own. Every new claim is looked at again after `settle` seconds: of several that
/// raced for it one is left. A holder that was stopped for longer than three heartbeats can lose
/// its claim; require_held() tells.
class ClaimFile {
 public:
  struct Timing {
    /// Seconds between two signs of life.
    double heartbeat = 5;
    /// Seconds until a new claim counts.
    double settle = 1;
    double stale() const { return 3 * heartbeat; }
  };

  /// Tries for `wait_seconds`; returns nullptr when another process holds the claim. `owner` is
  /// written into it for people to read.
  static std::unique_ptr<ClaimFile> acquire(const std::filesystem::path& path, double wait_seconds,
                                            const std::string& owner, Timing timing);
  static std::unique_ptr<ClaimFile> acquire(const std::filesystem::path& path, double wait_seconds,
                                            const std::string& owner) {
    return acquire(path, wait_seconds, owner, Timing{});
  }
  /// Whether a claim is there and fresh. Its age is measured by the file system's own clock where a
  /// file can be made beside it, else by this host's.
  static bool is_live(const std::filesystem::path& path, Timing timing);
  static bool is_live(const std::filesystem::path& path) { return is_live(path, Timing{}); }

  /// Refreshes the claim; throws Error(cannot_create) when it is another process's by now.
  void require_held() const;
  /// Removes the claim, if it is still this one.
  ~ClaimFile();
  ClaimFile(const ClaimFile&) = delete;
  ClaimFile& operator=(const ClaimFile&) = delete;

 private:
  ClaimFile(std::filesystem::path path, std::string text, Timing timing);
  void beat_until_told();

  std::filesystem::path path_;
  std::string text_;  // what the file holds: a random word and the owner
  Timing timing_;
  std::mutex mutex_;
  std::condition_variable told_;
  bool ends_ = false;
  std::thread heart_;
};

}  // namespace espalier::posix
