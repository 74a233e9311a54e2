#pragma once

#include <sys/resource.h>

namespace espalier::fuzz {

/// Lets an allocation from an unchecked size fail instead of succeed unnoticed. The address
/// sanitizer reserves terabytes of addresses, so there ASAN_OPTIONS=max_allocation_size_mb does the
/// same work.
inline void limit_memory([[maybe_unused]] unsigned long long bytes) {
#ifndef __SANITIZE_ADDRESS__
  const rlimit limit{bytes, bytes};
  ::setrlimit(RLIMIT_AS, &limit);
#endif
}

}  // namespace espalier::fuzz
