#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <hdf5.h>

#include "fuzz/text_mutator.h"

namespace espalier::fuzz {

/// How an object lies in the file, beside its values.
enum class Form {
  ordinary,
  unwritten,   // declared, no values: fill values or nothing at all
  huge,        // extents beyond all memory, no values
  null,        // a null dataspace
  other_type,  // neither integers nor floats nor strings of the usual kind
  group,       // a dataset's name leads to a group
  dangling,    // ... to nowhere
  loop,        // ... to itself
  outside,     // ... to another file
};

struct Dataset {
  hid_t type = H5T_NATIVE_INT64;  // a predefined type: of what is stored
  std::vector<hsize_t> shape;
  std::variant<std::vector<std::int64_t>, std::vector<double>> values;
  Form form = Form::ordinary;
  bool packed = false;  // chunked and deflated
};

/// Text is stored with variable length unless `width` gives one.
struct Attribute {
  std::variant<std::int64_t, double, std::string, std::vector<std::string>, std::vector<double>>
      value;
  Form form = Form::ordinary;
  std::size_t width = 0;
};

/// What a file of ours holds, in a form that can be changed and written again: datasets by path,
/// attributes of the root by name.
struct Content {
  std::map<std::string, Dataset> datasets;
  std::map<std::string, Attribute> attributes;
};

/// A few changes that keep the file a valid HDF5 file: missing objects, other types and shapes,
/// extents without values, numbers at the ends of their range, NaN and infinity, doubled and
/// exchanged values, texts that are no texts.
void change(Content& content, TextMutator& random);

/// Writes `content` with libhdf5's own interface. What libhdf5 refuses is left out.
void write(const Content& content, const std::string& path, TextMutator& random);

}  // namespace espalier::fuzz
