#pragma once

#include <string>

#include <nlohmann/json.hpp>

#include "bench_measured.h"
#include "espalier/comm/communicator.h"
#include "espalier/model/causal_lm.h"
#include "espalier/pipeline/bench.h"

namespace espalier {

/// `machine` of a bench's result; `sums`: how those of tensors cross ranks. Collective.
nlohmann::ordered_json bench_machine(const ComputeOptions& options, const std::string& sums,
                                     Communicator& world);
/// `shape`.
nlohmann::ordered_json bench_shape(const BenchRequest& request, const ComputeOptions& options);
/// `gemm`, of so many rows.
nlohmann::ordered_json to_json(const GemmTotal& gemm, std::int64_t rows);
/// How many channels each layer has.
nlohmann::ordered_json channels_of(const ModelWidths& widths);

}  // namespace espalier
