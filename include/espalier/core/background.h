#pragma once

#include <future>
#include <utility>

namespace espalier {

/// Runs `work` on another thread while the caller goes on; get() waits, and throws what `work`
/// threw. Destroying the future waits too, so `work` may hold references to what outlives the
/// future. Where the system gives no further thread, get() runs `work` itself.
template <class Work>
[[nodiscard]] std::future<void> in_background(Work&& work) {
  // Either policy: libstdc++ falls back to `deferred` when a thread cannot be started.
  return std::async(std::launch::async | std::launch::deferred, std::forward<Work>(work));
}

}  // namespace espalier
