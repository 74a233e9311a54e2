#include "hdf5_handle.h"

#include <atomic>

#include <fmt/format.h>

#include "espalier/core/error.h"

namespace espalier::h5 {
namespace {

herr_t collect(unsigned depth, const H5E_error2_t* error, void* data) {
  constexpr unsigned kMost = 3;  // the outer ones only repeat "cannot read data"
  auto& text = *static_cast<std::string*>(data);
  if (depth >= kMost || error->desc == nullptr) return 0;
  if (!text.empty()) text += "; ";
  text += fmt::format("{}: {}", error->func_name == nullptr ? "?" : error->func_name, error->desc);
  return 0;
}

}  // namespace

void prepare() {
  static const bool ready = [] {
    // A user-defined filter is code from somewhere else; none is needed.
    return H5open() >= 0 && H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr) >= 0 &&
           H5PLset_loading_state(0) >= 0;
  }();
  ESPALIER_CHECK(ready, "libhdf5 could not be initialised");
}

std::string words() {
  std::string text;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, collect, &text);
  return text.empty() ? "libhdf5 gave no reason" : text;
}

std::string image_name() {
  static std::atomic<int> next{0};
  return fmt::format("espalier-image-{}", next++);
}

}  // namespace espalier::h5
