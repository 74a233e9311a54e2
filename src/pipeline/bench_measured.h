#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "espalier/config/run_config.h"
#include "gemm_rate.h"

namespace espalier {

/// How a pass is made.
struct PassSetting {
  std::int64_t rows = 1;  // sequences of a micro-batch
  Recompute recompute = Recompute::automatic;
};

/// One pass, as all ranks together saw it.
struct MeasuredPass {
  double seconds = 0;            // of the slowest rank
  double processor_seconds = 0;  // of all
  double flops = 0;              // of all
  std::int64_t repeated_halves = 0;
  std::int64_t peak_bytes = 0;
  std::map<std::string, double> by_phase, by_kind;  // of rank 0
};

/// The products by themselves, over several sweeps.
struct GemmTotal {
  GemmSweep sum;
  std::int64_t sweeps = 0;

  double rate() const { return sum.all_flops() / sum.all_seconds(); }
};

}  // namespace espalier
