#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "bench_measured.h"
#include "bench_model.h"
#include "espalier/calib/calibration.h"
#include "espalier/comm/process_grid.h"
#include "espalier/comm/runtime.h"
#include "espalier/model/work_meter.h"
#include "espalier/pipeline/bench.h"
#include "espalier/pipeline/memory_forecast.h"
#include "espalier/pipeline/monitor.h"
#include "espalier/score/memory_need.h"
#include "espalier/score/score.h"

namespace espalier {

/// Passes of all criteria in one order, and the products by themselves in turn with them. All
/// methods are collective over the world of `runtime`.
class BenchPasses {
 public:
  BenchPasses(CommRuntime& runtime, const BenchRequest& request, Order order);

  /// The object of docs/file-formats.md, without `rounded`. Passes are made as `settings` say, or
  /// as it finds best.
  nlohmann::ordered_json run(std::vector<PassSetting> settings);
  /// Of the passes that were measured, one for each criterion.
  const std::vector<PassSetting>& settings() const { return settings_; }

 private:
  bool goes_by_layer() const { return config_.order == Order::layer_major; }

  // The work.
  void prepare();
  std::int64_t most_rows() const;
  PassSetting smallest() const;
  std::int64_t rows_at_once(const PassSetting& setting) const {
    return setting.rows * request_.sequence_tokens;
  }
  Calibration data(std::int64_t sequences, std::int64_t rows) const;
  PassShape shape_of(Criterion criterion, std::int64_t tokens) const;
  MemoryNeed need(Criterion criterion, std::int64_t rows) const;
  bool has_room(Criterion criterion, std::int64_t rows) const;
  void place_boundaries();
  MemoryForecast forecast(Criterion criterion, const PassSetting& setting) const;
  void require_room(Criterion criterion, const PassSetting& setting);

  // Measuring.
  ScoreRequest score_request(Criterion criterion, const PassSetting& setting) const;
  MeasuredPass pass(Criterion criterion, std::int64_t sequences, const PassSetting& setting);
  std::int64_t largest(std::int64_t value) { return -world_.min(-value); }
  void add_kinds(MeasuredPass& result, const Work& work, double all) const;
  double rate(Criterion criterion, const PassSetting& setting);
  PassSetting choose(Criterion criterion);
  void sweep(std::int64_t rows);
  void warm_up(std::int64_t rows);
  void measure();

  // Telling.
  nlohmann::ordered_json told();
  nlohmann::ordered_json told(Criterion criterion, const PassSetting& setting,
                              std::vector<MeasuredPass> rounds) const;

  CommRuntime& runtime_;
  const BenchRequest& request_;
  RunConfig config_;  // of the request, with order and boundaries decided
  Communicator& world_;
  ProcessGrid grid_;
  Monitor monitor_{0};
  ComputeOptions options_;
  std::string sums_;            // how those of tensors cross ranks
  std::int64_t available_ = 0;  // bytes for each rank
  std::optional<BenchModel> model_;
  std::map<std::int64_t, GemmTotal> gemm_;  // by rows
  std::vector<PassSetting> settings_;
  std::vector<std::vector<MeasuredPass>> measured_;
};

}  // namespace espalier
