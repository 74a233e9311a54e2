#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace espalier {

/// A value and its shape, row-major.
template <class T>
struct Array {
  std::vector<std::int64_t> shape;
  std::vector<T> values;
};

/// Builds an HDF5 file as an image in memory, so that libhdf5 never meets a full disk. Paths are
/// absolute ("/attention/order"); groups are created on the way. Datasets are chunked with
/// Fletcher32; shuffle + deflate where it pays. Every libhdf5 call is checked (Error(internal) with
/// its words).
class Hdf5Writer {
 public:
  Hdf5Writer();
  ~Hdf5Writer();
  Hdf5Writer(const Hdf5Writer&) = delete;
  Hdf5Writer& operator=(const Hdf5Writer&) = delete;

  void write(const std::string& path, std::span<const std::int32_t> values,
             const std::vector<std::int64_t>& shape);
  void write(const std::string& path, std::span<const std::int64_t> values,
             const std::vector<std::int64_t>& shape);
  void write(const std::string& path, std::span<const std::uint8_t> values,
             const std::vector<std::int64_t>& shape);
  void write(const std::string& path, std::span<const float> values,
             const std::vector<std::int64_t>& shape);
  void write(const std::string& path, std::span<const double> values,
             const std::vector<std::int64_t>& shape);
  /// Attributes of the group or dataset `path` ("/" for the root). Strings are UTF-8, variable
  /// length.
  void attribute(const std::string& path, const std::string& name, const std::string& value);
  void attribute(const std::string& path, const std::string& name, std::int64_t value);
  void attribute(const std::string& path, const std::string& name, double value);
  void attribute(const std::string& path, const std::string& name,
                 const std::vector<std::string>& values);
  void attribute(const std::string& path, const std::string& name,
                 const std::vector<double>& values);

  /// Closes the file and returns its bytes; the object may not be used afterwards.
  std::vector<std::byte> finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Reads HDF5 written by us, by h5py or by other tools: any integer width for integers
/// (range-checked) and booleans, fixed or variable-length strings, contiguous or chunked. Hostile
/// content gives Error(bad_content) naming file, object and value; nothing is allocated from an
/// unchecked size. External links and storage, virtual datasets and other filters are refused.
class Hdf5Reader {
 public:
  static Hdf5Reader open(const std::filesystem::path& path);
  /// From bytes already read and verified; `origin` names them in messages.
  static Hdf5Reader from_image(std::span<const std::byte> image, std::string origin);
  Hdf5Reader(Hdf5Reader&&) noexcept;
  Hdf5Reader& operator=(Hdf5Reader&&) noexcept;
  ~Hdf5Reader();

  bool has(const std::string& path) const;
  std::vector<std::int64_t> shape(const std::string& path) const;
  /// Whole datasets. Integers of any width are range-checked into the type asked for.
  Array<std::int32_t> read_i32(const std::string& path) const;
  Array<std::int64_t> read_i64(const std::string& path) const;
  Array<std::uint8_t> read_u8(const std::string& path) const;
  Array<double> read_f64(const std::string& path) const;
  /// A list of strings, UTF-8.
  std::vector<std::string> read_texts(const std::string& path) const;
  /// Given rows of a [N, ...] integer dataset, by hyperslab, in the order given.
  Array<std::int32_t> read_rows_i32(const std::string& path,
                                    std::span<const std::int64_t> rows) const;
  Array<std::uint8_t> read_rows_u8(const std::string& path,
                                   std::span<const std::int64_t> rows) const;

  bool has_attribute(const std::string& path, const std::string& name) const;
  std::string attribute_string(const std::string& path, const std::string& name) const;
  std::int64_t attribute_i64(const std::string& path, const std::string& name) const;
  std::vector<std::int64_t> attribute_i64s(const std::string& path, const std::string& name) const;
  double attribute_f64(const std::string& path, const std::string& name) const;
  std::vector<std::string> attribute_strings(const std::string& path,
                                             const std::string& name) const;
  std::vector<double> attribute_f64s(const std::string& path, const std::string& name) const;

 private:
  struct State;
  explicit Hdf5Reader(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace espalier
