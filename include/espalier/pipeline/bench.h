#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "espalier/comm/runtime.h"
#include "espalier/config/model_config.h"
#include "espalier/config/run_config.h"
#include "espalier/prune/widths.h"
#include "espalier/score/statistics.h"

namespace espalier {

/// What `espalier bench` is asked for. Absent and empty is what nobody said.
struct BenchChoice {
  /// A configuration: of its model only config.json is read.
  std::filesystem::path config;
  std::vector<std::string> overrides;
  std::optional<std::int64_t> tensor;
  /// config/model_shape.h, in place of the configuration's model.
  std::string shape;
  std::optional<std::int64_t> layers;
  std::optional<std::int64_t> sequences;
  std::optional<std::int64_t> sequence_tokens;
  /// In place of sequences.
  std::optional<std::int64_t> tokens;
  std::optional<std::int64_t> micro_batch_tokens;
  /// In the words of the configuration.
  std::string dtype;
  std::vector<std::string> criteria;
  std::vector<std::string> orders;
  std::string recompute;
  std::string collectives;
  /// A plan.h5 of the configuration's model.
  std::filesystem::path plan;
  std::int64_t repeats = 3;
  /// A plan.h5, or a JSON list of the channels of each layer; measured beside multiples.
  std::filesystem::path widths;
  /// What those are multiples of; absent: the configuration's, or 64.
  std::optional<std::int64_t> width_multiple;
};

/// What is measured, and on which work.
struct BenchRequest {
  /// Layout, device, dtype, attention, unit and accumulators.
  RunConfig config;
  ModelConfig model;
  /// What the model is called in the result.
  std::string name;
  ModelWidths widths;
  /// Halves that a run would score.
  ScoredHalves scored;
  /// One pass each, in each order.
  std::vector<Criterion> criteria;
  /// sample_major and layer_major, or one of them.
  std::vector<Order> orders{Order::sample_major};
  std::int64_t sequences = 16;
  std::int64_t sequence_tokens = 256;
  /// Absent: the fastest of those that are tried, from one sequence up.
  std::optional<std::int64_t> micro_batch_tokens;
  /// Absent: `auto`; and without micro_batch_tokens also `all`, where that is faster.
  std::optional<Recompute> recompute;
  /// Each pass is made so often; that of median time is told.
  std::int64_t repeats = 3;
  /// Above 0: everything is measured a second time with every layer's channels at the nearest
  /// multiple.
  std::int64_t rounded_to = 0;
};

/// Reads the configuration, the model's config.json, the heads of token files that are there, and
/// the plan. Throws Error(usage) for choices that contradict one another, and what those throw.
BenchRequest bench_request(const BenchChoice& choice);

/// `espalier bench`: scoring passes by score() over random tokens, on a model whose random weights
/// are made in memory; beside them the rate of the same matrix products by themselves, in the same
/// run, before every pass. Passes that go layer by layer read their layers as a run does, from a
/// file of random weights of all layers that is written before (in execution.scratch or a temporary
/// directory, by one rank of every node) and is gone afterwards. Returns the object of
/// docs/file-formats.md, the same on every rank. Collective; throws Error(unsuitable) where the
/// work does not fit into memory, Error(write_failed) where that file does not fit on its disk.
nlohmann::ordered_json run_bench(CommRuntime& runtime, const BenchRequest& request);

/// The same for people.
std::string bench_text(const nlohmann::ordered_json& result);

/// "175 GFLOP/s".
std::string rate_text(double flops_per_s);

}  // namespace espalier
