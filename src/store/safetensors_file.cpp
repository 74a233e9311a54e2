#include <fmt/format.h>

#include "espalier/core/error.h"
#include "espalier/store/safetensors.h"
#include "posix.h"
#include "safetensors_format.h"

namespace espalier {

struct SafetensorsFile::State {
  std::filesystem::path path;
  posix::Descriptor file;
  SafetensorsHeader header;
};

namespace {

SafetensorsHeader header_of(const posix::Descriptor& file, const std::filesystem::path& path) {
  const std::string origin = path.string();
  const std::uint64_t size = posix::size_of_file(file, path);
  std::vector<std::byte> head(kSafetensorsPrefix);
  head.resize(posix::read_at(file, path, 0, head));
  const std::uint64_t length = safetensors_header_bytes(head, size, origin);
  head.resize(static_cast<std::size_t>(kSafetensorsPrefix + length));
  const std::size_t got =
      posix::read_at(file, path, kSafetensorsPrefix, std::span(head).subspan(kSafetensorsPrefix));
  if (got != length)
    throw Error(ExitCode::bad_content, "the file ended inside its header",
                fmt::format("{} of {} bytes", got, length), {}, origin);
  return parse_safetensors_header(head, size, origin);
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path)
    : state_(std::make_unique<State>(State{path, posix::open_regular(path), {}})) {
  state_->header = header_of(state_->file, path);
}

SafetensorsFile::SafetensorsFile(SafetensorsFile&&) noexcept = default;
SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&&) noexcept = default;
SafetensorsFile::~SafetensorsFile() = default;

const std::filesystem::path& SafetensorsFile::path() const { return state_->path; }
const std::map<std::string, TensorInfo>& SafetensorsFile::tensors() const {
  return state_->header.tensors;
}

void SafetensorsFile::read(const TensorInfo& tensor, std::span<std::byte> out) const {
  ESPALIER_CHECK(out.size() == tensor.end - tensor.begin, "a tensor has another size");
  const std::size_t got = posix::read_at(state_->file, state_->path, tensor.begin, out);
  if (got != out.size())
    throw Error(ExitCode::bad_content, "the file ended inside a tensor",
                fmt::format("{} of {} bytes", got, out.size()), {}, state_->path.string());
}

}  // namespace espalier
