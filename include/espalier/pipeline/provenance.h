#pragma once

#include <nlohmann/json.hpp>

#include "espalier/comm/process_grid.h"
#include "espalier/config/run_config.h"
#include "espalier/pipeline/source.h"

namespace espalier {

/// Facts about the program: version, git hash, compiler, library versions (built with and loaded).
nlohmann::ordered_json program_facts();

/// What provenance.json says at the start of a run: program, hosts, layout, command line, seeds,
/// fingerprints of every input, fault injection. Never the environment as a whole: tokens leak.
/// Collective over grid.world() (host names); the result is complete on every rank.
nlohmann::ordered_json make_provenance(const RunConfig& config, const Source& source,
                                       const Inputs& inputs, const ProcessGrid& grid,
                                       const std::string& device);

}  // namespace espalier
