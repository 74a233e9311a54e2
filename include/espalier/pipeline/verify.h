#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "espalier/pipeline/fingerprint.h"

namespace espalier {

/// What `espalier verify` found, one line per thing that was looked at.
struct Verification {
  /// "run directory", "commit", "exported model", "model".
  std::string kind;
  std::vector<std::string> checked;
  std::vector<std::string> warnings;
};

/// Reads and checks everything below `path`: hashes, plans (shapes, order, digest), scores (finite,
/// in step with the plan), names, shapes and dtypes of a checkpoint; the hashes in an export's
/// provenance.json; that a run's model is the one it began with. With
/// Thoroughness::content every weight of a model is read too, and has to be finite, and the whole
/// content of a run's model is hashed. Throws
/// Error(bad_content) with everything that is wrong, missing_input when there is nothing to verify.
/// Not collective.
Verification verify_path(const std::filesystem::path& path, Thoroughness how);

}  // namespace espalier
