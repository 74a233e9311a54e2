#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

/// What reader and writer of safetensors share. https://github.com/huggingface/safetensors#format
namespace espalier {

/// Bytes of the length field.
inline constexpr std::uint64_t kSafetensorsPrefix = 8;
inline constexpr std::uint64_t kSafetensorsHeaderLimit = 100'000'000;

/// The length field of a safetensors file, checked against the file's size before anything is
/// allocated from it. Throws Error(bad_content).
std::uint64_t safetensors_header_bytes(std::span<const std::byte> prefix, std::uint64_t file_bytes,
                                       std::string_view origin);

}  // namespace espalier
