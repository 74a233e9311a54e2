#include "espalier/core/batch.h"

#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <string_view>

namespace espalier::batch {
namespace {

std::string_view environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string_view() : value;
}

}  // namespace

std::string job() {
  const std::string_view slurm = environment("SLURM_JOB_ID");
  return std::string(slurm.empty() ? environment("PBS_JOBID") : slurm);
}

std::optional<double> seconds_left() {
  const std::string_view text = environment("SLURM_JOB_END_TIME");
  std::int64_t end = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), end);
  if (text.empty() || error != std::errc() || stop != text.data() + text.size())
    return std::nullopt;
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  const double left = static_cast<double>(end) - now.count();
  return left > 0 ? std::optional(left) : std::nullopt;
}

}  // namespace espalier::batch
