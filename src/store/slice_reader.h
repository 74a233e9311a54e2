#pragma once

#include <filesystem>
#include <span>
#include <string>

#include "espalier/store/safetensors.h"
#include "espalier/store/tensor_layout.h"
#include "posix.h"

namespace espalier {

/// Reads rows x columns of the tensor `info` of an open file into `out`, dense and row-major. Axes
/// after the first count as one. See CheckpointReader::read.
void read_slice(const posix::Descriptor& file, const std::filesystem::path& path,
                const TensorInfo& info, const std::string& name, const IndexRuns& rows,
                const IndexRuns& columns, std::span<std::byte> out);

}  // namespace espalier
