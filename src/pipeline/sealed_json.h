#pragma once

#include <string>

#include <nlohmann/json.hpp>

namespace espalier {

/// The text of a manifest with the entry `sha256`: the hash of itself without that entry.
std::string sealed(nlohmann::ordered_json manifest);
/// What `sealed` was given. Throws Error(bad_content) at `where`, with `remedy`, for any other
/// text.
nlohmann::ordered_json unsealed(const std::string& text, const std::string& where,
                                const std::string& remedy);

}  // namespace espalier
