#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace espalier {

/// Streaming SHA-256 (digests that others may check).
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;

  void update(std::span<const std::byte> bytes);
  /// Appends a little-endian 64-bit integer.
  void update_i64(std::int64_t value);
  /// 64 lower-case hex digits; the object may not be used afterwards.
  std::string hex();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string sha256_hex(std::span<const std::byte> bytes);
std::string sha256_hex(std::string_view text);

/// A counter-based 64-bit hash (SplitMix64 finaliser over the words in turn): the same inputs give
/// the same number on every machine and rank, without any generator state.
std::uint64_t counter_hash(std::span<const std::uint64_t> words);

/// counter_hash mapped to [0, 1) with 53 bits.
double counter_uniform(std::span<const std::uint64_t> words);

}  // namespace espalier
