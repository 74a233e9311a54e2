#include "espalier/core/host_memory.h"

#include <sys/resource.h>
#include <unistd.h>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <string>

namespace espalier {
namespace {

namespace fs = std::filesystem;
constexpr std::int64_t kUnlimited = std::numeric_limits<std::int64_t>::max();

/// The number in a file that holds one; "max" and anything else is none.
std::optional<std::int64_t> number_in(const fs::path& path) {
  std::ifstream file(path);
  std::uint64_t value = 0;
  if (!(file >> value)) return std::nullopt;
  return static_cast<std::int64_t>(
      std::min<std::uint64_t>(value, static_cast<std::uint64_t>(kUnlimited)));
}

/// The number after `key` in a file of lines "key[:] number ...".
std::optional<std::int64_t> entry_of(const fs::path& path, const std::string& key) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    std::string name;
    std::int64_t value = 0;
    if (words >> name >> value && (name == key || name == key + ":")) return value;
  }
  return std::nullopt;
}

/// What one control group leaves.
std::int64_t left_in_group(const fs::path& group, const char* limit_file, const char* usage_file,
                           const char* cache_key) {
  const std::optional<std::int64_t> limit = number_in(group / limit_file);
  const std::optional<std::int64_t> usage = number_in(group / usage_file);
  if (!limit || !usage) return kUnlimited;
  const std::int64_t cache = entry_of(group / "memory.stat", cache_key).value_or(0);
  return std::max<std::int64_t>(*limit - (*usage - cache), 0);
}

/// A limit of any group on the way up holds.
template <class Left>
std::int64_t least_up(const fs::path& mount, const fs::path& group, Left&& left) {
  std::int64_t least = left(mount);
  fs::path here = mount;
  for (const fs::path& part : group.relative_path()) {
    here /= part;
    least = std::min(least, left(here));
  }
  return least;
}

std::int64_t left_in_groups(const fs::path& root) {
  std::ifstream file(root / "proc/self/cgroup");
  std::int64_t least = kUnlimited;
  std::string line;  // "hierarchy:controllers:path"
  while (std::getline(file, line)) {
    const std::size_t first = line.find(':');
    const std::size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const fs::path group = line.substr(second + 1);
    if (controllers.empty())
      least = std::min(least, least_up(root / "sys/fs/cgroup", group, [](const fs::path& g) {
                         return left_in_group(g, "memory.max", "memory.current", "inactive_file");
                       }));
    else if (("," + controllers + ",").find(",memory,") != std::string::npos)
      least = std::min(least, least_up(root / "sys/fs/cgroup/memory", group, [](const fs::path& g) {
                         return left_in_group(g, "memory.limit_in_bytes", "memory.usage_in_bytes",
                                              "total_inactive_file");
                       }));
  }
  return least;
}

std::int64_t left_of_address_space(const fs::path& root) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return kUnlimited;
  const std::int64_t mapped =
      number_in(root / "proc/self/statm").value_or(0) * ::sysconf(_SC_PAGESIZE);
  return std::max<std::int64_t>(static_cast<std::int64_t>(limit.rlim_cur) - mapped, 0);
}

}  // namespace

std::int64_t available_host_memory(const fs::path& root) {
  const std::optional<std::int64_t> kibibytes = entry_of(root / "proc/meminfo", "MemAvailable");
  const std::int64_t kernel = kibibytes ? *kibibytes * 1024 : kUnlimited;
  const std::int64_t least = std::min({kernel, left_in_groups(root), left_of_address_space(root)});
  return least == kUnlimited ? 0 : least;
}

std::int64_t peak_host_memory(const std::filesystem::path& root) {
  if (const auto kibibytes = entry_of(root / "proc/self/status", "VmHWM")) return *kibibytes * 1024;
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::int64_t>(usage.ru_maxrss) * 1024;
}

void reset_peak_host_memory() { std::ofstream("/proc/self/clear_refs") << "5"; }  // proc(5)

void release_freed_memory() {
#ifdef __GLIBC__
  ::malloc_trim(0);
#endif
}

}  // namespace espalier
