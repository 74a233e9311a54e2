#include "espalier/model/boundaries.h"

#include <algorithm>
#include <map>
#include <utility>

#include <ATen/ATen.h>

#include "espalier/core/error.h"
#include "espalier/store/scratch_file.h"

namespace espalier {
namespace {

class InMemory final : public Boundaries {
 public:
  explicit InMemory(c10::Device device) : device_(device) {}

  void put(std::int64_t place, std::size_t micro_batch, const at::Tensor& x_BTD) override {
    at::Tensor& kept = kept_[place][micro_batch];
    if (kept.defined()) count(-static_cast<std::int64_t>(kept.nbytes()));
    kept = x_BTD.to(at::kCPU);
    count(static_cast<std::int64_t>(kept.nbytes()));
  }
  at::Tensor get(std::int64_t place, std::size_t micro_batch) override {
    return kept_.at(place).at(micro_batch).to(device_);
  }
  void will_get(std::int64_t, std::size_t) override {}
  void drop(std::int64_t place, std::size_t micro_batch) override {
    const auto found = kept_.find(place);
    if (found == kept_.end()) return;
    const auto one = found->second.find(micro_batch);
    if (one == found->second.end()) return;
    count(-static_cast<std::int64_t>(one->second.nbytes()));
    found->second.erase(one);
  }
  void drop(std::int64_t place) override {
    const auto found = kept_.find(place);
    if (found == kept_.end()) return;
    for (const auto& [micro_batch, kept] : found->second)
      count(-static_cast<std::int64_t>(kept.nbytes()));
    kept_.erase(found);
  }

 private:
  c10::Device device_;
  std::map<std::int64_t, std::map<std::size_t, at::Tensor>> kept_;
};

class InFiles final : public Boundaries {
 public:
  InFiles(std::filesystem::path directory, c10::Device device)
      : directory_(std::move(directory)), device_(device) {}

  void put(std::int64_t place, std::size_t micro_batch, const at::Tensor& x_BTD) override {
    auto found = places_.find(place);
    if (found == places_.end())
      found = places_.try_emplace(place, std::make_unique<Place>(directory_)).first;
    Place& there = *found->second;
    const at::Tensor host = x_BTD.to(at::kCPU).contiguous();
    auto part = there.parts.find(micro_batch);
    if (part == there.parts.end()) {
      part = there.parts
                 .emplace(micro_batch, Part{there.bytes, host.sizes().vec(), host.scalar_type(),
                                            static_cast<std::uint64_t>(host.nbytes())})
                 .first;
      there.bytes += part->second.bytes;
      count(static_cast<std::int64_t>(part->second.bytes));
    }
    ESPALIER_CHECK(part->second.bytes == host.nbytes(),
                   "a micro-batch has another size at a place that it had before");
    there.file.write(part->second.offset, {static_cast<const std::byte*>(host.const_data_ptr()),
                                           static_cast<std::size_t>(host.nbytes())});
  }
  at::Tensor get(std::int64_t place, std::size_t micro_batch) override {
    const Place& there = *places_.at(place);
    const Part& part = there.parts.at(micro_batch);
    at::Tensor x_BTD = at::empty(part.shape, at::TensorOptions(part.type));
    there.file.read(part.offset, {static_cast<std::byte*>(x_BTD.data_ptr()),
                                  static_cast<std::size_t>(x_BTD.nbytes())});
    return x_BTD.to(device_);
  }
  void will_get(std::int64_t place, std::size_t micro_batch) override {
    const auto found = places_.find(place);
    if (found == places_.end()) return;
    const auto part = found->second->parts.find(micro_batch);
    if (part == found->second->parts.end()) return;
    found->second->file.will_read(part->second.offset, part->second.bytes);
  }
  /// A file is given back as a whole.
  void drop(std::int64_t, std::size_t) override {}
  void drop(std::int64_t place) override {
    const auto found = places_.find(place);
    if (found == places_.end()) return;
    count(-static_cast<std::int64_t>(found->second->bytes));
    places_.erase(found);
  }

 private:
  struct Part {
    std::uint64_t offset = 0;
    std::vector<std::int64_t> shape;
    at::ScalarType type = at::kFloat;
    std::uint64_t bytes = 0;
  };
  struct Place {
    explicit Place(const std::filesystem::path& directory) : file(directory) {}
    ScratchFile file;
    std::map<std::size_t, Part> parts;
    std::uint64_t bytes = 0;
  };

  std::filesystem::path directory_;
  c10::Device device_;
  std::map<std::int64_t, std::unique_ptr<Place>> places_;
};

}  // namespace

void Boundaries::count(std::int64_t bytes) {
  bytes_ += bytes;
  most_bytes_ = std::max(most_bytes_, bytes_);
}

std::unique_ptr<Boundaries> boundaries_in_memory(c10::Device device) {
  return std::make_unique<InMemory>(device);
}

std::unique_ptr<Boundaries> boundaries_in_files(const std::filesystem::path& directory,
                                                c10::Device device) {
  return std::make_unique<InFiles>(directory, device);
}

}  // namespace espalier
