#include "espalier/model/work_meter.h"

#include <chrono>
#include <memory>
#include <mutex>
#include <string_view>

#include <ATen/core/Tensor.h>
#include <ATen/record_function.h>

#include "espalier/core/error.h"

namespace espalier {
namespace {

using Clock = std::chrono::steady_clock;

enum class Kind { none, product, attention };

struct Total {
  std::mutex mutex;
  bool counting = false;
  Work work;
};
Total& total() {
  static Total instance;
  return instance;
}

/// Of this thread: how deep it is in what is timed, and in nodes of autograd.
thread_local int timed_depth = 0;
thread_local int backward_depth = 0;

/// Has what is added in front of the two factors.
bool is_added(std::string_view name) { return name == "aten::addmm" || name == "aten::addmm_"; }

Kind kind_of(std::string_view name) {
  if (name == "aten::mm" || is_added(name)) return Kind::product;
  if (name == "aten::bmm" || name == "aten::baddbmm") return Kind::attention;
  // Composite and back end, forward and backward.
  if (name.starts_with("aten::scaled_dot_product") || name.starts_with("aten::_scaled_dot_product"))
    return Kind::attention;
  return Kind::none;
}

double flops_of(const at::RecordFunction& function) {
  const auto inputs = function.inputs();
  const std::size_t first = is_added(function.name()) ? 1 : 0;
  if (inputs.size() < first + 2 || !inputs[first].isTensor() || !inputs[first + 1].isTensor())
    return 0;
  const at::Tensor& a = inputs[first].toTensor();
  const at::Tensor& b = inputs[first + 1].toTensor();
  return 2.0 * static_cast<double>(a.size(0)) * static_cast<double>(a.size(1)) *
         static_cast<double>(b.size(1));
}

struct Timed final : at::ObserverContext {
  Kind kind = Kind::none;
  bool is_node = false;
  bool is_outermost = false;
  double flops = 0;
  Clock::time_point begin;
};

std::unique_ptr<at::ObserverContext> enter(const at::RecordFunction& function) {
  const bool is_node = function.scope() == at::RecordScope::BACKWARD_FUNCTION;
  const Kind kind = is_node ? Kind::none : kind_of(function.name());
  if (!is_node && kind == Kind::none) return nullptr;
  auto timed = std::make_unique<Timed>();
  timed->is_node = is_node;
  if (is_node) {
    ++backward_depth;
    return timed;
  }
  timed->kind = kind;
  timed->is_outermost = timed_depth++ == 0;
  if (kind == Kind::product) timed->flops = flops_of(function);
  timed->begin = Clock::now();
  return timed;
}

void leave(const at::RecordFunction&, at::ObserverContext* context) {
  const auto* timed = static_cast<const Timed*>(context);
  if (timed == nullptr) return;
  if (timed->is_node) {
    --backward_depth;
    return;
  }
  --timed_depth;
  const double seconds = std::chrono::duration<double>(Clock::now() - timed->begin).count();
  const std::lock_guard guard(total().mutex);
  total().work.flops += timed->flops;
  if (!timed->is_outermost) return;
  if (timed->kind == Kind::attention)
    total().work.attention_seconds += seconds;
  else if (backward_depth > 0)
    total().work.backward_seconds += seconds;
  else
    total().work.forward_seconds += seconds;
}

}  // namespace

WorkMeter::WorkMeter() {
  {
    const std::lock_guard guard(total().mutex);
    ESPALIER_CHECK(!total().counting, "two meters of work at a time");
    total().counting = true;
    total().work = {};
  }
  handle_ = at::addGlobalCallback(
      at::RecordFunctionCallback(enter, leave)
          .needsInputs(true)
          .scopes({at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION}));
}

WorkMeter::~WorkMeter() {
  at::removeCallback(handle_);
  const std::lock_guard guard(total().mutex);
  total().counting = false;
}

Work WorkMeter::work() const {
  const std::lock_guard guard(total().mutex);
  return total().work;
}

}  // namespace espalier
