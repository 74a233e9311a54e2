#include "sealed_json.h"

#include "espalier/core/error.h"
#include "espalier/core/hash.h"
#include "espalier/core/json.h"

namespace espalier {

std::string sealed(nlohmann::ordered_json manifest) {
  manifest.erase("sha256");
  const std::string hash = sha256_hex(std::string_view(json_text(manifest)));
  manifest["sha256"] = hash;
  return json_text(manifest, 2) + "\n";
}

nlohmann::ordered_json unsealed(const std::string& text, const std::string& where,
                                const std::string& remedy) {
  nlohmann::ordered_json manifest = parse_json(text, where);
  if (!manifest.is_object() || !manifest.contains("sha256") || !manifest["sha256"].is_string())
    throw Error(ExitCode::bad_content, "the manifest has no hash of itself",
                "one that espalier wrote has", remedy, where);
  const std::string hash = manifest["sha256"];
  manifest.erase("sha256");
  if (sha256_hex(std::string_view(json_text(manifest))) != hash || sealed(manifest) != text)
    throw Error(ExitCode::bad_content, "the manifest is damaged: its hash does not match", {},
                remedy, where);
  return manifest;
}

}  // namespace espalier
