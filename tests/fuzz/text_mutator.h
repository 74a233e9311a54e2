#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace espalier::fuzz {

/// Changes texts at random, the same way for the same seed.
class TextMutator {
 public:
  TextMutator(std::uint64_t seed, std::vector<std::string> words)
      : random_(seed), words_(std::move(words)) {}

  /// One to eight changes: bytes, words of the dictionary, ranges removed, doubled or moved.
  std::string mutate(std::string text) {
    const std::size_t changes = 1 + below(8);
    for (std::size_t i = 0; i < changes; ++i) change(text);
    return text;
  }

  std::size_t below(std::size_t limit) { return limit == 0 ? 0 : random_() % limit; }

 private:
  void change(std::string& text) {
    const std::size_t at = below(text.size() + 1);
    const std::size_t length = below(std::min<std::size_t>(text.size() - at, 64) + 1);
    switch (below(6)) {
      case 0:
        if (at < text.size()) text[at] = static_cast<char>(random_());
        return;
      case 1:
        text.insert(at, 1, static_cast<char>(random_()));
        return;
      case 2:
        text.erase(at, length);
        return;
      case 3:
        text.insert(below(text.size() + 1), text.substr(at, length));
        return;
      case 4:
        text.replace(at, length, words_[below(words_.size())]);
        return;
      default:
        text.insert(at, words_[below(words_.size())]);
    }
  }

  std::mt19937_64 random_;
  std::vector<std::string> words_;
};

}  // namespace espalier::fuzz
