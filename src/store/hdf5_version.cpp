#include "espalier/store/hdf5_version.h"

#include <fmt/format.h>
#include <hdf5.h>

namespace espalier {

std::string hdf5_library_version() {
  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
  return fmt::format("{}.{}.{} (built with {}.{}.{})", major, minor, release, H5_VERS_MAJOR,
                     H5_VERS_MINOR, H5_VERS_RELEASE);
}

}  // namespace espalier
