#include "espalier/core/hash.h"

#include <array>
#include <bit>

#include <fmt/format.h>
#include <openssl/evp.h>

#include "espalier/core/error.h"

namespace espalier {

struct Sha256::State {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  State() = default;
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() { EVP_MD_CTX_free(context); }
};

Sha256::Sha256() : state_(std::make_unique<State>()) {
  ESPALIER_CHECK(EVP_DigestInit_ex(state_->context, EVP_sha256(), nullptr) == 1,
                 "OpenSSL could not start SHA-256");
}
Sha256::~Sha256() = default;
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;

void Sha256::update(std::span<const std::byte> bytes) {
  ESPALIER_CHECK(EVP_DigestUpdate(state_->context, bytes.data(), bytes.size()) == 1,
                 "OpenSSL could not update SHA-256");
}

void Sha256::update_i64(std::int64_t value) {
  static_assert(std::endian::native == std::endian::little, "files and digests are little-endian");
  update(std::as_bytes(std::span(&value, 1)));
}

std::string Sha256::hex() {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int length = 0;
  ESPALIER_CHECK(EVP_DigestFinal_ex(state_->context, digest.data(), &length) == 1,
                 "OpenSSL could not finish SHA-256");
  std::string text;
  for (unsigned int i = 0; i < length; ++i) text += fmt::format("{:02x}", digest[i]);
  return text;
}

std::string sha256_hex(std::span<const std::byte> bytes) {
  Sha256 hash;
  hash.update(bytes);
  return hash.hex();
}

std::string sha256_hex(std::string_view text) {
  return sha256_hex(std::as_bytes(std::span(text.data(), text.size())));
}

std::uint64_t counter_hash(std::span<const std::uint64_t> words) {
  std::uint64_t state = 0x9e3779b97f4a7c15ULL;
  for (const std::uint64_t word : words) {
    std::uint64_t z = (state ^ word) + 0x9e3779b97f4a7c15ULL;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    state = z ^ (z >> 31);
  }
  return state;
}

double counter_uniform(std::span<const std::uint64_t> words) {
  return static_cast<double>(counter_hash(words) >> 11) * 0x1.0p-53;
}

}  // namespace espalier
