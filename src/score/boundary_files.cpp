#include "espalier/score/boundary_files.h"

#include <charconv>
#include <optional>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/core/fault.h"
#include "espalier/core/text.h"
#include "espalier/model/tensor_ops.h"
#include "espalier/store/files.h"

namespace espalier {
namespace {

constexpr const char* kPrefix = "boundaries-";
constexpr const char* kSuffix = ".safetensors";
constexpr const char* kScale = ".loss_scale";

std::span<const std::byte> bytes_of(const at::Tensor& host) {
  return {static_cast<const std::byte*>(host.const_data_ptr()),
          static_cast<std::size_t>(host.nbytes())};
}

[[noreturn]] void refuse(const std::filesystem::path& where, std::string what) {
  throw Error(ExitCode::bad_content, std::move(what), "the file is not what a paused run writes",
              "Remove its directory in ckpt/: the iteration is then done from its beginning.",
              where.string());
}

std::optional<std::int64_t> number_of(const std::string& name) {
  std::int64_t number = 0;
  const char* end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(name.data(), end, number);
  if (error != std::errc() || stop != end || std::to_string(number) != name) return std::nullopt;
  return number;
}

}  // namespace

std::string boundary_file_name(int rank) {
  return fmt::format("{}{:04}{}", kPrefix, rank, kSuffix);
}

bool is_boundary_file_name(const std::string& name) {
  return name.starts_with(kPrefix) && name.ends_with(kSuffix);
}

BoundaryFile write_boundaries(const std::filesystem::path& path,
                              const std::vector<StandingBatch>& batches, DType dtype) {
  std::vector<SafetensorsWriter::Entry> entries;
  for (const StandingBatch& batch : batches) {
    entries.push_back({std::to_string(batch.number), dtype, batch.shape});
    entries.push_back({std::to_string(batch.number) + kScale, DType::f64, {1}});
  }
  SafetensorsWriter writer(path, std::move(entries), {}, WriteScope::pause);
  for (const StandingBatch& batch : batches) {
    const AtBoundary there = batch.read();
    const at::Tensor host = there.x_BTD.to(at::kCPU).contiguous();
    writer.write(std::to_string(batch.number), bytes_of(host));
    writer.write(std::to_string(batch.number) + kScale,
                 std::as_bytes(std::span(&there.loss_scale, 1)));
  }
  BoundaryFile written;
  written.sha256 = writer.finish();
  written.bytes = bytes_of_file(path);
  return written;
}

BoundaryFiles::BoundaryFiles(const std::filesystem::path& directory, std::int64_t count) {
  for (const std::filesystem::path& path : list_directory(directory)) {
    if (!is_boundary_file_name(path.filename().string())) continue;
    const SafetensorsFile& file = files_.emplace_back(path);
    bytes_ += bytes_of_file(path);
    for (const auto& [name, values] : file.tensors()) {
      if (name.ends_with(kScale)) continue;
      const std::optional<std::int64_t> number = number_of(name);
      const auto scale = file.tensors().find(name + kScale);
      if (!number || *number < 0 || *number >= count || places_.contains(*number))
        refuse(path, "a tensor is named as no micro-batch, or as one that is there already");
      if (scale == file.tensors().end() || scale->second.dtype != DType::f64 ||
          scale->second.shape != std::vector<std::int64_t>{1})
        refuse(path, fmt::format("micro-batch {} has no scale of the loss", *number));
      places_.emplace(*number, Place{files_.size() - 1, values, scale->second});
    }
  }
  if (std::ssize(places_) != count)
    refuse(directory, fmt::format("boundaries of {} of {}", places_.size(),
                                  counted(count, "micro-batch", "micro-batches")));
}

AtBoundary BoundaryFiles::read(std::int64_t number) const {
  fault::hit("pause.recall");
  const auto found = places_.find(number);
  ESPALIER_CHECK(found != places_.end(), "a micro-batch that the paused pass had not");
  const Place& place = found->second;
  const SafetensorsFile& file = files_[place.file];
  AtBoundary there;
  there.x_BTD =
      at::empty(place.values.shape, at::TensorOptions(to_scalar_type(place.values.dtype)));
  file.read(place.values, {static_cast<std::byte*>(there.x_BTD.data_ptr()),
                           static_cast<std::size_t>(there.x_BTD.nbytes())});
  file.read(place.loss_scale, std::as_writable_bytes(std::span(&there.loss_scale, 1)));
  if (!(there.loss_scale >= 1)) refuse(file.path(), fmt::format("a scale of {}", there.loss_scale));
  return there;
}

}  // namespace espalier
