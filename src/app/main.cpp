#include <cstdio>
#include <cstdlib>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "command_line.h"
#include "espalier/core/standard_streams.h"

namespace {

/// Activations come and go with every half layer. By default the C library gives such memory back
/// to the kernel each time, and the next half layer waits for pages to be mapped and cleared: a
/// twentieth of the time on small shapes (docs/measurements.md). The thresholds are the largest
/// that the library itself would come to, and half a gigabyte that may stay unused.
void keep_freed_memory() {
#ifdef __GLIBC__
  const bool chosen = std::getenv("MALLOC_MMAP_THRESHOLD_") != nullptr ||
                      std::getenv("MALLOC_TRIM_THRESHOLD_") != nullptr ||
                      std::getenv("GLIBC_TUNABLES") != nullptr;
  if (chosen) return;
  ::mallopt(M_MMAP_THRESHOLD, 32 << 20);
  ::mallopt(M_TRIM_THRESHOLD, 512 << 20);
#endif
}

}  // namespace

int main(int argc, char** argv) {
  espalier::standard_streams::prepare();
  keep_freed_memory();
  const int code = espalier::run_command_line(argc, argv);
  // Nothing is left to destroy but LibTorch's registries, which takes a third of a short command.
  std::fflush(nullptr);
  std::_Exit(code);
}
