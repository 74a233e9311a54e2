#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "hdf5_handle.h"

namespace espalier::h5 {

/// Throws Error(bad_content) about an object of the file `origin`, with libhdf5's words when `why`
/// is empty.
[[noreturn]] void refuse(const std::string& origin, std::string what, std::string why = {});

/// A property list that lets paths lead nowhere outside the file: external links are not followed.
Id inside_only(hid_t list_class, const std::string& origin);

/// A dataset after validation: nothing about it can lead to reading other files, to code from
/// elsewhere, to an absurd allocation or to made-up values for bytes that were never written.
struct Dataset {
  Id id;
  Id type;
  std::vector<std::int64_t> shape;
  /// Elements.
  std::int64_t count = 0;
};
Dataset open_dataset(hid_t file, const std::string& path, const std::string& origin);

/// Throws unless `type` is an ordinary integer of 1, 2, 4 or 8 bytes.
void require_integer(hid_t type, const std::string& object, const std::string& origin);
/// Throws unless `type` is an IEEE float of 4 or 8 bytes.
void require_float(hid_t type, const std::string& object, const std::string& origin);

/// Elements of a shape, or a refusal: at most 4 axes and 2^33 elements.
std::int64_t count_of(const std::vector<hsize_t>& dims, const std::string& object,
                      const std::string& origin);
std::vector<hsize_t> dims_of(hid_t space, const std::string& object, const std::string& origin);

}  // namespace espalier::h5
