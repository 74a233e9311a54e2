#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include "espalier/comm/rank_group.h"
#include "espalier/model/blockwise.h"

namespace espalier {

/// Remembers whether values were finite, in the order in which they arose, and so where one first
/// was not: what is made from it is not finite either. Every tensor rank counts the same steps; in
/// each it looks at values of its own. Reads the device when asked, and each value once.
class FiniteWatch {
 public:
  static constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();

  enum class Value { hidden, output, sum, gate_gradient, weight_gradient, input_gradient };
  struct Place {
    Value value = Value::hidden;
    std::int64_t half = -1;  // -1: before or after the layers
    TensorRole role = TensorRole::embedding;
  };

  void next_step() { ++step_; }
  void see(const at::Tensor& value, const Place& place);

  /// The step of this rank's first value that was not finite.
  std::int64_t first_step() {
    read();
    return first_ ? first_->first : kNever;
  }
  /// Forgets everything from this step on: it is computed once more.
  void rewind(std::int64_t step);
  std::int64_t step() const { return step_; }
  const Place& first_place() const { return first_->second; }

 private:
  void read();

  std::int64_t step_ = 0;
  std::vector<at::Tensor> flags_;
  std::vector<std::pair<std::int64_t, Place>> seen_;
  std::optional<std::pair<std::int64_t, Place>> first_;
};

/// Where the first value that is not finite appeared, and on which tensor ranks: the same on all of
/// them. Collective.
Problem non_finite(const CausalLM& model, const TokenBatch& batch, const std::string& what,
                   FiniteWatch& watch, const RankGroup& tensor);

/// The losses on the host, and what is wrong with them. Collective.
TokenLosses checked_losses(const CausalLM& model, const TokenBatch& batch, const at::Tensor& nll_N,
                           FiniteWatch& watch, const RankGroup& tensor);

/// At a fault point that asks for it, puts a NaN into a copy of the tensor.
void poison_at(std::string_view point, at::Tensor& tensor);

}  // namespace espalier
