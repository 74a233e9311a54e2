#pragma once

#include <hdf5.h>

#include <string>
#include <utility>

/// The little of libhdf5's C interface that both reader and writer wrap. The serial library is not
/// thread-safe: objects of this module that use it belong to one thread at a time.
namespace espalier::h5 {

/// Before the first call: switches off libhdf5's own printing and its loading of filter plug-ins.
void prepare();

/// What libhdf5 said about the call that just failed, innermost cause first. Must be asked for
/// before any other call.
std::string words();

/// A file name that no other image of this process has: libhdf5 takes two images of one name for
/// one file.
std::string image_name();

/// Owns an identifier together with the call that closes it.
class Id {
 public:
  using Close = herr_t (*)(hid_t);
  Id() = default;
  Id(hid_t id, Close closing_call) : id_(id), close_(closing_call) {}
  Id(Id&& other) noexcept : id_(std::exchange(other.id_, H5I_INVALID_HID)), close_(other.close_) {}
  Id& operator=(Id&& other) noexcept {
    std::swap(id_, other.id_);
    std::swap(close_, other.close_);
    return *this;
  }
  ~Id() { close(); }
  /// Closes now; returns what the closing call returned.
  herr_t close() { return id_ >= 0 ? close_(std::exchange(id_, H5I_INVALID_HID)) : 0; }
  hid_t get() const { return id_; }

 private:
  hid_t id_ = H5I_INVALID_HID;
  Close close_ = nullptr;
};

}  // namespace espalier::h5
