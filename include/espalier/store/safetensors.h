#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "espalier/core/dtype.h"
#include "espalier/core/error.h"
#include "espalier/store/files.h"
#include "espalier/store/tensor_layout.h"

namespace espalier {

/// One tensor as a safetensors header describes it.
struct TensorInfo {
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
  /// Plain file name inside the checkpoint directory.
  std::string file;
  /// First byte, absolute in the file.
  std::uint64_t begin = 0;
  /// One past the last byte, absolute in the file.
  std::uint64_t end = 0;
};

/// A header after validation; exposed for the fuzzer.
struct SafetensorsHeader {
  /// Begin and end relative to the file.
  std::map<std::string, TensorInfo> tensors;
  std::map<std::string, std::string> metadata;
  std::uint64_t data_begin = 0;
};

/// Validates the first bytes of a safetensors file before anything is allocated: length field,
/// UTF-8, JSON depth, duplicate names, known dtypes, overflow of shape products, ranges without
/// hole or overlap that end at the file's last byte. `head` holds at least the whole header. Throws
/// Error(bad_content) naming `origin`. https://github.com/huggingface/safetensors#format
SafetensorsHeader parse_safetensors_header(std::span<const std::byte> head,
                                           std::uint64_t file_bytes, std::string_view origin);

/// Reads a Hugging Face checkpoint directory: one `model.safetensors`, or shards with
/// `model.safetensors.index.json`. Opening reads headers only (and a tensor that is stored twice,
/// to see that both are the same). Tensors of a model saved without its head get the prefix
/// `model.`, as in transformers. Not collective; every rank opens its own.
class CheckpointReader {
 public:
  /// Opens and validates. All problems of all shards are reported at once: a missing directory,
  /// shard or index target is missing_input, unreadable is permission, wrong content is
  /// bad_content.
  static CheckpointReader open(const std::filesystem::path& directory);

  CheckpointReader(CheckpointReader&&) noexcept;
  CheckpointReader& operator=(CheckpointReader&&) noexcept;
  ~CheckpointReader();

  const std::filesystem::path& directory() const;
  const std::map<std::string, TensorInfo>& tensors() const;
  const TensorInfo* find(const std::string& name) const;
  /// Tensors that the index places in a shard which does not hold them: transformers misses them
  /// only when the model has them, and so should the caller.
  const std::map<std::string, std::string>& unfound() const;
  /// What is unusual about the files and changes nothing.
  const std::vector<std::string>& notes() const;
  /// Shard files in ascending order, plain names.
  std::vector<std::string> files() const;

  /// Reads rows x columns of a matrix (or rows of a vector: pass IndexRuns::all(1) as columns) into
  /// `out`, row-major and dense, in the stored dtype. Reads with pread only the bytes of the slice,
  /// joining row runs whose gap is small. out.size() must be rows.size() * columns.size() * item
  /// size. Throws Error(bad_content) when the file ended early, Error(internal) on a size mismatch.
  void read(const std::string& name, const IndexRuns& rows, const IndexRuns& columns,
            std::span<std::byte> out) const;

 private:
  struct State;
  explicit CheckpointReader(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// One safetensors file that this program wrote, opened. Not collective.
class SafetensorsFile {
 public:
  /// Validates the header. Throws as CheckpointReader::open does.
  explicit SafetensorsFile(const std::filesystem::path& path);
  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;
  ~SafetensorsFile();

  const std::filesystem::path& path() const;
  const std::map<std::string, TensorInfo>& tensors() const;
  /// All bytes of a tensor, which `out` has as many of. Throws Error(bad_content) when the file
  /// ended early.
  void read(const TensorInfo& tensor, std::span<std::byte> out) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Writes one safetensors file tensor by tensor, never holding more than one.
/// The header is laid out first from the names, dtypes and shapes; then write() is called once per
/// tensor in the order given. Every byte is written with checked calls.
class SafetensorsWriter {
 public:
  struct Entry {
    std::string name;
    DType dtype;
    std::vector<std::int64_t> shape;
  };
  /// Creates `path` (must not exist). `metadata` goes into `__metadata__`. Fault points, and
  /// whether the file is read back: see store/files.h.
  SafetensorsWriter(const std::filesystem::path& path, std::vector<Entry> entries,
                    const std::map<std::string, std::string>& metadata,
                    WriteScope scope = WriteScope::export_model);
  ~SafetensorsWriter();
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

  /// Appends bytes of the current tensor; a tensor may come in several pieces.
  void write(std::string_view name, std::span<const std::byte> bytes);
  /// Checks that every tensor is complete, flushes to disk and closes. Returns the SHA-256 of the
  /// file.
  std::string finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace espalier
